# SPDX-License-Identifier: Apache-2.0
"""Exports, each opened by a reader of its own."""

import contextlib
import filecmp
import subprocess

import pytest

from tests.conftest import BINARY, Vmsieve, monitor
from tests.lab import Guest, Qmp, Serial, wait_until
from tests.soak.vmcore import Structures

MIB = 512


@pytest.fixture(scope="module")
def guest_and_store(tmp_path_factory):
    """A guest that was stopped, saved twice and killed; its store, and the checkpoints: all kinds of free pages, and
    only the buddy allocator's."""
    command = Vmsieve(tmp_path_factory.mktemp("export") / "store")
    with Guest(mem_mib=MIB, smp=2, selfcheck={"churn_mib": 64}, folder=tmp_path_factory.mktemp("guest")) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        first = command.save(guest.qmp_path)
        buddy = command.save(guest.qmp_path, "--omit", "none")
        assert first["introspection"]["used"], first["introspection"]["reason"]
        guest.kill()
        yield guest, command, first["checkpoint"], buddy["checkpoint"]
        command.kill_restored()


@contextlib.contextmanager
def stock_qemu(guest, folder, incoming):
    """A QEMU started by hand with the guest's command line, `-incoming` behind it: its monitor and its serial line."""
    serial, qmp = folder / "serial", folder / "qmp"
    arguments = [f"file:{serial}" if argument == f"file:{guest.serial_path}" else argument
                 for argument in guest.command()]
    at = arguments.index("-qmp")
    arguments[at + 1] = f"unix:{qmp},server=on,wait=off"
    del arguments[at + 2:at + 4]
    with open(folder / "log", "wb") as log, \
            subprocess.Popen([*arguments, "-incoming", incoming], stdout=log, stderr=log) as process:
        try:
            wait_until(qmp.exists, 30, "the monitor")
            with Qmp(qmp, timeout=60) as client:
                yield client, Serial(serial)
        finally:
            process.kill()


def test_stock_qemu_runs_on_from_a_stream(guest_and_store, tmp_path):
    guest, command, checkpoint, _ = guest_and_store
    stream = tmp_path / "stream"
    exported = command.json("export", checkpoint, "--format", "qemu", "--output", stream)
    assert exported["bytes"] == stream.stat().st_size < MIB << 20
    with stock_qemu(guest, tmp_path, f"exec:cat {stream}") as (qmp, serial):
        wait_until(lambda: qmp.execute("query-status")["status"] != "inmigrate", 60, "the stream is loaded")
        qmp.execute("cont")
        serial.wait_rounds(3)


