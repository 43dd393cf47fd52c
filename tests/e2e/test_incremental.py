# SPDX-License-Identifier: Apache-2.0
"""Incremental saves: only what was written is read, and the chain holds what a full save would."""

import array
import filecmp
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.conftest import BINARY, LONG, hmp, is_protected, is_running, judge, monitor, random_moments
from tests.lab import Guest, Qmp, end_process, process_exists, wait_until

BUSY = {"busy": 1, "churn_mib": 256}


def dump_memory(vmsieve, checkpoint, tmp_path, mib):
    """All of the guest's memory as the checkpoint restores it, by QEMU's own words."""
    path = tmp_path / f"{checkpoint}.memory"
    report = vmsieve.restore(checkpoint, tmp_path / "dump.serial", "--stopped")
    with Qmp(report["qmp"], timeout=180) as qmp:
        qmp.human(f'pmemsave 0 {mib << 20} "{path}"')
    vmsieve.kill_restored()
    return path


def holder_of(vmsieve, guest):
    for vm in vmsieve.json("ls")["vms"]:
        if vm["pid"] == guest.pid:
            return vm.get("tracking")
    return None


@pytest.fixture(scope="module")
def busy():
    with Guest(mem_mib=768, smp=2, selfcheck=BUSY) as guest:
        guest.wait_ready()
        yield guest


@pytest.fixture
def untracked(vmsieve, busy):
    """A busy guest that is not tracked at the beginning, nor after the test."""
    yield busy
    vmsieve.run("untrack", busy.qmp_path)


@pytest.mark.parametrize("memory", ["plain", "hugetlb", "file", pytest.param("memfd", marks=pytest.mark.matrix),
                                    pytest.param("numa", marks=pytest.mark.matrix)])
def test_a_chain_of_a_busy_guest(vmsieve, tmp_path, memory):
    moments = random_moments()
    chain = []
    with Guest(memory=memory, mem_mib=768, smp=2, selfcheck=BUSY, folder=tmp_path / "guest",
               hook="/bin/hazard counter 300 &") as guest:
        guest.wait_ready()
        guest.serial.wait_for("hazard: counted", 120, guest.check_alive)
        for turn in range(100 if LONG else 5):
            small = ["--buffer-mib", "1"] if turn % 3 == 2 else []
            saved = vmsieve.save(guest.qmp_path, "--incremental", "--compress", "lz4", *small)
            print(f'pause {saved["pause_ms"]:.1f} ms, {saved["pause"]}, {saved["tracking"]}')
            assert saved["mode"] == "live" and saved["introspection"]["used"]
            assert saved["tracking"]["incremental"] == (turn > 0)
            assert saved["tracking"]["early_pause_ms"] == 0  # no disk is read directly
            assert saved["parent"] == (chain[-1]["checkpoint"] if chain else "")
            chain.append(saved)
            time.sleep(moments.uniform(0, 0.5))
        guest.wait_rounds(3)
        guest.kill()  # its files and huge pages stay
        assert min(saved["stored_bytes"] for saved in chain[1:]) < chain[0]["stored_bytes"] / 2
        for place in {0, len(chain) // 2, len(chain) - 1}:
            judge(vmsieve, tmp_path, chain[place]["checkpoint"], f"copy{place}")
        # The newest is as good without those that it builds on.
        last = chain.pop()["checkpoint"]
        moments.shuffle(chain)
        vmsieve.run("rm", *(saved["checkpoint"] for saved in chain))
        assert [entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]] == [last]
        vmsieve.run("verify")
        judge(vmsieve, tmp_path, last, "last")


def test_the_chain_holds_what_a_full_save_holds(vmsieve, tmp_path, untracked):
    """Byte for byte, at the same instant; also when its older ones are gone."""
    guest = untracked
    turns = 100 if LONG else 6
    for turn in range(turns):
        time.sleep(0.2)
        monitor(guest, "stop")
        step = vmsieve.save(guest.qmp_path, "--incremental", "--compress", "none")
        assert step["tracking"]["incremental"] == (turn > 0)
        # Once in the middle, and at the end.
        if turn in (turns // 2, turns - 1):
            full = vmsieve.save(guest.qmp_path, "--paused")
            memories = [dump_memory(vmsieve, saved["checkpoint"], tmp_path, guest.mem_mib) for saved in (step, full)]
            assert filecmp.cmp(*memories, shallow=False)
            vmsieve.run("rm", *(entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]
                                if entry["checkpoint"] != step["checkpoint"]))
            for path in memories:
                path.unlink()
        monitor(guest, "cont")
    # What is left is the last one; what it needs of the others is not all of them.
    assert len(vmsieve.json("log")["checkpoints"]) == 1
    allocated = sum(f.stat().st_blocks * 512 for f in vmsieve.store.rglob("*") if f.is_file())
    used = step["pages"]["saved"] * 4096
    # The more steps, the more frames of which one page is still needed: after fifty, twice what is used.
    assert allocated < (2.5 * used if LONG else used + 1.5 * full["stored_bytes"] + 3 * step["stored_bytes"])


