# SPDX-License-Identifier: Apache-2.0
"""Migration files and dumps of QEMU, made checkpoints of."""

import filecmp
import shutil
import signal
import subprocess
import time

import pytest

from tests.conftest import BINARY, monitor
from tests.fault.test_bad_input import qemus_with
from tests.lab import Guest, Qmp, Serial, process_exists, wait_until

MIB = 512


def migrate(guest, uri, *capabilities):
    with Qmp(guest.qmp_path, timeout=60) as qmp:
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in capabilities])
        qmp.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        qmp.execute("migrate", uri=uri)
        wait_until(lambda: qmp.execute("query-migrate").get("status") in ("completed", "failed"), 120, "the migration")
        assert qmp.execute("query-migrate")["status"] == "completed"


def written(tmp_path, qemu, mapped=False):
    """A guest, migrated to a file and killed; the file and the guest.

    It is stopped for the migration. Under TCG a file that is written beside a running guest may lack its last writes:
    QEMU notes a page as written to before the store is made (accel/tcg/cputlb.c, notdirty_write()), and takes the
    shortcut for written pages from a vCPU that may be in it already (tlb_reset_dirty()). The kernel of such a guest
    found its preemption count wrong, once.
    """
    path = tmp_path / "file"
    with Guest(qemu=qemu, mem_mib=MIB, smp=2, selfcheck={"churn_mib": 192}, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        migrate(guest, f"file:{path}" if mapped else f"exec:cat > {path}", *(["mapped-ram"] if mapped else []))
        guest.kill()
    return guest, path


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return written(tmp_path_factory.mktemp("import"), "7.2")


def check_import(vmsieve, tmp_path, guest, path, name):
    imported = vmsieve.json("import", path, "--", *guest.command())
    assert imported["import"]["format"] == name
    assert imported["introspection"]["used"], imported["introspection"]["reason"]
    assert imported["import"]["ratio"] > 2 and imported["stored_bytes"] < path.stat().st_size / 2
    assert not qemus_with(guest.serial_path)
    serial = tmp_path / "serial"
    report = vmsieve.restore(imported["checkpoint"], serial, "--omitted-fill", "0x5a")
    assert report["running"]
    Serial(serial).wait_rounds(4)


def test_a_stream_becomes_a_checkpoint(vmsieve, tmp_path, stream):
    check_import(vmsieve, tmp_path, *stream, "qemu")


def test_a_mapped_ram_file_becomes_a_checkpoint(vmsieve, tmp_path):
    check_import(vmsieve, tmp_path, *written(tmp_path, "10.0", mapped=True), "qemu-mapped-ram")


def test_what_did_not_run_is_brought_back_stopped(vmsieve, tmp_path, stream):
    guest, path = stream
    imported = vmsieve.json("import", path, "--stopped", "--", *guest.command())
    assert not vmsieve.restore(imported["checkpoint"], tmp_path / "serial")["running"]


@pytest.mark.parametrize("what", ["cut", "header", "device", "foreign", "elf", "kdump"])
def test_what_cannot_be_loaded_is_said_and_leaves_nothing(vmsieve, tmp_path, stream, what):
    guest, path = stream
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    size = path.stat().st_size
    with open(copy, "r+b") as file:
        if what == "cut":
            file.truncate(size // 2)
        elif what == "header":
            file.seek(4)
            file.write(b"\xff\xff\xff\xff")
        elif what == "device":
            # Behind the pages: section headers and device state.
            file.seek(-(96 << 10), 2)
            file.write(b"\xa5" * (64 << 10))
        else:
            file.write({"elf": b"\x7fELF", "kdump": b"KDUMP   ", "foreign": b"PK\x03\x04"}[what])
    failed = vmsieve.fails("import", copy, "--quiet", "--", *guest.command())
    assert failed.code == 7 and str(copy) in failed.stderr and "Traceback" not in failed.stderr
    assert not qemus_with(guest.serial_path)
    assert vmsieve.json("log")["checkpoints"] == []


def test_without_a_command_line_nothing_can_load_it(vmsieve, stream):
    assert vmsieve.fails("import", stream[1]).code == 2
    assert vmsieve.fails("import", "/nowhere/file", "--", *stream[0].command()).code == 3


def test_killed_in_between_nothing_is_left(vmsieve, stream):
    guest, path = stream
    for wait in (0.1, 0.3, 0.6):
        with subprocess.Popen([str(BINARY), "import", str(path), "--quiet", "--", *guest.command()],
                              env=vmsieve.env, stdout=subprocess.DEVNULL) as process:
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(process_exists(pid) for pid in qemus_with(guest.serial_path)), 10, "its QEMU ended")
    assert all(entry["introspection"]["used"] for entry in vmsieve.json("log")["checkpoints"])


def test_a_dump_becomes_a_checkpoint_to_look_at(vmsieve, tmp_path):
    """What QEMU's dump-guest-memory writes: the same free pages and the same users of memory as in the VM itself,
    and no way back."""
    dump = tmp_path / "dump"
    with Guest(mem_mib=MIB, smp=2, selfcheck={"churn_mib": 192}) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        monitor(guest, "dump-guest-memory", paging=False, protocol=f"file:{dump}")
        seen = vmsieve.json("inspect", guest.qmp_path)
    imported = vmsieve.json("import", dump)
    assert imported["import"]["format"] == "elf" and imported["mode"] == "dump"
    assert imported["introspection"]["used"], imported["introspection"]["reason"]
    assert imported["introspection"]["kernel"] == seen["kernel"]
    assert imported["pages"]["free"] == seen["free_bytes"] // 4096
    vmsieve.run("verify", imported["checkpoint"])
    shown = vmsieve.json("show", imported["checkpoint"], "--memory")["memory"]
    assert shown["processes"] == seen["processes"] and shown["files"] == seen["files"]
    different = {name for name in seen["classes"] if shown["classes"][name] != seen["classes"][name]}
    # The dump has the firmware and the video memory too, which the kernel keeps apart, and maps.
    assert different <= {"reserved", "unmanaged", "vmalloc"}

    # Out again as a core, and in: no registers are in that, so nothing is left out twice.
    core = tmp_path / "core"
    vmsieve.run("export", imported["checkpoint"], "--format", "elf", "--output", core)
    again = vmsieve.json("import", core)
    assert not again["introspection"]["used"] and "no registers" in again["introspection"]["reason"]
    assert again["introspection"]["kernel"] == seen["kernel"]
    raw = [tmp_path / "raw1", tmp_path / "raw2"]
    for checkpoint, path in zip((imported, again), raw):
        vmsieve.run("export", checkpoint["checkpoint"], "--format", "raw", "--output", path)
    assert filecmp.cmp(*raw, shallow=False)

    for refused in (["restore", imported["checkpoint"]],
                    ["export", imported["checkpoint"], "--format", "qemu", "--output", tmp_path / "stream"]):
        failed = vmsieve.fails(*refused)
        assert failed.code == 7 and "no device state" in failed.stderr