@pytest.mark.parametrize("multifd", [True, pytest.param(False, marks=pytest.mark.matrix)])
def test_stock_qemu_runs_on_from_mapped_ram(vmsieve, tmp_path, multifd):
    with Guest(qemu="10.0", mem_mib=MIB, smp=2, selfcheck={"churn_mib": 64}, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
        mapped = tmp_path / "mapped"
        exported = vmsieve.json("export", checkpoint, "--format", "qemu-mapped-ram", "--output", mapped)
        assert exported["allocated_bytes"] < (MIB << 20) * 3 // 4 < exported["bytes"]
        with stock_qemu(guest, tmp_path, "defer") as (qmp, serial):
            qmp.execute("migrate-set-capabilities", capabilities=[
                {"capability": "mapped-ram", "state": True}, {"capability": "multifd", "state": multifd}])
            qmp.execute("migrate-incoming", uri=f"file:{mapped}")
            wait_until(lambda: qmp.execute("query-migrate").get("status") in ("completed", "failed"), 60, "all is loaded")
            assert qmp.execute("query-migrate")["status"] == "completed", (tmp_path / "log").read_text()
            serial.wait_rounds(3)


def test_a_stream_goes_to_standard_output(guest_and_store, tmp_path):
    _, command, checkpoint, _ = guest_and_store
    stream = tmp_path / "stream"
    command.run("export", checkpoint, "--format", "qemu", "--output", stream)
    piped = subprocess.run([str(BINARY), "export", checkpoint, "--format", "qemu", "--output", "-"], check=True,
                           env=command.env, capture_output=True)
    # The order of the pages differs, and so how often their block is named, their number does not.
    assert abs(len(piped.stdout) - stream.stat().st_size) < 1 << 20
    assert piped.stdout[:4] == b"QEVM"


def test_raw_is_what_a_restored_guest_has(guest_and_store, tmp_path):
    _, command, checkpoint, _ = guest_and_store
    raw, dump = tmp_path / "raw", tmp_path / "dump"
    exported = command.json("export", checkpoint, "--format", "raw", "--output", raw)
    assert exported["bytes"] == MIB << 20
    assert exported["allocated_bytes"] < (MIB << 20) * 3 // 4
    report = command.restore(checkpoint, tmp_path / "serial", "--stopped", "--wait")
    with Qmp(report["qmp"], timeout=60) as qmp:
        qmp.human(f'pmemsave 0 {MIB << 20} "{dump}"')
    command.kill_restored()
    # QEMU's own view has ROM in the first MiB, where main memory lies below it.
    with open(raw, "rb") as ours, open(dump, "rb") as theirs:
        ours.seek(1 << 20)
        theirs.seek(1 << 20)
        while block := ours.read(1 << 20):
            assert block == theirs.read(1 << 20)
    again = tmp_path / "again"
    command.run("export", checkpoint, "--format", "raw", "--output", again, "--threads", "1")
    assert filecmp.cmp(raw, again, shallow=False)


def test_drgn_reads_a_core(guest_and_store, tmp_path):
    """It finds the kernel's page structures, and by the free lists the pages that were left out."""
    pytest.importorskip("drgn")
    _, command, _, checkpoint = guest_and_store
    core = tmp_path / "core"
    exported = command.json("export", checkpoint, "--format", "elf", "--output", core)
    assert exported["allocated_bytes"] < (MIB << 20) * 3 // 4
    shown = command.json("show", checkpoint, "--pages")
    ours = {pfn for run in shown["runs"] if run["class"] == "free"
            for pfn in range(run["first_pfn"], run["first_pfn"] + run["count"])}
    with open(core, "rb") as file:
        head = file.read(1 << 20)
    text = head[head.index(b"OSRELEASE="):].split(b"\0")[0].decode("ascii")
    structures = Structures(core, text)
    assert structures.free_by_lists() == ours
    segments = subprocess.run(["readelf", "-lW", str(core)], check=True, capture_output=True, text=True).stdout
    assert segments.count(" LOAD ") > 3 and " NOTE " in segments


def test_makedumpfile_reads_a_core(guest_and_store, tmp_path):
    _, command, _, checkpoint = guest_and_store
    core = tmp_path / "core"
    command.run("export", checkpoint, "--format", "elf", "--output", core)
    result = subprocess.run(["makedumpfile", "--non-mmap", "-d", "31", str(core), str(tmp_path / "small")], check=False,
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 0 < (tmp_path / "small").stat().st_size < core.stat().st_blocks * 512


def test_nothing_is_replaced_or_left_behind(guest_and_store, tmp_path):
    _, command, checkpoint, _ = guest_and_store
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert command.fails("export", checkpoint, "--format", "raw", "--output", taken).code == 10
    assert taken.read_text() == "mine"
    assert command.fails("export", checkpoint, "--format", "raw", "--output", "-").code == 2
    copy = Vmsieve(tmp_path / "store")
    subprocess.run(["cp", "-a", str(command.store), str(copy.store)], check=True)
    path = copy.store / "checkpoints" / checkpoint / "memory"
    with open(path, "r+b") as memory:
        # Everywhere: some frames hold the firmware, which not all formats have.
        for offset in range(1 << 16, path.stat().st_size, 1 << 18):
            memory.seek(offset)
            memory.write(b"damaged")
    for name in ("qemu", "qemu-mapped-ram", "raw", "elf"):
        assert copy.fails("export", checkpoint, "--format", name, "--output", tmp_path / "out").code == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "taken"]
