# SPDX-License-Identifier: Apache-2.0
"""Exports, each opened by a reader of its own."""

import contextlib
import filecmp
import os
import re
import subprocess
import time

import pytest

from tests.conftest import BINARY, Vmsieve, monitor
from tests.lab import Guest, Qmp, Serial, lab, wait_until
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


def test_drgn_translates_addresses_in_a_core_without_any_free_page(guest_and_store, tmp_path):
    """By the kernel's own page tables, which it finds where the image is mapped: memory that only the kernel's start
    needed is left out before them."""
    drgn = pytest.importorskip("drgn")
    _, command, checkpoint, _ = guest_and_store
    core = tmp_path / "core"
    command.run("export", checkpoint, "--format", "elf", "--output", core)
    with open(core, "rb") as file:
        symbols = dict(re.findall(rb"SYMBOL\((\w+)\)=([0-9a-f]+)", file.read(1 << 20)))
    program = drgn.Program()
    program.set_core_dump(core)
    assert any(program.read(int(symbols[b"swapper_pg_dir"], 16), 4096))
    # Allocated, so outside of the image.
    assert any(program.read(int(symbols[b"mem_section"], 16), 4096))


PROCESSES = """\
import drgn.helpers.linux.pid
for task in drgn.helpers.linux.pid.for_each_task(prog):
    print(task.pid.value_(), task.comm.string_().decode())
"""


@pytest.mark.matrix
def test_crash_and_drgn_list_the_processes_of_a_core(guest_and_store, tmp_path):
    """With the kernel's debugging information, which they cannot do without."""
    crash = lab("crash") / "crash" / "usr" / "bin" / "crash"
    vmlinux = lab("debug-6.1") / "kernels" / "6.1" / "vmlinux"
    _, command, checkpoint, _ = guest_and_store
    core = tmp_path / "core"
    command.run("export", checkpoint, "--format", "elf", "--output", core)
    told = subprocess.run([crash, "-s", str(vmlinux), str(core)], input="ps\nquit\n", check=False, capture_output=True,
                          text=True, timeout=300)
    assert told.returncode == 0, told.stdout + told.stderr
    by_crash = {line.split()[-1].strip("[]") for line in told.stdout.splitlines() if line.strip()}
    assert {"selfcheck", "kthreadd", "kswapd0"} <= by_crash, told.stdout
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES, encoding="ascii")
    told = subprocess.run(["drgn", "-q", "-c", str(core), "-s", str(vmlinux), str(script)], check=False, capture_output=True,
                          text=True, timeout=300)
    assert told.returncode == 0, told.stdout + told.stderr
    by_drgn = {line.split(" ", 1)[1] for line in told.stdout.splitlines()}
    assert {"selfcheck", "kthreadd", "kswapd0"} <= by_drgn <= by_crash, told.stdout


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


def test_killed_in_the_middle_nothing_is_left(guest_and_store, tmp_path):
    _, command, checkpoint, _ = guest_and_store
    killed = 0
    for turn in range(10):
        with subprocess.Popen([str(BINARY), "export", checkpoint, "--format", "raw", "--output", str(tmp_path / "raw")],
                              env=command.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(0.02 + 0.02 * turn)
            process.kill()
        killed += process.returncode != 0
        left = [path.name for path in tmp_path.iterdir()]
        assert left == ([] if process.returncode else ["raw"])
        (tmp_path / "raw").unlink(missing_ok=True)
    assert killed > 0


def test_what_cannot_be_written_is_said_at_once(guest_and_store, tmp_path):
    _, command, checkpoint, _ = guest_and_store
    fifo, text = tmp_path / "fifo", tmp_path / "text"
    os.mkfifo(fifo)
    failed = command.fails("export", checkpoint, "--format", "raw", "--output", fifo)
    assert failed.code == 2 and "only a migration stream" in failed.stderr
    text.write_text("localhost")
    failed = command.fails("export", checkpoint, "--format", "libvirt", "--output", tmp_path / "image", "--xml", text)
    assert failed.code == 2 and "no XML of a domain" in failed.stderr
    assert command.fails("export", checkpoint, "--format", "raw", "--output", "").code == 2
