# SPDX-License-Identifier: Apache-2.0
"""Live saves: the guest runs while its memory is copied, and the copy is of one instant."""

import json
import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.conftest import BINARY, LONG, hmp, is_protected, is_running, judge, monitor, random_moments
from tests.lab import Guest, Serial, wait_until

BUSY = {"busy": 1, "churn_mib": 256}


def describe(saved):
    return f'pause {saved["pause_ms"]:.1f} ms, {saved["pause"]}, {saved.get("live") or saved["tracking"]}'


@pytest.mark.parametrize("memory", ["plain", "memfd", "hugetlb", "file", pytest.param("numa", marks=pytest.mark.matrix)])
def test_guest_cannot_tell(vmsieve, tmp_path, memory):
    with Guest(memory=memory, mem_mib=768, smp=2, selfcheck=BUSY, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        saved = vmsieve.save(guest.qmp_path, "--live", "--compress", "lz4")
        print(describe(saved))
        assert saved["mode"] == "live"
        assert saved["introspection"]["used"], saved["introspection"]["reason"]
        guest.wait_rounds(3)
        guest.kill()
        judge(vmsieve, tmp_path, saved["checkpoint"], "copy")


def test_every_copy_is_of_one_instant(vmsieve, tmp_path):
    """A program that writes a growing number all over memory, and selfcheck, at work in several processes."""
    moments = random_moments()
    with Guest(mem_mib=1024, smp=4, selfcheck=BUSY, hook="/bin/hazard counter 300 &") as guest:
        guest.wait_ready()
        guest.serial.wait_for("hazard: counted", 120, guest.check_alive)
        for turn in range(100 if LONG else 2):
            time.sleep(moments.uniform(0.05, 0.5))
            # A small buffer makes the guest's writes wait for the store.
            small = ["--buffer-mib", "1"] if turn % 2 else []
            saved = vmsieve.save(guest.qmp_path, "--live", "--compress", "lz4", *small)
            print(describe(saved))
            guest.wait_rounds(1)
            monitor(guest, "stop")
            judge(vmsieve, tmp_path, saved["checkpoint"], f"copy{turn}")
            vmsieve.run("rm", saved["checkpoint"])
            monitor(guest, "cont")
        guest.wait_rounds(2)


def test_memory_in_a_file_on_a_disk_is_saved_by_noting_writes(vmsieve, tmp_path):
    folder = tmp_path / "guest"
    folder.mkdir()
    with Guest(kernel=None, memory="file", mem_mib=128, smp=1, folder=folder) as guest:
        saved = vmsieve.save(guest.qmp_path, "--live")
        # Where the folder is a tmpfs, writes can be made to wait.
        assert "live" in saved or not saved["tracking"]["tracked"]
        assert is_running(guest) and not is_protected(guest)


def test_memory_that_another_process_writes_too_is_saved_paused(vmsieve):
    with Guest(kernel=None, memory="memfd", mem_mib=128, smp=1) as guest:
        script = "import mmap,os,sys; f=os.open(sys.argv[1],os.O_RDWR); m=mmap.mmap(f,4096); print('x',flush=True); input()"
        with subprocess.Popen(["/usr/bin/python3", "-c", script, guest.memory_path()], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            saved = vmsieve.save(guest.qmp_path)
            assert saved["mode"] == "paused"
            assert f"process {other.pid} has the guest's memory mapped too" in saved["warnings"][0]
            other.stdin.close()


def test_shared_memory_that_a_balloon_may_take_is_saved_paused(vmsieve):
    with Guest(kernel=None, memory="memfd", mem_mib=128, smp=1, extra=["-device", "virtio-balloon-pci"]) as guest:
        saved = vmsieve.save(guest.qmp_path)
        assert saved["mode"] == "paused" and "balloon" in saved["warnings"][0]


def test_a_qemu_without_rights_of_its_own(vmsieve):
    """As libvirt runs it: another user, no capabilities, a seccomp filter."""
    # Without elevateprivileges=deny, which forbids -runas as well.
    filters = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-runas", "nobody", "-sandbox", filters]) as guest:
        descriptors = os.listdir(f"/proc/{guest.pid}/fd")
        saved = vmsieve.save(guest.qmp_path, "--live")
        assert saved["mode"] == "live"
        assert is_running(guest) and not is_protected(guest)
        assert len(os.listdir(f"/proc/{guest.pid}/fd")) <= len(descriptors) + 1  # the test's own monitor


def test_a_guest_that_stands_still_is_not_saved_live(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        monitor(guest, "stop")
        saved = vmsieve.save(guest.qmp_path)
        assert saved["mode"] == "paused" and saved["warnings"] == []
        assert not is_running(guest)


def start_save(vmsieve, guest, *options):
    return subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--quiet", "--live", *options],
                            env=vmsieve.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def busy():
    with Guest(mem_mib=768, smp=2, selfcheck=BUSY) as guest:
        guest.wait_ready()
        yield guest


def test_the_second_of_two_saves_says_who_is_first(vmsieve, busy):
    first = start_save(vmsieve, busy)
    try:
        wait_until(lambda: is_protected(busy) or first.poll() is not None, 30, "the first save")
        assert f"process {first.pid} is saving this VM" in vmsieve.fails("save", busy.qmp_path).stderr
    finally:
        first.wait()
    assert first.returncode == 0


def test_killed_while_it_copies(vmsieve, busy):
    moments = random_moments()
    for _ in range(100 if LONG else 8):
        process = start_save(vmsieve, busy, "--buffer-mib", "1")
        wait_until(lambda: is_protected(busy) or process.poll() is not None, 30, "a live save")
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.wait()
        wait_until(lambda: is_running(busy) and not is_protected(busy), 5, "the guest is let go")
        busy.wait_rounds(1)
    assert vmsieve.json("log")["damaged"] == []
    vmsieve.save(busy.qmp_path)


def stopped_while_it_copies(vmsieve, guest, *options):
    process = start_save(vmsieve, guest, "--buffer-mib", "1", *options)
    wait_until(lambda: is_protected(guest) or process.poll() is not None, 30, "a live save")
    process.send_signal(signal.SIGSTOP)
    return process


def test_stopped_for_five_seconds(vmsieve, busy, tmp_path):
    """The guest's writes wait, and nothing is lost."""
    process = stopped_while_it_copies(vmsieve, busy)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    busy.wait_rounds(2)
    checkpoint = vmsieve.json("log")["checkpoints"][0]
    monitor(busy, "stop")
    judge(vmsieve, tmp_path, checkpoint["checkpoint"], "copy")
    monitor(busy, "cont")


def is_killed(process, seconds):
    try:
        return process.wait(timeout=seconds) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        # Not left to the tests that come after.
        process.kill()
        process.wait()
        return False


def test_stopped_for_good_it_is_killed_and_the_guest_let_go(vmsieve, busy):
    for _ in range(20 if LONG else 2):
        process = stopped_while_it_copies(vmsieve, busy, "--longest-wait", "1")
        assert is_killed(process, 20)
        wait_until(lambda: is_running(busy) and not is_protected(busy), 5, "the guest is let go")
        busy.wait_rounds(2)
    assert vmsieve.json("log")["checkpoints"] == []


@pytest.mark.parametrize("way", ["--paused", "--incremental"])
def test_stopped_while_the_guest_stands_still_it_is_killed_too(vmsieve, busy, way):
    """The guard resumes the guest."""
    for _ in range(20):
        process = subprocess.Popen([str(BINARY), "save", str(busy.qmp_path), "--quiet", way, "--longest-wait", "1",
                                    "--compress", "none", "--buffer-mib", "1"], env=vmsieve.env,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while is_running(busy) and process.poll() is None:
            pass
        process.send_signal(signal.SIGSTOP)
        if not is_running(busy):
            break
        process.kill()
        process.wait()
    else:
        pytest.skip("no pause was met")
    assert is_killed(process, 30)
    wait_until(lambda: is_running(busy), 10, "the guest runs again")
    vmsieve.run("untrack", busy.qmp_path)
    busy.wait_rounds(2)


def test_a_store_that_is_too_slow_is_given_up(vmsieve, busy, tmp_path):
    """A pipe that nobody reads stands for a disk that hangs."""
    store = tmp_path / "slow"
    store.mkdir()
    environment = dict(vmsieve.env, VMSIEVE_STORE=str(store))
    # Every write(2) of the saver takes 4 seconds, and there is no io_uring: no buffer comes back in time.
    process = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-e", "trace=pwrite64,write,io_uring_setup",
         "-e", "inject=pwrite64,write:delay_enter=4s", "-e", "inject=io_uring_setup:error=EPERM",
         str(BINARY), "save", str(busy.qmp_path), "--quiet", "--live", "--compress", "none", "--buffer-mib", "1",
         "--longest-wait", "1"], env=environment, text=True, capture_output=True, timeout=120, check=False)
    assert process.returncode != 0
    assert "too slow" in process.stderr, process.stderr
    assert is_running(busy) and not is_protected(busy)
    busy.wait_rounds(2)


def test_a_balloon_that_moves_meanwhile(vmsieve, tmp_path):
    """Memory that the guest gives back while it is being copied: the checkpoint is of one instant, or paused."""
    modes = []
    with Guest(mem_mib=768, smp=2, drivers=True, selfcheck={"busy": 1, "churn_mib": 128},
               extra=["-device", "virtio-balloon-pci"]) as guest:
        guest.wait_ready()
        for turn in range(20 if LONG else 1):
            with subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--json", "--buffer-mib", "1"],
                                  env=vmsieve.env, stdout=subprocess.PIPE, text=True) as process:
                wait_until(lambda: is_protected(guest) or process.poll() is not None, 30, "a live save")
                hmp(guest, f"balloon {500 if turn % 2 == 0 else 768}")
                saved = json.loads(process.stdout.read())
            modes.append(saved["mode"])
            monitor(guest, "stop")
            judge(vmsieve, tmp_path, saved["checkpoint"], f"copy{turn}")
            monitor(guest, "cont")
        guest.wait_rounds(1)
    print(modes)


def test_a_qemu_in_other_namespaces(vmsieve, tmp_path):
    """Its process ids and its files are not ours; its only monitor lies where we have no path to."""
    private = tmp_path / "private"
    private.mkdir()
    guest = Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 64}, folder=tmp_path / "guest")
    command = list(map(str, guest.command()))
    at = command.index("-qmp")
    command[at:at + 4] = ["-qmp", f"unix:{private}/qmp,server=on,wait=off"]
    script = f"mount -t tmpfs none {private} && exec {shlex.join(command)}"
    with subprocess.Popen(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                          stdout=subprocess.DEVNULL) as process:
        try:
            guest.serial.wait_for("selfcheck: ready .*\n", 180)
            saves = [vmsieve.save(guest.name, "--live"), vmsieve.save(guest.name, "--incremental"),
                     vmsieve.save(guest.name, "--incremental")]
            guest.serial.wait_rounds(2)
            assert not (private / "qmp").exists()
            vmsieve.run("untrack", guest.name)
        finally:
            process.kill()
    for saved in saves:
        assert saved["mode"] == "live" and saved["introspection"]["used"], saved
    assert saves[-1]["tracking"]["incremental"]
    serial = tmp_path / "copy.serial"
    vmsieve.restore(saves[-1]["checkpoint"], serial, "--qmp", tmp_path / "copy.qmp", "--omitted-fill", "0x5a")
    Serial(serial).wait_rounds(4)
