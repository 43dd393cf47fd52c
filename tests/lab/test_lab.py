# SPDX-License-Identifier: Apache-2.0
"""The lab itself: a guest verifies itself, and notices when it was hurt."""

import ctypes
import os
import subprocess
import time

import pytest

from tests.conftest import KERNELS, MORE_KERNELS

from . import (Guest, GuestFailed, HostHugepages, Serial, Unavailable, disks, pattern, process_exists, wait_until,
               workload)
from .host import REPOSITORY


def overwrite(guest, offsets):
    with open(guest.memory_path(), "r+b", buffering=0) as memory:
        for offset in offsets:
            memory.seek(offset)
            memory.write(b"\x5a" * pattern.PAGE)


def test_guest_becomes_ready_and_verifies():
    with Guest() as guest:
        total_kib, free_kib, used_kib = guest.wait_ready()
        assert total_kib - free_kib == used_kib < 300 << 10
        first = guest.wait_rounds(1)
        last = guest.wait_rounds(3)
        assert last.number >= first.number + 3
        pid = guest.pid
    assert not process_exists(pid)
    assert not guest.folder.exists()


def test_stopped_guest_verifies_after_it_continues():
    with Guest(selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        guest.monitor.execute("stop")
        assert guest.monitor.status() == "paused"
        rounds = len(guest.serial.rounds())
        time.sleep(5)
        assert len(guest.serial.rounds()) == rounds
        guest.monitor.execute("cont")
        guest.wait_rounds(5)


def test_one_damaged_page_is_noticed():
    with Guest(memory="memfd", selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        held = pattern.find_pages(guest.memory_path(), pattern.STEP_HELD)
        # The default workload holds 116 MiB; a page in the middle is no leaving.
        assert len(held) * pattern.PAGE > 100 << 20
        overwrite(guest, [held[len(held) // 2]])
        assert "got=0x5a5a5a5a5a5a5a5a" in guest.serial.wait_failure()
        with pytest.raises(GuestFailed):
            guest.wait_rounds(1)


def test_damage_to_freed_pages_is_not_noticed():
    with Guest(memory="memfd", selfcheck={"churn_mib": 512}) as guest:
        guest.wait_ready()
        # In a guest that runs, a page comes into use between its being found
        # free and its being overwritten.
        guest.monitor.execute("stop")
        freed = pattern.find_pages(guest.memory_path(), pattern.STEP_CHURN)
        assert len(freed) * pattern.PAGE > 256 << 20
        overwrite(guest, freed)
        guest.monitor.execute("cont")
        guest.wait_rounds(8)


@pytest.mark.parametrize("memory", ["file", "file-private", "hugetlb", "numa"])
def test_every_kind_of_memory_boots(memory):
    try:
        with Guest(memory=memory, selfcheck={"churn_mib": 64}) as guest:
            guest.wait_ready()
            guest.wait_rounds(2)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("qemu, machine, kernel", [
    ("7.2", "pc", "6.12"), ("7.2", "microvm", "6.1"),
    ("10.0", "q35", "6.12"), ("10.0", "pc", "6.1"), ("10.0", "microvm", "6.12")])
def test_every_machine_boots(qemu, machine, kernel):
    with Guest(qemu=qemu, machine=machine, kernel=kernel, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        guest.wait_rounds(2)


@pytest.mark.parametrize("kernel", [
    pytest.param(kernel, marks=[] if kernel == "newest" else pytest.mark.matrix)
    for kernel in KERNELS + MORE_KERNELS])
def test_every_kernel_boots(kernel):
    with Guest(kernel=kernel, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        guest.wait_rounds(2)


def test_the_hook_runs_before_selfcheck(tmp_path):
    (tmp_path / "word").write_text("from the host\n", encoding="ascii")
    with Guest(hook="/bin/busybox cat /some/word", files={"/some/word": tmp_path / "word"},
               selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        assert "from the host" in guest.serial.text().partition("selfcheck: ready")[0]


def test_disk_and_balloon_work_with_the_drivers(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(16 << 20))
    extra = ["-drive", f"file={disk},format=raw,if=virtio", "-device", "virtio-balloon-pci"]
    with Guest(drivers=True, extra=extra, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        free_kib = guest.wait_rounds(5).free_kib
        guest.monitor.execute("balloon", value=896 << 20)
        wait_until(lambda: guest.wait_rounds(1).free_kib < free_kib - (100 << 10), 30, "the balloon")
        read = guest.monitor.execute("query-blockstats")[0]["stats"]["rd_bytes"]
        # All of it once, and from the guest's page cache from then on.
        assert 16 << 20 <= read < 20 << 20


def test_every_kind_of_load_runs_and_tells_its_speed(tmp_path):
    kinds = {"noise": "hold random 32", "heap": "hold compressible 32", "ep": "numeric", "triad": "stream 12",
             "cc": "compile 24", "disk": "files /vda 8", "cache": "cache /vda 16"}
    with workload.guest_with(kinds, [disks.image(tmp_path / "disk.qcow2", 64)], mem_mib=512) as guest:
        loads = workload.Loads(guest)
        loads.wait_ready(30)
        loads.wait_speeds(2, 30)
        speeds, results = loads.speed_during(4, lambda: time.sleep(0.5))
        assert set(speeds) == set(kinds) and min(speeds.values()) > 0
        assert len(results) >= 8
        loads.check()


def test_a_load_that_ends_or_cannot_begin_is_a_failure():
    with workload.guest_with({"none": "files /nowhere 8"}, mem_mib=256) as guest:
        with pytest.raises(GuestFailed, match="workload: none FAIL open /nowhere"):
            workload.Loads(guest).wait_ready(60)


def test_one_damaged_page_of_a_load_is_noticed():
    def first_word_of(name, number):
        salt = 0xcbf29ce484222325
        for letter in name.encode():
            salt = (salt ^ letter) * 0x100000001b3 % 2**64
        x = (salt + number + 1) % 2**64
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 % 2**64
        x = (x ^ x >> 27) * 0x94d049bb133111eb % 2**64
        x ^= x >> 31
        x ^= x << 13 & 2**64 - 1
        x ^= x >> 7
        return x ^ (x << 17 & 2**64 - 1)
    with workload.guest_with({"noise": "hold random 16"}, mem_mib=256, memory="memfd") as guest:
        workload.Loads(guest).wait_ready()
        held = guest.memory_path().read_bytes().find(first_word_of("noise", 1234).to_bytes(8, "little"))
        assert held > 0 and held % pattern.PAGE == 0
        overwrite(guest, [held])
        assert "noise FAIL hold page=1234 word=0 expected=" in guest.serial.wait_failure()


def test_held_memory_compresses_as_is_said(tmp_path):
    """Random: not at all. Compressible: about 3:1 by lz4, 4.3:1 by zstd -1. No two pages are the same."""
    program = tmp_path / "workload"
    sources = sorted((REPOSITORY / "tests" / "guests" / "workload").glob("*.c"))
    subprocess.run(["gcc", "-std=gnu17", "-O2", *sources, "-lm", "-o", program], check=True)

    lz4, zstd = ctypes.CDLL("liblz4.so.1"), ctypes.CDLL("libzstd.so.1")
    zstd.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    out, frame = ctypes.create_string_buffer(2 << 20), 1 << 20

    def ratios(content):
        data = subprocess.run([program, "pages", content, "4096"], check=True, capture_output=True).stdout
        frames = [data[at:at + frame] for at in range(0, len(data), frame)]
        return (data, len(data) / sum(lz4.LZ4_compress_default(part, out, frame, len(out)) for part in frames),
                len(data) / sum(zstd.ZSTD_compress(out, len(out), part, frame, 1) for part in frames))
    _, by_lz4, by_zstd = ratios("random")
    assert by_lz4 < 1.01 and by_zstd < 1.01
    data, by_lz4, by_zstd = ratios("compressible")
    assert 2.7 < by_lz4 < 3.3 and 3.8 < by_zstd < 4.8
    assert len({data[at:at + pattern.PAGE] for at in range(0, len(data), pattern.PAGE)}) == 4096


def test_a_guest_without_a_kernel_stays_in_its_firmware():
    with Guest(kernel=None, mem_mib=128) as guest:
        time.sleep(1)
        assert guest.monitor.status() == "running"
        assert guest.serial.text() == ""


def test_qemu_that_does_not_start_says_why():
    with pytest.raises(RuntimeError, match="unsupported machine type"):
        Guest(machine="no-such-machine", kernel=None).__enter__()


def test_serial_reports_a_panic(tmp_path):
    path = tmp_path / "serial"
    path.write_text("selfcheck: round 7 ok total_kib=9 free_kib=5 procs=2\r\n"
                    "[    9.1] Kernel panic - not syncing: lost a page\r\n", encoding="ascii")
    assert Serial(path).rounds()[0].number == 7
    with pytest.raises(GuestFailed, match="lost a page"):
        Serial(path).check()


def test_host_hugepages_are_given_back():
    def reserved():
        with open(HostHugepages.PATH, encoding="ascii") as file:
            return int(file.read())
    try:
        before = reserved()
        with HostHugepages(8):
            assert reserved() == before + 4
        assert reserved() == before
    except (Unavailable, FileNotFoundError) as reason:
        pytest.skip(str(reason))