def test_who_is_tracked_can_be_seen_and_ended(vmsieve, busy):
    assert holder_of(vmsieve, busy) is None
    saved = vmsieve.save(busy.qmp_path, "--incremental")
    assert saved["tracking"]["reason"] == "its writes were not tracked"
    tracking = holder_of(vmsieve, busy)
    assert tracking["checkpoint"] == saved["checkpoint"] and process_exists(tracking["holder"])
    assert is_protected(busy)
    vmsieve.run("untrack", busy.qmp_path)
    assert holder_of(vmsieve, busy) is None and not process_exists(tracking["holder"]) and not is_protected(busy)
    assert "was not tracked" in vmsieve.run("untrack", busy.qmp_path)


def test_the_holder_ends_with_its_vm(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        vmsieve.save(guest.qmp_path, "--incremental")
        holder = holder_of(vmsieve, guest)["holder"]
        # ps(1) does not show it as the command that began it, which has long ended.
        assert pathlib.Path(f"/proc/{holder}/cmdline").read_bytes().strip(b"\0") == b"vmsieve-holder"
    wait_until(lambda: not process_exists(holder), 5, "the holder ends")


def test_a_full_save_of_a_tracked_vm_is_the_next_one_to_build_on(vmsieve, untracked, tmp_path):
    vmsieve.save(untracked.qmp_path, "--incremental")
    full = vmsieve.save(untracked.qmp_path)
    assert full["parent"] == "" and full["mode"] == "live"
    step = vmsieve.save(untracked.qmp_path, "--incremental")
    assert step["parent"] == full["checkpoint"]
    # A paused one does not take what was noted.
    vmsieve.save(untracked.qmp_path, "--paused")
    assert vmsieve.save(untracked.qmp_path, "--incremental")["parent"] == step["checkpoint"]
    other = vmsieve.save(untracked.qmp_path, "--incremental", "--store", tmp_path / "other")
    assert not other["tracking"]["incremental"] and str(vmsieve.store) in other["tracking"]["reason"]


def test_a_checkpoint_that_was_removed_is_not_built_on(vmsieve, untracked):
    first = vmsieve.save(untracked.qmp_path, "--incremental")["checkpoint"]
    vmsieve.run("rm", first)
    second = vmsieve.save(untracked.qmp_path, "--incremental")
    assert not second["tracking"]["incremental"] and first in second["tracking"]["reason"]


def kill_at_random(vmsieve, guest, moments, times):
    for _ in range(times):
        with subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--quiet", "--incremental"], env=vmsieve.env,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(0, 0.6))
            process.kill()
        wait_until(lambda: is_running(guest), 5, "the guest runs")


def test_killed_at_random_moments(vmsieve, untracked, tmp_path):
    """The guest runs on, the store has whole checkpoints only, and the newest one is good."""
    guest, moments = untracked, random_moments()
    for turn in range(20 if LONG else 2):
        kill_at_random(vmsieve, guest, moments, 10 if LONG else 5)
        guest.wait_rounds(1)
        saved = vmsieve.save(guest.qmp_path, "--incremental")
        if not saved["tracking"]["incremental"]:
            assert saved["tracking"]["reason"] in ("the last save of this VM was not finished", "the last save was killed",
                                                   "its writes were not tracked")
        step = vmsieve.save(guest.qmp_path, "--incremental")
        assert step["parent"] == saved["checkpoint"]
        listing = vmsieve.json("log")
        assert listing["damaged"] == []
        vmsieve.run("verify")
        monitor(guest, "stop")
        judge(vmsieve, tmp_path, step["checkpoint"], f"copy{turn}")
        monitor(guest, "cont")


def test_a_holder_that_was_killed_makes_the_next_one_full(vmsieve, untracked, tmp_path):
    guest, moments = untracked, random_moments()
    for turn in range(50 if LONG else 3):
        vmsieve.save(guest.qmp_path, "--incremental")
        holder = holder_of(vmsieve, guest)["holder"]
        if turn == 0:
            os.kill(holder, signal.SIGKILL)
            saved = vmsieve.save(guest.qmp_path, "--incremental")
            assert not saved["tracking"]["incremental"] and saved["tracking"]["reason"] == "its writes were not tracked"
            continue
        with subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--json", "--incremental"], env=vmsieve.env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(moments.uniform(0, 0.3))
            os.kill(holder, signal.SIGKILL)
            output, errors = process.communicate(timeout=60)
        # In the middle of a save the save fails, unless it had what it needed already.
        assert process.returncode in (0, 7, 10), errors
        guest.wait_rounds(1)
        if process.returncode == 0:
            monitor(guest, "stop")
            judge(vmsieve, tmp_path, json.loads(output)["checkpoint"], f"copy{turn}")
            monitor(guest, "cont")
    assert is_running(guest)


def test_a_qemu_that_was_killed(vmsieve, tmp_path):
    """What was committed before is good."""
    moments = random_moments()
    for turn in range(20 if LONG else 1):
        with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 64}) as guest:
            guest.wait_ready()
            vmsieve.save(guest.qmp_path, "--incremental")
            with subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--incremental"], env=vmsieve.env,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
                time.sleep(moments.uniform(0, 0.3))
                end_process(guest.pid)
                process.communicate(timeout=60)
        newest = vmsieve.json("log")["checkpoints"][-1]["checkpoint"]
        judge(vmsieve, tmp_path, newest, f"copy{turn}")


