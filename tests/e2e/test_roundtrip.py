# SPDX-License-Identifier: Apache-2.0
"""Save, kill, restore: the guest's own check passes on both sides."""

import itertools

import pytest

from tests.conftest import is_running, monitor
from tests.lab import Guest, Serial

MACHINES = ["q35", "pc"]
MEMORIES = ["plain", "memfd", "file"]
QEMUS = ["7.2", "10.0", "5.2", "newest"]
# Each value of the first two QEMUs in the default run, every pair of them in the long one.
DEFAULT = [("7.2", "plain", "pc"), ("7.2", "memfd", "q35"), ("7.2", "file", "pc"),
           ("10.0", "plain", "q35"), ("10.0", "memfd", "pc")]
CASES = [pytest.param(*case, marks=[] if case in DEFAULT else pytest.mark.matrix)
         for case in itertools.product(QEMUS, MEMORIES, MACHINES)]


@pytest.fixture
def folder(tmp_path):
    """The guest's folder, which a restore needs when RAM is a file in it."""
    path = tmp_path / "guest"
    path.mkdir()
    return path


@pytest.mark.parametrize("qemu, memory, machine", CASES)
def test_guest_cannot_tell(vmsieve, tmp_path, folder, qemu, memory, machine):
    with Guest(qemu=qemu, machine=machine, memory=memory, mem_mib=1024, smp=2, folder=folder) as guest:
        guest.wait_ready()
        guest.wait_rounds(3)
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"], saved["introspection"]["reason"]
        assert saved["introspection"]["reason"] == ""
        pages = saved["pages"]
        assert pages["free"] + pages["zero"] + pages["fill"] + pages["saved"] == pages["total"]
        assert pages["free"] * 4096 > 512 << 20
        guest.wait_rounds(2)
        guest.kill()

        serial = tmp_path / "second.serial"
        first = vmsieve.restore(saved["checkpoint"], serial)
        Serial(serial).wait_rounds(5)

        # The restored guest is a guest like any other: once more.
        again = vmsieve.save(first["qmp"])
        assert again["introspection"]["used"], again["introspection"]["reason"]
        vmsieve.kill_restored()
        serial = tmp_path / "third.serial"
        vmsieve.restore(again["checkpoint"], serial)
        Serial(serial).wait_rounds(5)


@pytest.mark.parametrize("machine", ["q35", pytest.param("pc", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("older, newer", [("7.2", "10.0"), *(pytest.param(*pair, marks=pytest.mark.matrix) for pair in (
    ("5.2", "7.2"), ("7.2", "newest"), ("10.0", "newest")))])
def test_a_newer_qemu_brings_it_back_and_an_older_one_is_refused(vmsieve, tmp_path, machine, older, newer):
    with Guest(qemu=older, machine=machine, mem_mib=512, smp=2, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = vmsieve.save(guest.qmp_path)
        guest.kill()
        serial = tmp_path / "newer.serial"
        report = vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a", "--qemu", Guest(qemu=newer).qemu_path())
        assert report["machine"].endswith(older) and not report["qemu"].startswith(older)
        Serial(serial).wait_rounds(4)
        again = vmsieve.save(report["qmp"])
        failed = vmsieve.fails("restore", again["checkpoint"], "--qemu", guest.qemu_path())
        assert failed.code == 7 and older in failed.stderr
        # Also when nothing else is in the way, so that it is started and tells its version itself.
        vmsieve.kill_restored()
        failed = vmsieve.fails("restore", again["checkpoint"], "--qemu", guest.qemu_path())
        assert failed.code == 7 and f"this is QEMU {older}" in failed.stderr


@pytest.mark.parametrize("machine,memory", [("microvm", "plain"), ("q35", "numa"), ("q35", "hugetlb")])
def test_other_machines(vmsieve, tmp_path, folder, machine, memory):
    with Guest(machine=machine, memory=memory, mem_mib=1024, smp=2, folder=folder) as guest:
        guest.wait_ready()
        guest.wait_rounds(2)
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"], saved["introspection"]["reason"]
        guest.kill()
        serial = tmp_path / "second.serial"
        vmsieve.restore(saved["checkpoint"], serial)
        Serial(serial).wait_rounds(5)


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd:3"])
def test_every_codec(vmsieve, tmp_path, codec):
    with Guest(mem_mib=512, smp=1) as guest:
        guest.wait_ready()
        saved = vmsieve.save(guest.qmp_path, "--compress", codec)
        vmsieve.run("verify", saved["checkpoint"])
        guest.kill()
        serial = tmp_path / "second.serial"
        vmsieve.restore(saved["checkpoint"], serial)
        Serial(serial).wait_rounds(5)


def test_newer_kernel_with_five_level_page_tables(vmsieve, tmp_path):
    with Guest(kernel="6.12", mem_mib=1024, smp=2, cpu="max,-cx16") as guest:  # Guest._default_cpu()
        guest.wait_ready()
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"], saved["introspection"]["reason"]
        assert saved["introspection"]["kernel"].startswith("6.12")
        guest.kill()
        serial = tmp_path / "second.serial"
        vmsieve.restore(saved["checkpoint"], serial)
        Serial(serial).wait_rounds(5)


def test_a_stopped_guest_stays_stopped(vmsieve, tmp_path):
    with Guest(mem_mib=512, smp=1) as guest:
        guest.wait_ready()
        monitor(guest, "stop")
        saved = vmsieve.save(guest.qmp_path)
        assert saved["was_running"] is False
        assert is_running(guest) is False
        guest.kill()
        serial = tmp_path / "second.serial"
        restored = vmsieve.restore(saved["checkpoint"], serial)
        assert restored["running"] is False
