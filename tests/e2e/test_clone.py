# SPDX-License-Identifier: Apache-2.0
"""Clones: several guests of one checkpoint, which share what they have not written to."""

import pathlib
import signal
import subprocess
import time

import pytest

from tests.conftest import BINARY
from tests.fault.test_bad_input import qemus_with
from tests.lab import Guest, Qmp, Serial, process_exists, wait_until

GENERATION = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def clones_of(vmsieve, checkpoint, count, *options):
    reports = vmsieve.json("restore", checkpoint, "--clone", count, "--quiet", *options)["clones"]
    vmsieve.pids += [report["pid"] for report in reports]
    return reports


def host_bytes(pid):
    """What a process has of the host's memory; what is shared counts in parts."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise LookupError("no Pss")


@pytest.fixture(scope="module")
def store_of_guest(tmp_path_factory):
    """A guest with 512 MiB in use, which it does not write to again, saved and killed."""
    from tests.conftest import Vmsieve

    command = Vmsieve(tmp_path_factory.mktemp("clone") / "store")
    with Guest(mem_mib=1024, smp=1, selfcheck={"churn_mib": 64, "anon_mib": 400, "still": 1}, accel="tcg,thread=single,tb-size=16",
               folder=tmp_path_factory.mktemp("guest"),
               drivers=True, extra=["-device", f"vmgenid,guid={GENERATION},id=generation", "-device", "virtio-balloon-pci"]) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = command.save(guest.qmp_path)
        guest.kill()
        assert saved["pages"]["saved"] * 4096 > 450 << 20
        yield command, saved["checkpoint"]
        command.kill_restored()


@pytest.fixture
def cloning(store_of_guest):
    yield store_of_guest
    store_of_guest[0].kill_restored()


def test_eight_clones_need_little_more_than_one(cloning, tmp_path):
    command, checkpoint = cloning
    one = command.restore(checkpoint, tmp_path / "one.serial", "--eager")
    Serial(tmp_path / "one.serial").wait_rounds(1)
    alone = host_bytes(one["pid"])
    command.kill_restored()
    reports = clones_of(command, checkpoint, 8, "--set", f"serial=file:{tmp_path}/{{n}}.serial")
    for number in range(1, 9):
        Serial(tmp_path / f"{number}.serial").wait_rounds(1, timeout=300)
    together = sum(host_bytes(report["pid"]) for report in reports)
    print(f"one {alone >> 20} MiB, eight clones {together >> 20} MiB, {together / alone:.2f} times")
    assert together < 1.6 * alone
    assert len({report["qmp"] for report in reports}) == 8


def test_each_has_a_generation_of_its_own(cloning, tmp_path):
    command, checkpoint = cloning
    generations = {GENERATION}
    for report in clones_of(command, checkpoint, 3, "--stopped", "--set", f"serial=file:{tmp_path}/{{n}}.serial"):
        with Qmp(report["qmp"]) as qmp:
            generations.add(qmp.execute("query-vm-generation-id")["guid"])
    assert len(generations) == 4


def test_one_does_not_see_what_the_other_writes(cloning, tmp_path):
    """Nor what it discards. And a clone is a guest like any other: it is saved, and restored into memory of its own."""
    command, checkpoint = cloning
    reports = clones_of(command, checkpoint, 2, "--set", f"serial=file:{tmp_path}/{{n}}.serial")
    first = Serial(tmp_path / "1.serial")
    free_before = first.wait_rounds(1).free_kib
    with Qmp(reports[0]["qmp"]) as qmp:
        qmp.execute("balloon", value=850 << 20)
    wait_until(lambda: first.wait_rounds(1).free_kib < free_before - (100 << 10), 60, "the balloon")
    first.wait_rounds(1)
    saved = command.save(reports[0]["qmp"])
    assert saved["introspection"]["used"], saved["introspection"]["reason"]
    Serial(tmp_path / "2.serial").wait_rounds(2)
    command.kill_restored()
    again = command.restore(saved["checkpoint"], tmp_path / "again.serial")
    assert again["mode"] == "lazy"
    Serial(tmp_path / "again.serial").wait_rounds(2)


def test_no_clones_where_others_work_on_the_memory(cloning):
    command, checkpoint = cloning
    failed = command.fails("restore", checkpoint, "--clone", 2, "--quiet", "--", "-device", "virtio-mem-pci,memdev=m")
    assert failed.code == 7 and "cannot be cloned" in failed.stderr and "virtio-mem-pci" in failed.stderr


def test_what_only_one_can_have_is_named_and_none_is_left(cloning, tmp_path):
    command, checkpoint = cloning
    serial = tmp_path / "same.serial"
    serial.write_text("old words")
    failed = command.fails("restore", checkpoint, "--clone", 2, "--quiet", "--set", f"serial=file:{serial}")
    assert failed.code == 7 and f"all clones would have {serial}" in failed.stderr
    assert serial.read_text() == "old words"
    failed = command.fails("restore", checkpoint, "--clone", 2, "--quiet", "--set", f"serial=file:{serial}.{{n}}",
                           "--qmp", f"{tmp_path}/qmp")
    assert failed.code == 2 and f"{tmp_path}/qmp.{{n}}" in failed.stderr
    assert not any(process_exists(pid) for pid in qemus_with(serial))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle_none_is_left(cloning, tmp_path, number):
    command, checkpoint = cloning
    killed = 0
    for turn in range(8):
        serial = tmp_path / f"{turn}.serial"
        with subprocess.Popen([str(BINARY), "restore", checkpoint, "--clone", "3", "--quiet", "--set",
                               f"serial=file:{serial}.{{n}}"], env=command.env, stdout=subprocess.DEVNULL) as cloning:
            time.sleep(0.25 + turn * 0.1)
            cloning.send_signal(number)
        pids = qemus_with(serial)
        if cloning.returncode == 0:  # it was done before
            command.pids += pids
            command.kill_restored()
            continue
        killed += 1
        wait_until(lambda: not any(process_exists(pid) for pid in pids), 10, "the end of all clones")
    assert killed > 0


@pytest.mark.parametrize("memory", ["hugetlb", *(pytest.param(kind, marks=pytest.mark.matrix) for kind in ("memfd", "numa"))])
def test_whatever_memory_was_in(vmsieve, tmp_path, memory):
    with Guest(memory=memory, mem_mib=512, smp=2, selfcheck={"churn_mib": 64}, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = vmsieve.save(guest.qmp_path)
        guest.kill()
        clones_of(vmsieve, saved["checkpoint"], 2, "--omitted-fill", "0x5a", "--set", f"serial=file:{tmp_path}/{{n}}.serial")
        for number in (1, 2):
            Serial(tmp_path / f"{number}.serial").wait_rounds(2)