def test_memory_that_a_balloon_takes_and_gives_back(vmsieve, tmp_path):
    with Guest(mem_mib=768, smp=2, drivers=True, selfcheck={"busy": 1, "churn_mib": 128},
               extra=["-device", "virtio-balloon-pci"]) as guest:
        guest.wait_ready()
        for turn in range(40 if LONG else 6):
            saved = vmsieve.save(guest.qmp_path, "--incremental")
            hmp(guest, f"balloon {450 if turn % 2 == 0 else 768}")
            time.sleep(0.3)
        assert saved["tracking"]["incremental"]
        monitor(guest, "stop")
        step = vmsieve.save(guest.qmp_path, "--incremental")
        full = vmsieve.save(guest.qmp_path, "--paused")
        memories = [dump_memory(vmsieve, s["checkpoint"], tmp_path, guest.mem_mib) for s in (step, full)]
        assert filecmp.cmp(*memories, shallow=False)
        monitor(guest, "cont")
        step = vmsieve.save(guest.qmp_path, "--incremental")
        monitor(guest, "stop")
        judge(vmsieve, tmp_path, step["checkpoint"], "copy")


@pytest.mark.parametrize("way", ["--incremental", pytest.param("--live", marks=pytest.mark.matrix)])
def test_a_disk_that_is_read_directly(vmsieve, tmp_path, way):
    """The kernel writes what it reads straight to guest memory, unseen: hazard finds what came too late."""
    moments = random_moments()
    disk = tmp_path / "disk"
    disk.write_bytes(array.array("Q", range(0, 64 << 20, 8)).tobytes())
    try:
        os.close(os.open(disk, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system cannot be read directly")
    drive = ["-drive", f"file={disk},if=none,id=d,format=raw,readonly=on,cache=none,aio=threads",
             "-device", "virtio-blk-pci,drive=d"]
    with Guest(mem_mib=768, smp=1, drivers=True, selfcheck={"churn_mib": 64}, extra=drive,
               hook="/bin/hazard disk &") as guest:
        guest.wait_ready()
        guest.serial.wait_for("hazard: reading", 120, guest.check_alive)
        saves = []
        for _ in range(100 if LONG else 3):
            saves.append(vmsieve.save(guest.qmp_path, way, "--compress", "lz4"))
            time.sleep(moments.uniform(0, 0.3))
        assert way == "--live" or all(saved["tracking"]["early_pause_ms"] > 0 for saved in saves)
        guest.wait_rounds(1)
        monitor(guest, "stop")
        for place, saved in enumerate(saves):
            judge(vmsieve, tmp_path, saved["checkpoint"], f"copy{place}", rounds=2)


def test_where_nothing_can_be_noted_pages_are_compared(vmsieve, tmp_path):
    """Memory that another process has mapped too: the guest is stopped and all of it read, but not stored."""
    with Guest(memory="memfd", mem_mib=512, smp=1, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        script = "import mmap,os,sys; f=os.open(sys.argv[1],os.O_RDWR); m=mmap.mmap(f,4096); print('x',flush=True); input()"
        with subprocess.Popen(["/usr/bin/python3", "-c", script, str(guest.memory_path())], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            first = vmsieve.save(guest.qmp_path, "--incremental")
            assert not first["tracking"]["incremental"] and not first["tracking"]["tracked"]
            second = vmsieve.save(guest.qmp_path, "--incremental")
            other.stdin.close()
        assert second["parent"] == first["checkpoint"] and second["tracking"]["incremental"]
        assert "cannot be tracked" in second["tracking"]["reason"]
        assert second["stored_bytes"] < first["stored_bytes"] / 3
    judge(vmsieve, tmp_path, second["checkpoint"], "copy")


def test_a_qemu_without_rights_of_its_own(vmsieve):
    filters = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-runas", "nobody", "-sandbox", filters]) as guest:
        first = vmsieve.save(guest.qmp_path, "--incremental")
        assert vmsieve.save(guest.qmp_path, "--incremental")["parent"] == first["checkpoint"]
        vmsieve.run("untrack", guest.qmp_path)
        assert not is_protected(guest)


def test_a_vm_that_got_more_memory_is_tracked_anew(vmsieve):
    with Guest(kernel=None, mem_mib=256, smp=1, extra=["-m", "slots=2,maxmem=4G"]) as guest:
        vmsieve.save(guest.qmp_path, "--incremental")
        hmp(guest, "object_add memory-backend-ram,id=more,size=128M")
        hmp(guest, "device_add pc-dimm,id=dimm,memdev=more")
        saved = vmsieve.save(guest.qmp_path, "--incremental")
        assert not saved["tracking"]["incremental"] and saved["tracking"]["reason"] == "its memory is not what it was"
        assert vmsieve.save(guest.qmp_path, "--incremental")["tracking"]["incremental"]
        vmsieve.run("untrack", guest.qmp_path)
