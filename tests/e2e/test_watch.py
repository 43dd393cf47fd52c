# SPDX-License-Identifier: Apache-2.0
"""Checkpoints at every beat, thinned out, and a VM that is brought back when it dies."""

import json
import os
import signal
import subprocess

import pytest

from tests.conftest import BINARY, is_running, monitor
from tests.lab import Guest, Serial, end_process


class Watching:
    """A `vmsieve watch --json` under way: its events as they come."""

    def __init__(self, vmsieve, vm, *options):
        self.process = subprocess.Popen([str(BINARY), "watch", str(vm), "--json", *map(str, options)],
                                        env=vmsieve.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events = []

    def next(self, kind):
        """The next event of a kind; those before it are kept too."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == kind:
                return self.events[-1]
        raise AssertionError(f"no event {kind}: {self.process.stderr.read()}")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=60)
        self.events += map(json.loads, output.splitlines())
        return self.process.returncode, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        for event in self.events:
            if event["event"] == "restarted":
                end_process(event["pid"])


@pytest.fixture
def guest():
    with Guest(mem_mib=768, smp=2, selfcheck={"busy": 1, "churn_mib": 128}) as running:
        running.wait_ready()
        yield running


def test_old_ones_are_thinned_out(vmsieve, guest, tmp_path):
    own = vmsieve.save(guest.qmp_path)["checkpoint"]
    with Watching(vmsieve, guest.qmp_path, "--every", "500ms", "--keep", 3) as watch:
        saved = [watch.next("saved") for _ in range(8)]
        code, errors = watch.end()
    assert code == 0, errors
    saved += [event for event in watch.events[-2:] if event["event"] == "saved" and event not in saved]
    assert [event["tracking"]["incremental"] for event in saved] == [False] + [True] * (len(saved) - 1)
    left = [entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]]
    assert left == [own] + [event["checkpoint"] for event in saved[-3:]]
    vmsieve.run("verify")
    assert is_running(guest)
    monitor(guest, "stop")
    serial = tmp_path / "copy.serial"
    vmsieve.restore(left[1], serial, "--omitted-fill", "0x5a")
    Serial(serial).wait_rounds(3, timeout=180)


def test_beats_that_come_too_early_are_skipped(vmsieve, guest):
    with Watching(vmsieve, guest.qmp_path, "--every", "1ms", "--keep", 2) as watch:
        assert watch.next("skipped")["beats"] > 0
        second = vmsieve.fails("watch", guest.qmp_path)
        assert second.code == 10 and f"process {watch.process.pid} is watching this VM" in second.stderr
        watch.next("saved")
        assert watch.end()[0] == 0
    guest.wait_rounds(1)


def test_a_vm_that_dies_is_brought_back(vmsieve, guest, tmp_path):
    serial = tmp_path / "again.serial"
    with Watching(vmsieve, guest.qmp_path, "--every", "300ms", "--keep", 4, "--restart", "--dead-after", 2,
                  "--set", f"serial=file:{serial}") as watch:
        for _ in range(3):
            watch.next("saved")
        end_process(guest.pid)
        restarted = watch.next("restarted")
        Serial(serial).wait_rounds(2, timeout=120)
        saved = watch.next("saved")
        assert not saved["tracking"]["incremental"]  # a new QEMU
        assert watch.next("saved")["tracking"]["incremental"]
        # One that hangs is killed.
        os.kill(restarted["pid"], signal.SIGSTOP)
        again = watch.next("restarted")
        assert again["pid"] != restarted["pid"]
        Serial(serial).wait_rounds(2, timeout=120)
        assert watch.end()[0] == 0


def test_damaged_checkpoints_are_passed_over(vmsieve, guest, tmp_path):
    serial = tmp_path / "again.serial"
    with Watching(vmsieve, guest.qmp_path, "--every", "4s", "--restart", "--set", f"serial=file:{serial}") as watch:
        watch.next("saved")
        good = watch.next("saved")["checkpoint"]
        bad = watch.next("saved")["checkpoint"]
        device = vmsieve.store / "checkpoints" / bad / "device"
        device.write_bytes(bytes(device.stat().st_size))
        end_process(guest.pid)
        event = watch.next("restarted")
        unusable = [e["checkpoint"] for e in watch.events if e["event"] == "unusable"]
        assert unusable == [bad] and event["checkpoint"] == good
        Serial(serial).wait_rounds(2, timeout=120)
        assert watch.end()[0] == 0


def test_what_stands_in_the_way_of_all_checkpoints_is_waited_for(vmsieve, guest, tmp_path):
    serial = tmp_path / "again.serial"
    with Watching(vmsieve, guest.qmp_path, "--every", "1s", "--restart", "--set", f"serial=file:{serial}") as watch:
        saved = [watch.next("saved") for _ in range(3)]
        with open(serial, "w"):  # somebody else's log: it would be emptied
            end_process(guest.pid)
            waiting = watch.next("waiting")
            assert f"process {os.getpid()} writes to" in waiting["message"] and waiting["again_in_ms"] == 1000
        saved += [event for event in watch.events if event["event"] == "saved" and event not in saved]
        assert watch.next("restarted")["checkpoint"] == saved[-1]["checkpoint"]
        # No older one was tried: what the guest did since would be lost for nothing.
        unusable = {event["checkpoint"] for event in watch.events if event["event"] == "unusable"}
        assert unusable == {saved[-1]["checkpoint"]}
        Serial(serial).wait_rounds(2, timeout=120)
        assert watch.end()[0] == 0


def test_wrong_options_for_a_restart_are_said_at_once(vmsieve, guest):
    failed = vmsieve.fails("watch", guest.qmp_path, "--restart", "--qemu", "/nonexistent/qemu")
    assert failed.code == 3 and "/nonexistent/qemu" in failed.stderr


def test_a_watch_that_nobody_reads_ends(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        watch = subprocess.Popen([str(BINARY), "watch", str(guest.qmp_path), "--every", "200ms"], env=vmsieve.env,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert "full" in watch.stdout.readline()
            watch.stdout.close()
            assert watch.wait(timeout=30) == 5
            assert "standard output does not take what was printed" in watch.stderr.read()
        finally:
            end_process(watch.pid)
        assert is_running(guest)


def test_without_restart_the_watch_ends_with_the_vm(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        with Watching(vmsieve, guest.qmp_path, "--every", "300ms") as watch:
            watch.next("saved")
            guest.kill()
            watch.next("died")
            assert watch.process.wait(timeout=30) == 9
