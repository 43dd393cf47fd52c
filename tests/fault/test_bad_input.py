# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong, the command says so in one sentence with a documented exit code, and no guest
ever starts on damaged data."""

import os
import pathlib
import random
import socket
import subprocess
import threading
import time

import pytest

from tests.conftest import BINARY, Failed, is_running
from tests.lab import Guest, Serial, end_process, process_exists

DAMAGED, INCOMPATIBLE, NOT_FOUND, VANISHED, IO, USAGE, REFUSED, PERMISSION = 6, 7, 3, 9, 5, 2, 8, 4
BUSY = 10


def qemus_with(word):
    """Pids of the QEMUs with `word` in an argument; those of tests beside this one have others."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if "qemu-system" in os.readlink(entry / "exe") and str(word) in (entry / "cmdline").read_text():
                    found.add(int(entry.name))
            except OSError:
                pass
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A store with one checkpoint of a real guest, made once: (store folder, id)."""
    from tests.conftest import Vmsieve

    command = Vmsieve(tmp_path_factory.mktemp("saved") / "store")
    with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 64}) as guest:
        guest.wait_ready()
        checkpoint = command.save(guest.qmp_path)["checkpoint"]
    return command.store, checkpoint


@pytest.fixture
def copy(saved, vmsieve):
    """A copy of that store to spoil: (command, id, the checkpoint's folder)."""
    store, checkpoint = saved
    subprocess.run(["cp", "-a", str(store), str(vmsieve.store)], check=True)
    return vmsieve, checkpoint, vmsieve.store / "checkpoints" / checkpoint


def assert_never_starts(vmsieve, checkpoint, tmp_path, code=DAMAGED):
    serial = tmp_path / "never.serial"
    # Eager: a lazy restore meets what is wrong with memory when the guest runs (tests/e2e/test_lazy.py).
    failed = vmsieve.fails("restore", checkpoint, "--eager", "--set", f"serial=file:{serial}")
    assert failed.code == code, failed.stderr
    assert qemus_with(serial) == set()
    assert not serial.exists() or serial.read_bytes() == b""
    return failed


def offsets(size, count):
    """Both ends and a spread of places between them."""
    chosen = random.Random(size).sample(range(size), min(count, size))
    return sorted({0, 1, size // 2, size - 1, *chosen})


@pytest.mark.parametrize("name", ["memory", "device", "manifest"])
def test_a_flipped_bit_is_found(copy, tmp_path, name):
    vmsieve, checkpoint, folder = copy
    path = folder / name
    size = path.stat().st_size
    for number, offset in enumerate(offsets(size, 25)):
        with open(path, "r+b") as file:
            file.seek(offset)
            old = file.read(1)
            file.seek(offset)
            file.write(bytes([old[0] ^ 0x10]))
        failed = vmsieve.fails("verify", checkpoint)
        assert failed.code == DAMAGED, (offset, failed.stderr)
        assert name in failed.stderr or checkpoint in failed.stderr
        if number % 5 == 0:
            with open(path, "rb") as file:
                spoiled = file.read()
            try:
                assert_never_starts(vmsieve, checkpoint, tmp_path)
            except AssertionError:
                # A byte that no guest ever gets (padding) does not stop a restore.
                assert name == "memory" and spoiled[offset] in (0x10,)
                vmsieve.kill_restored()
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(old)
    vmsieve.run("verify", checkpoint)


@pytest.mark.parametrize("name", ["memory", "device", "manifest"])
def test_a_truncated_object_is_found(copy, tmp_path, name):
    vmsieve, checkpoint, folder = copy
    path = folder / name
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert vmsieve.fails("verify", checkpoint).code == DAMAGED
        assert_never_starts(vmsieve, checkpoint, tmp_path)
    path.write_bytes(whole + b"\0")
    assert vmsieve.fails("verify", checkpoint).code == DAMAGED
    assert_never_starts(vmsieve, checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["memory", "device", "manifest"])
def test_a_foreign_object_is_found(copy, tmp_path, name):
    vmsieve, checkpoint, folder = copy
    (folder / name).write_bytes(random.Random(1).randbytes(300000))
    assert vmsieve.fails("verify", checkpoint).code == DAMAGED
    assert_never_starts(vmsieve, checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["memory", "device"])
def test_a_missing_object_is_found(copy, tmp_path, name):
    vmsieve, checkpoint, folder = copy
    (folder / name).unlink()
    assert vmsieve.fails("verify", checkpoint).code == DAMAGED
    assert_never_starts(vmsieve, checkpoint, tmp_path)


def test_another_ram_size_is_refused(copy, tmp_path):
    vmsieve, checkpoint, _ = copy
    failed = vmsieve.fails("restore", checkpoint, "--set", "m=1024", "--set", "serial=null")
    assert failed.code == INCOMPATIBLE
    assert "pc.ram" in failed.stderr


def test_another_machine_is_refused(copy, tmp_path):
    vmsieve, checkpoint, _ = copy
    serial = tmp_path / "never.serial"
    failed = vmsieve.fails("restore", checkpoint, "--set", f"serial=file:{serial}", "--set", "machine=pc")
    assert failed.code in (INCOMPATIBLE, REFUSED), failed.stderr
    assert qemus_with(serial) == set()


def test_a_qemu_that_is_none_is_refused(copy):
    vmsieve, checkpoint, _ = copy
    assert vmsieve.fails("restore", checkpoint, "--qemu", "/bin/true").code == INCOMPATIBLE
    assert vmsieve.fails("restore", checkpoint, "--qemu", "/nowhere/qemu").code == NOT_FOUND


def test_an_older_qemu_is_refused(vmsieve):
    with Guest(qemu="10.0", kernel=None, mem_mib=128, smp=1) as guest:
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
    failed = vmsieve.fails("restore", checkpoint, "--qemu", "/usr/bin/qemu-system-x86_64")
    assert failed.code == INCOMPATIBLE
    assert "10.0" in failed.stderr and "7.2" in failed.stderr


def test_unknown_names(copy):
    vmsieve, checkpoint, _ = copy
    assert vmsieve.fails("show", "0000000000000000").code == NOT_FOUND
    assert vmsieve.fails("show", "nobody@latest").code == NOT_FOUND
    assert vmsieve.fails("save", "no-such-vm").code == NOT_FOUND
    assert vmsieve.fails("save", "pid:1").code in (NOT_FOUND, INCOMPATIBLE)
    assert vmsieve.fails("save", "pid:999999999").code in (NOT_FOUND, USAGE)
    assert vmsieve.fails("log", "--store", "/nowhere/at/all").code == NOT_FOUND


def test_wrong_usage(vmsieve):
    for arguments in (["save"], ["nonsense"], [], ["save", "vm", "--compress"]):
        with pytest.raises(Failed) as failed:
            vmsieve.run(*arguments)
        assert failed.value.code == USAGE
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        for codec in ("zip", "zstd:99", "zstd:", "lz4:3"):
            assert vmsieve.fails("save", guest.qmp_path, "--compress", codec).code == USAGE


def test_output_that_does_not_get_through(copy):
    vmsieve, checkpoint, _ = copy
    for arguments in (["log"], ["show", checkpoint, "--json"], ["--help"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([str(BINARY), *arguments], env=vmsieve.env, stdout=full, stderr=subprocess.PIPE,
                                  text=True, check=False)
        assert done.returncode == IO and "standard output" in done.stderr, (arguments, done)


def test_without_standard_descriptors_a_guest_comes_back(copy, tmp_path):
    vmsieve, checkpoint, _ = copy
    serial, monitor = tmp_path / "serial", tmp_path / "qmp"
    done = subprocess.run(["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', str(BINARY), "restore", checkpoint,
                           "--set", f"serial=file:{serial}", "--qmp", str(monitor)], env=vmsieve.env, check=False)
    pids = qemus_with(serial)
    try:
        assert done.returncode == 0 and len(pids) == 1
        Serial(serial).wait_rounds(2)
    finally:
        for pid in pids:
            end_process(pid)


def test_a_human_monitor_is_told_apart(vmsieve, tmp_path):
    path = tmp_path / "hmp"
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-monitor", f"unix:{path},server=on,wait=off"]):
        failed = vmsieve.fails("save", path)
        assert failed.code == INCOMPATIBLE and "no QMP monitor" in failed.stderr


def test_a_dead_monitor_socket(vmsieve, tmp_path):
    path = tmp_path / "dead.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    assert vmsieve.fails("save", str(path)).code in (VANISHED, NOT_FOUND)


def test_a_monitor_that_never_answers(vmsieve, tmp_path):
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        failed = vmsieve.fails("save", str(path))
        assert failed.code in (VANISHED, NOT_FOUND, BUSY)


def test_a_held_monitor_is_named(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(str(guest.qmp_path))
            holder.recv(100)
            failed = vmsieve.fails("save", guest.qmp_path)
            assert failed.code == BUSY
            assert "client" in failed.stderr


def test_a_file_that_the_first_vm_writes_to_is_not_emptied(vmsieve):
    with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 0}) as guest:
        guest.wait_ready()
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        before = guest.serial_path.read_bytes()
        failed = vmsieve.fails("restore", checkpoint)
        assert failed.code == INCOMPATIBLE
        assert f"process {guest.pid} writes to" in failed.stderr and "--set serial=" in failed.stderr
        assert guest.serial_path.read_bytes().startswith(before)


def test_a_qemu_that_vanishes_in_mid_save(vmsieve):
    for delay in (0.05, 0.15, 0.3, 0.5):
        with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 0}) as guest:
            guest.wait_ready()
            threading.Timer(delay, end_process, [guest.pid]).start()
            try:
                vmsieve.run("save", guest.qmp_path)
            except Failed as failed:
                assert failed.code in (VANISHED, NOT_FOUND, IO), failed.stderr
            time.sleep(delay)
    listing = vmsieve.json("log")
    assert listing["damaged"] == []
    for checkpoint in listing["checkpoints"]:
        vmsieve.run("verify", checkpoint["checkpoint"])


def test_a_migration_blocker_is_passed_on(vmsieve):
    with Guest(kernel=None, mem_mib=128, smp=1,
               extra=["-object", "memory-backend-ram,id=shm,size=1M,share=on",
                      "-device", "ivshmem-plain,memdev=shm"]) as guest:
        failed = vmsieve.fails("save", guest.qmp_path)
        assert failed.code == REFUSED
        assert "peer mode" in failed.stderr  # QEMU's own words
        assert is_running(guest)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_full_disk_leaves_the_guest_running_and_no_litter(vmsieve, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(mount)], check=True)
    try:
        with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 0}) as guest:
            guest.wait_ready()
            failed = vmsieve.fails("save", guest.qmp_path, "--store", mount / "store", "--compress", "none")
            assert failed.code == IO
            assert "No space left" in failed.stderr
            assert is_running(guest) is True
            guest.wait_rounds(2)
            assert vmsieve.json("log", "--store", mount / "store")["checkpoints"] == []
            assert list((mount / "store" / "checkpoints").iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_store_leaves_the_guest_running(vmsieve, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,ro", "none", str(mount)], check=True)
    try:
        with Guest(kernel=None, mem_mib=128, smp=1) as guest:
            failed = vmsieve.fails("save", guest.qmp_path, "--store", mount / "store")
            assert failed.code in (IO, PERMISSION)
            assert "Read-only" in failed.stderr
            assert is_running(guest) is True
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_permission_it_says_so(vmsieve, tmp_path):
    with Guest(kernel=None, mem_mib=128, smp=1) as guest:
        os.chmod(guest.qmp_path, 0o777)
        for parent in pathlib.Path(guest.qmp_path).parents:
            if str(parent).startswith("/tmp/"):
                os.chmod(parent, 0o755)
        store = pathlib.Path("/tmp") / f"vmsieve-nobody-{os.getpid()}"
        store.mkdir(mode=0o777)
        os.chmod(store, 0o777)
        binary = store / "vmsieve"
        subprocess.run(["cp", str(BINARY), str(binary)], check=True)
        try:
            result = subprocess.run(
                ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(binary), "save",
                 guest.qmp_path, "--store", str(store / "s")], text=True, capture_output=True, check=False)
            assert result.returncode == PERMISSION, result.stderr
            assert "ermi" in result.stderr
            assert is_running(guest) is True
        finally:
            subprocess.run(["rm", "-rf", str(store)], check=True)


def test_a_writable_disk_needs_the_word(vmsieve, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\0" * (1 << 20))
    with Guest(kernel=None, mem_mib=128, smp=1,
               extra=["-drive", f"file={disk},format=raw,if=virtio"]) as guest:
        result = subprocess.run([str(BINARY), "save", guest.qmp_path, "--disk", "none"], env=vmsieve.env, text=True,
                                capture_output=True, check=True)
        assert "disk.img" in result.stderr and "not part of this checkpoint" in result.stderr
        checkpoint = vmsieve.json("log")["checkpoints"][0]["checkpoint"]
        guest.kill()
        failed = vmsieve.fails("restore", checkpoint)
        assert failed.code in (USAGE, INCOMPATIBLE)
        assert "--disks-as-they-are" in failed.stderr
        restored = vmsieve.restore(checkpoint, tmp_path / "serial", "--disks-as-they-are")
        assert process_exists(restored["pid"])


def test_a_missing_file_is_named_before_anything_starts(vmsieve, tmp_path):
    disk = tmp_path / "cd.iso"
    disk.write_bytes(b"\0" * (1 << 20))
    with Guest(kernel=None, mem_mib=128, smp=1,
               extra=["-drive", f"file={disk},format=raw,if=ide,media=cdrom,readonly=on"]) as guest:
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
    disk.unlink()
    failed = vmsieve.fails("restore", checkpoint)
    assert failed.code == INCOMPATIBLE
    assert str(disk) in failed.stderr and "--set" in failed.stderr
    assert qemus_with(disk) == set()
