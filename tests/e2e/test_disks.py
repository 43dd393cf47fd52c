# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with their disks: memory and disks of one instant, and images that nobody damages."""

import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest

from tests.conftest import BINARY, LONG, Vmsieve, is_running, monitor, need_kernel, random_moments
from tests.e2e.test_watch import Watching
from tests.lab import Guest, Qmp, Serial, end_process, process_exists, wait_until
from tests.lab.disks import Ledger, chain, check_file_system, check_image, guest_with, image


def images_of(saved):
    return [pathlib.Path(disk["image"]) for disk in saved["disks"]["disks"]]


def overlays_of(saved):
    return [pathlib.Path(disk["overlay"]) for disk in saved["disks"]["disks"]]


def database_in(file_system, folder):
    """SQLite's own check of the ledger's database, out of a file system; its number of rows."""
    for name in ("rows.db", "rows.db-journal"):
        out = folder / f"{file_system.name}.{name}"
        subprocess.run(["debugfs", "-R", f"dump /{name} {out}", str(file_system)], check=True, capture_output=True)
        (folder / name).unlink(missing_ok=True)
        if out.exists():
            out.rename(folder / name)
    with sqlite3.connect(folder / "rows.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute("SELECT count(*) FROM t").fetchone()[0]


def record_of(vmsieve, saved):
    """The store's record of a checkpoint's disks."""
    text = (vmsieve.store / "checkpoints" / saved["checkpoint"] / "disks").read_text(encoding="utf-8")
    return json.loads(text.split("\n", 1)[1])


def runs_clean(vmsieve, tmp_path, checkpoint, name, *options, rounds=3):
    """A copy of the guest finds on its disks what it remembers, and nothing else; the restore's report."""
    serial = tmp_path / f"{name}.serial"
    restored = vmsieve.restore(checkpoint, serial, "--disk-temporary", *options)
    Ledger(Serial(serial)).wait_rounds(rounds)
    vmsieve.kill_restored()
    return restored


def files_in(folder):
    return {path.name for path in folder.iterdir() if path.suffix in (".qcow2", ".raw")}


def backing_files_of(pid, folder):
    """Images in `folder` that a process has open."""
    found = set()
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            path = pathlib.Path(os.readlink(descriptor))
        except FileNotFoundError:
            continue
        if path.parent == folder and path.suffix in (".qcow2", ".raw"):
            found.add(path.name)
    return found


@pytest.fixture
def folder(tmp_path):
    """Where the images are."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.mark.parametrize("names, kernel", [
    (["a.qcow2", "b.raw", "c.qcow2"], "6.1"),
    pytest.param(["a.raw"], "newest", marks=pytest.mark.matrix),
    pytest.param(["a.qcow2"], "6.12", marks=pytest.mark.matrix),
])
def test_memory_and_disks_are_of_one_instant(vmsieve, tmp_path, folder, request, names, kernel):
    """Live checkpoints at random moments, while the original goes on; all of them judged afterwards."""
    need_kernel(request, kernel)
    moments = random_moments()
    paths = [image(folder / name, form=name.split(".")[1]) for name in names]
    with guest_with(paths, kernel=kernel, folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(2, alive=guest.check_alive)
        saves = []
        for _ in range(50 if LONG else 5):
            time.sleep(moments.uniform(0.05, 0.6))
            saved = vmsieve.save(guest.qmp_path, *(["--incremental"] if len(saves) % 2 else []))
            assert saved["mode"] == "live" and saved["warnings"] == []
            saves.append(saved)
        ledger.wait_rounds(2, alive=guest.check_alive)
        for number, saved in enumerate(saves):
            before = [path.read_bytes() for path in images_of(saved)] if number == 0 else None
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], f"copy{number}")
            if before:  # the frozen images were only read
                assert before == [path.read_bytes() for path in images_of(saved)]
            for path in images_of(saved):
                if path.suffix == ".qcow2":
                    check_image(path)
                copy = check_file_system(path, tmp_path)
                if path == images_of(saved)[0]:
                    assert database_in(copy, tmp_path) >= 2
                copy.unlink()
        ledger.wait_rounds(2, alive=guest.check_alive)


@pytest.mark.parametrize("model, way, cache, names, kernel", [
    ("ide", "blockdev", "none", ["a.qcow2"], "6.1"),
    ("virtio-scsi", "nested", "writeback", ["a.qcow2", "b.raw"], "6.1"),
    ("virtio-blk", "bare", "writeback", ["a.raw"], "6.1"),
    pytest.param("virtio-scsi", "drive", "none", ["a.raw"], "6.12-generic", marks=pytest.mark.matrix),
    pytest.param("ide", "drive", "writeback", ["a.qcow2"], "newest", marks=pytest.mark.matrix),
    pytest.param("ide", "nested", "none", ["a.raw"], "6.12-generic", marks=pytest.mark.matrix),
    pytest.param("virtio-blk", "blockdev", "none", ["a.raw", "b.qcow2"], "newest", marks=pytest.mark.matrix),
])
@pytest.mark.parametrize("qemu", ["7.2", pytest.param("10.0", marks=pytest.mark.matrix),
                                  pytest.param("newest", marks=pytest.mark.matrix),
                                  pytest.param("5.2", marks=pytest.mark.matrix)])
def test_models_and_spellings(vmsieve, tmp_path, folder, request, model, way, cache, names, kernel, qemu):
    need_kernel(request, kernel)
    paths = [image(folder / name, form=name.split(".")[1]) for name in names]
    machine = "pc" if model == "ide" and kernel == "6.1" else "q35"  # 6.1's cloud flavour knows no AHCI
    with guest_with(paths, model=model, way=way, cache=cache, kernel=kernel, qemu=qemu, machine=machine,
                    folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        first = vmsieve.save(guest.qmp_path)
        ledger.wait_rounds(1, alive=guest.check_alive)
        second = vmsieve.save(guest.qmp_path)
        ledger.wait_rounds(1, alive=guest.check_alive)
        for number, saved in enumerate((second, first)):
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], f"copy{number}")
        # A restored guest is a guest like any other.
        serial = tmp_path / "third"
        restored = vmsieve.restore(second["checkpoint"], serial)
        Ledger(Serial(serial)).wait_rounds(1)
        third = vmsieve.save(restored["qmp"])
        Ledger(Serial(serial)).wait_rounds(1)
        vmsieve.kill_restored()
        runs_clean(vmsieve, tmp_path, third["checkpoint"], "fourth")
        # All removed: the original is on the images that it was started with.
        for path in restored["disks"]:
            os.unlink(path)
        for path in overlays_of(third):
            path.unlink()
        told = vmsieve.run("rm", *(saved["checkpoint"] for saved in (first, second, third)))
        assert "later" not in told
        for number, name in enumerate(names):
            for saved in (first, second):
                assert f"merged {overlays_of(saved)[number]} into {folder}" in told, told
        assert files_in(folder) == set(names)
        ledger.wait_rounds(2, alive=guest.check_alive)


def test_what_no_checkpoint_needs_is_merged(vmsieve, tmp_path, folder):
    """In any order, while the guest writes; what is left can be restored at any time."""
    paths = [image(folder / "a.qcow2"), image(folder / "b.raw", form="raw")]
    with guest_with(paths, folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for _ in range(5):
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(1, alive=guest.check_alive)
        assert len(chain(overlays_of(saves[-1])[0])) == 6
        left = dict(enumerate(saves))
        for number in (1, 2, 4, 0, 3):  # in the middle twice, the newest, the oldest, the last
            report = vmsieve.json("rm", left.pop(number)["checkpoint"])
            assert report["untidy_disks"] == []
            assert len(backing_files_of(guest.pid, folder)) == 2 * (len(left) + 1)
            assert len(files_in(folder)) == 2 * (len(left) + 1)
            ledger.wait_rounds(1, alive=guest.check_alive)
            for name in files_in(folder):
                if name.endswith(".qcow2"):
                    check_image(folder / name) if name not in backing_files_of(guest.pid, folder) else None
            for other, saved in left.items():
                runs_clean(vmsieve, tmp_path, saved["checkpoint"], f"copy{number}{other}", rounds=2)
        assert files_in(folder) == {"a.qcow2", "b.raw"}
        monitor(guest, "quit")
        wait_until(lambda: not process_exists(guest.pid), 20, "its end")
    check_image(folder / "a.qcow2")
    for path in paths:
        check_file_system(path, tmp_path)


def test_images_of_a_stopped_vm_are_merged_by_qemu_img(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for _ in range(3):
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(1, alive=guest.check_alive)
        rows = ledger.rounds()[-1][2]
        guest.kill()
        assert vmsieve.json("rm", saves[1]["checkpoint"])["untidy_disks"] == []
        assert not overlays_of(saves[1])[0].exists()
        for saved in (saves[0], saves[2]):
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], saved["checkpoint"])
        assert vmsieve.json("rm", saves[0]["checkpoint"], saves[2]["checkpoint"])["untidy_disks"] == []
    # The file that the VM wrote to last is still there, and both of them are the disk.
    last = overlays_of(saves[2])[0]
    assert files_in(folder) == {"a.qcow2", last.name}
    for disk in (last, path):
        check_image(disk, leaks=True)
        assert database_in(check_file_system(disk, tmp_path), tmp_path) >= rows


@pytest.mark.parametrize("removed, gone", [
    (0, 0), (0, 2), (1, 0),
    *(pytest.param(*pair, marks=pytest.mark.matrix) for pair in ((0, 1), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)))])
def test_nothing_is_removed_while_a_file_of_the_chain_is_elsewhere(vmsieve, tmp_path, folder, removed, gone):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for _ in range(3):
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(1, alive=guest.check_alive)
        files = [path, *(overlays_of(saved)[0] for saved in saves)]
        away = tmp_path / "away"
        files[gone].rename(away)
        report = vmsieve.json("rm", saves[removed]["checkpoint"])
        # QEMU has it open: what goes on above or below of it may be merged.
        assert report["untidy_disks"] or gone not in (removed, removed + 1)
        kept = [number for number in range(4) if number != gone and (number != removed + 1 or report["untidy_disks"])]
        assert all(files[number].exists() for number in kept), report
        away.rename(files[gone])
        vmsieve.json("disk", "tidy")
        ledger.wait_rounds(1, alive=guest.check_alive)
        for saved in (saves[number] for number in range(3) if number != removed):
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], saved["checkpoint"])
        assert vmsieve.json("rm", *(saves[number]["checkpoint"] for number in range(3) if number != removed))[
            "untidy_disks"] == []
        assert files_in(folder) == {"a.qcow2"}
        ledger.wait_rounds(1, alive=guest.check_alive)


def test_nothing_is_merged_that_somebody_needs(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path)
        serial = tmp_path / "second"
        restored = vmsieve.restore(saved["checkpoint"], serial, "--disk-temporary")
        by_hand = folder / "mine.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(path), str(by_hand)], check=True)
        report = vmsieve.json("rm", saved["checkpoint"])
        assert "mine.qcow2" in report["untidy_disks"][0]["reason"]
        by_hand.unlink()
        report = vmsieve.json("disk", "tidy")
        assert str(restored["pid"]) in report["untidy_disks"][0]["reason"]
        Ledger(Serial(serial)).wait_rounds(3)
        vmsieve.kill_restored()
        ledger.wait_rounds(1, alive=guest.check_alive)
        # The next save does it by itself.
        again = vmsieve.save(guest.qmp_path)
        assert images_of(again) == [path]
        ledger.wait_rounds(2, alive=guest.check_alive)
        runs_clean(vmsieve, tmp_path, again["checkpoint"], "third")


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_checkpoints_of_two_stores_keep_their_disks(vmsieve, tmp_path, folder, place):
    """What one store knows nothing of, another may need: also what is in another folder than the image."""
    other = Vmsieve(tmp_path / "other")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--disk-folder", elsewhere] if place == "elsewhere" else []
    path = image(folder / "a.qcow2")
    try:
        with guest_with([path], folder=tmp_path / "guest") as guest:
            ledger = Ledger(guest.serial)
            ledger.wait_rounds(1, alive=guest.check_alive)
            first = vmsieve.save(guest.qmp_path)
            ledger.wait_rounds(1, alive=guest.check_alive)
            second = other.save(guest.qmp_path, *options)
            ledger.wait_rounds(1, alive=guest.check_alive)
            report = vmsieve.json("rm", first["checkpoint"])
            assert "of no checkpoint of this store" in report["untidy_disks"][0]["reason"]
            assert overlays_of(first)[0].exists() and chain(overlays_of(second)[0])[1:] == [
                str(overlays_of(first)[0]), str(path)]
            runs_clean(other, tmp_path, second["checkpoint"], "second")
            assert other.json("rm", second["checkpoint"])["untidy_disks"] == []
            assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
            assert files_in(folder) == {"a.qcow2"} and files_in(elsewhere) == set()
            ledger.wait_rounds(1, alive=guest.check_alive)
    finally:
        other.kill_restored()


def firmware_with(path):
    """A guest that stays in its firmware, with a disk that nobody writes to."""
    return Guest(kernel=None, mem_mib=128, smp=1, extra=["-drive", f"file={path},format=qcow2,if=virtio"])


def test_records_do_not_grow_with_every_save(vmsieve, folder):
    """What was merged since is not named any more."""
    path = image(folder / "a.qcow2", file_system=False)
    with firmware_with(path) as guest:
        before = None
        for _ in range(6):
            saved = vmsieve.save(guest.qmp_path)
            record = (vmsieve.store / "checkpoints" / saved["checkpoint"] / "disks").read_text(encoding="utf-8")
            assert set(re.findall(r'"([^"]+\.qcow2)"', record)) == set(chain(overlays_of(saved)[0]))
            if before:
                assert vmsieve.json("rm", before["checkpoint"])["untidy_disks"] == []
            before = saved
        assert chain(overlays_of(saved)[0]) == [str(overlays_of(saved)[0]), str(path)]


@pytest.mark.parametrize("way", ["by the VM's QEMU", "by qemu-img"])
def test_what_is_merged_is_durable_before_the_overlay_goes(vmsieve, tmp_path, folder, way):
    """As vmsieve sees to it: the image, and the header of what is over it and names it now."""
    path = image(folder / "a.qcow2", file_system=False)
    with firmware_with(path) as guest:
        first, second = vmsieve.save(guest.qmp_path), vmsieve.save(guest.qmp_path)
        if way == "by qemu-img":
            guest.kill()
        trace = tmp_path / "trace"
        subprocess.run(["strace", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,unlink,unlinkat", str(BINARY), "rm",
                        first["checkpoint"]], env=vmsieve.env, check=True, stdout=subprocess.DEVNULL)
    calls = trace.read_text(encoding="utf-8").splitlines()
    gone = next(number for number, call in enumerate(calls) if "unlink" in call and str(overlays_of(first)[0]) in call)
    for file in (path, *overlays_of(second)):
        assert any("sync(" in call and f"<{file}>" in call and call.endswith("= 0") for call in calls[:gone]), file


def test_an_image_that_is_not_as_it_was_is_refused_by_name(vmsieve, tmp_path, folder):
    path = image(folder / "a.raw", form="raw")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
    status = path.stat()

    def refused():
        failed = vmsieve.fails("restore", checkpoint)
        assert str(path) in failed.stderr
        assert len(list(folder.iterdir())) == 2, "an overlay was left"
        return failed

    def as_it_was():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    os.utime(path)
    assert "the time of its last change" in refused().stderr
    with open(path, "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()
        as_it_was()
        assert "its content" in refused().stderr
        file.seek(0)
        file.write(byte)
    with open(path, "ab") as file:
        file.write(b"x")
    assert "its size" in refused().stderr
    os.truncate(path, status.st_size)
    as_it_was()
    path.rename(folder / "away")
    assert refused().code == 3
    (folder / "away").rename(path)
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-drive", f"file={path},format=raw,if=virtio"]) as other:
        monitor(other, "query-status")  # it has opened its drives when it answers
        failed = refused()
        assert failed.code == 10 and str(other.pid) in failed.stderr
    as_it_was()
    runs_clean(vmsieve, tmp_path, checkpoint, "copy")
    assert vmsieve.json("show", checkpoint)["disks"]["disks"][0]["chain"] == [str(path)]


def test_every_image_of_a_chain_is_as_it_was(vmsieve, tmp_path, folder):
    """What a checkpoint's image is backed by is part of its disk: an earlier checkpoint's image, and the VM's own."""
    golden = image(folder / "golden.raw", form="raw", file_system=False)
    path = folder / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(golden), str(path)], check=True)
    with firmware_with(path) as guest:
        saves = [vmsieve.save(guest.qmp_path) for _ in range(3)]
        guest.kill()
    files = files_in(folder)
    restorable = lambda number: vmsieve.restore(saves[number]["checkpoint"], tmp_path / "serial", "--disk-temporary")

    def refused(file, *numbers):
        for number in numbers:
            failed = vmsieve.fails("restore", saves[number]["checkpoint"])
            assert f"the disk image {file}" in failed.stderr
            assert files_in(folder) == files, "an overlay was left"
        return failed

    for file, numbers in ((golden, (0, 1, 2)), (path, (0, 1, 2)), (overlays_of(saves[0])[0], (1, 2))):
        status = file.stat()
        os.utime(file)
        assert "the time of its last change" in refused(file, *numbers).stderr
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    away = file.rename(folder / "away.other")
    files.remove(file.name)
    failed = refused(file, 2)
    assert failed.code == 3 and str(overlays_of(saves[1])[0]) in failed.stderr
    restorable(0)
    vmsieve.kill_restored()
    away.rename(file)
    files.add(file.name)
    status = golden.stat()
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-drive", f"file={golden},format=raw,if=virtio"]) as other:
        monitor(other, "query-status")
        failed = refused(golden, 2)
        assert failed.code == 10 and str(other.pid) in failed.stderr
    os.utime(golden, ns=(status.st_atime_ns, status.st_mtime_ns))
    restorable(2)
    vmsieve.kill_restored()


@pytest.mark.parametrize("way", ["by the VM's QEMU", "by qemu-img"])
def test_what_a_merge_changes_below_is_known(vmsieve, tmp_path, folder, way):
    """A merge changes the image under it and the header over it: lawfully, and nobody else may."""
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for _ in range(4):
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(1, alive=guest.check_alive)
        if way == "by qemu-img":
            guest.kill()
        below = lambda: [file["path"] for file in record_of(vmsieve, saves[3])["disks"][0]["below"]]
        first, second = (overlays_of(saved)[0] for saved in saves[:2])
        assert below() == [str(second), str(first), str(path)]
        assert vmsieve.json("rm", saves[1]["checkpoint"])["untidy_disks"] == []
        assert below() == [str(first), str(path)]
        runs_clean(vmsieve, tmp_path, saves[3]["checkpoint"], "one gone", rounds=2)
        assert vmsieve.json("rm", saves[0]["checkpoint"])["untidy_disks"] == []
        assert below() == [str(path)]
        for number in (2, 3):
            runs_clean(vmsieve, tmp_path, saves[number]["checkpoint"], f"two gone {number}", rounds=2)
        guest.kill()
    status = path.stat()
    os.utime(path)
    assert f"the disk image {path} is not what it was" in vmsieve.fails("restore", saves[3]["checkpoint"]).stderr
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    runs_clean(vmsieve, tmp_path, saves[3]["checkpoint"], "as it was", rounds=2)


def test_an_image_that_changed_before_a_checkpoint_is_refused_below_it(vmsieve, tmp_path, folder):
    """It was not to change since the checkpoint whose image it is: that a later one saw it so does not help."""
    path = image(folder / "a.qcow2", file_system=False)
    with firmware_with(path) as guest:
        vmsieve.save(guest.qmp_path)
        os.utime(path)
        second = vmsieve.save(guest.qmp_path)
        guest.kill()
    assert f"the disk image {path} is not what it was" in vmsieve.fails("restore", second["checkpoint"]).stderr


def test_another_stores_merge_in_a_chain_is_no_change(vmsieve, tmp_path, folder):
    other = Vmsieve(tmp_path / "other")
    path = image(folder / "a.qcow2")
    try:
        with guest_with([path], folder=tmp_path / "guest") as guest:
            ledger = Ledger(guest.serial)
            ledger.wait_rounds(1, alive=guest.check_alive)
            ours = []
            for _ in range(3):
                ours.append(vmsieve.save(guest.qmp_path))
                ledger.wait_rounds(1, alive=guest.check_alive)
            theirs = other.save(guest.qmp_path)
            ledger.wait_rounds(1, alive=guest.check_alive)
            assert vmsieve.json("rm", ours[0]["checkpoint"])["untidy_disks"] == []
            assert not overlays_of(ours[0])[0].exists()
            runs_clean(other, tmp_path, theirs["checkpoint"], "theirs", rounds=2)
            guest.kill()
    finally:
        other.kill_restored()


def test_snapshots_inside_the_images(vmsieve, tmp_path, folder):
    paths = [image(folder / "a.qcow2"), image(folder / "b.qcow2")]
    with guest_with(paths, way="blockdev", folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for _ in range(2):
            saves.append(vmsieve.save(guest.qmp_path, "--disk", "internal"))
            ledger.wait_rounds(1, alive=guest.check_alive)
        for number, saved in enumerate(saves):
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], f"copy{number}")
        assert vmsieve.json("rm", saves[0]["checkpoint"])["untidy_disks"] == []  # while it runs
        ledger.wait_rounds(1, alive=guest.check_alive)
        guest.kill()
    runs_clean(vmsieve, tmp_path, saves[1]["checkpoint"], "copy")
    assert vmsieve.json("rm", saves[1]["checkpoint"])["untidy_disks"] == []
    for path in paths:
        check_image(path, leaks=True)
        assert "snapshots" not in json.loads(subprocess.run(
            ["qemu-img", "info", "--output=json", str(path)], capture_output=True, text=True, check=True).stdout)


def test_a_snapshot_in_an_overlay_keeps_it(vmsieve, tmp_path, folder):
    """Ways may be mixed: what the second checkpoint has is inside a file that the first one made."""
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        first = vmsieve.save(guest.qmp_path)
        ledger.wait_rounds(1, alive=guest.check_alive)
        second = vmsieve.save(guest.qmp_path, "--disk", "internal")
        ledger.wait_rounds(1, alive=guest.check_alive)
        report = vmsieve.json("rm", first["checkpoint"])
        assert second["checkpoint"] in report["untidy_disks"][0]["reason"]
        runs_clean(vmsieve, tmp_path, second["checkpoint"], "second")
        assert vmsieve.json("rm", second["checkpoint"])["untidy_disks"] == []
        vmsieve.json("disk", "tidy")
        assert files_in(folder) == {"a.qcow2"}
        ledger.wait_rounds(1, alive=guest.check_alive)


def test_copies_in_the_store_need_no_image(vmsieve, tmp_path, folder):
    paths = [image(folder / "a.qcow2"), image(folder / "b.raw", form="raw")]
    with guest_with(paths, folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path, "--disk", "copy")
        assert saved["warnings"] == []
        assert [disk["object"] for disk in saved["disks"]["disks"]] == ["disk-0", "disk-1"]
        ledger.wait_rounds(2, alive=guest.check_alive)
        assert files_in(folder) == {"a.qcow2", "b.raw"}
        assert not [node for node in monitor(guest, "query-named-block-nodes", flat=True)
                    if node["node-name"].startswith("vmsieve")]
        guest.kill()
    vmsieve.run("verify", saved["checkpoint"])
    for path in paths:
        path.unlink()
    for number in range(2):
        runs_clean(vmsieve, tmp_path, saved["checkpoint"], f"copy{number}")
    with open(vmsieve.store / "checkpoints" / saved["checkpoint"] / "disk-1", "r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    assert "disk-1" in vmsieve.fails("verify", saved["checkpoint"]).stderr
    vmsieve.run("rm", saved["checkpoint"])
    assert not list((vmsieve.store / "checkpoints").iterdir())


@pytest.mark.parametrize("mode", [[], ["--eager"], ["--clone", "2"]])
def test_a_damaged_copy_is_found_before_a_guest_runs(vmsieve, folder, mode):
    path = image(folder / "a.qcow2")
    with firmware_with(path) as guest:
        checkpoint = vmsieve.save(guest.qmp_path, "--disk", "copy")["checkpoint"]
        guest.kill()
    copy = vmsieve.store / "checkpoints" / checkpoint / "disk-0"
    for offset in (copy.stat().st_size // 2, 0):
        with open(copy, "r+b") as file:
            file.seek(offset)
            right = file.read(4)
            file.seek(offset)
            file.write(bytes(byte ^ 0xff for byte in right))
        failed = vmsieve.fails("restore", checkpoint, *mode)
        assert failed.code == 6 and "disk-0" in failed.stderr and "checksum" in failed.stderr
        assert files_in(folder) == {"a.qcow2"}
        with open(copy, "r+b") as file:
            file.seek(offset)
            file.write(right)


def test_a_copy_stays_as_long_as_a_restored_guest_has_it(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        checkpoint = vmsieve.save(guest.qmp_path, "--disk", "copy")["checkpoint"]
    disk = vmsieve.restore(checkpoint, tmp_path / "second")["disks"][0]
    Ledger(Serial(tmp_path / "second")).wait_rounds(1)
    vmsieve.kill_restored()
    assert disk in vmsieve.json("rm", checkpoint)["untidy_disks"][0]["reason"]
    check_file_system(pathlib.Path(disk), tmp_path)
    os.unlink(disk)
    assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
    assert not list((vmsieve.store / "checkpoints").iterdir())


def test_nothing_is_merged_into_an_image_that_has_moved_on(vmsieve, tmp_path, folder):
    """As when the VM was started from its old image all the same."""
    path = image(folder / "a.raw", form="raw")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path)
        ledger.wait_rounds(1, alive=guest.check_alive)
    with open(path, "r+b") as file:
        file.seek(40 << 20)
        file.write(b"later")
    before = path.read_bytes()
    report = vmsieve.json("rm", saved["checkpoint"])
    assert "was written to since the checkpoint" in report["untidy_disks"][0]["reason"]
    assert path.read_bytes() == before and overlays_of(saved)[0].exists()


def test_clones_have_disks_of_their_own(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
    report = vmsieve.json("restore", checkpoint, "--clone", 3, "--set", f"serial=file:{tmp_path}/clone{{n}}",
                          "--qmp", f"{tmp_path}/qmp{{n}}")
    vmsieve.pids += [clone["pid"] for clone in report["clones"]]
    disks = [clone["disks"][0] for clone in report["clones"]]
    assert len(set(disks)) == 3
    for number in (1, 2, 3):
        Ledger(Serial(tmp_path / f"clone{number}")).wait_rounds(3)
    vmsieve.kill_restored()
    for disk in disks:
        check_image(disk, leaks=True)
        check_file_system(pathlib.Path(disk), tmp_path).unlink()
    # What a temporary restore writes is gone with it.
    restored = runs_clean(vmsieve, tmp_path, checkpoint, "temporary")
    assert not os.path.exists(restored["disks"][0])


def test_a_machine_that_qemu_cannot_save_keeps_its_disks(vmsieve, tmp_path, folder):
    """QEMU migrates no NVMe controller (hw/nvme/ctrl.c, nvme_vmstate: unmigratable)."""
    path = image(folder / "a.qcow2")
    with guest_with([path], model="nvme", folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        failed = vmsieve.fails("save", guest.qmp_path)
        assert failed.code == 8 and "nvme" in failed.stderr
        ledger.wait_rounds(1, alive=guest.check_alive)
    assert files_in(folder) == {"a.qcow2"}


def test_disks_that_have_no_point_in_time(vmsieve, tmp_path, folder):
    raw, fixed = image(folder / "a.raw", form="raw", file_system=False), image(folder / "b.raw", form="raw")
    throttled = ["-object", "throttle-group,id=slow,x-iops-total=1000", "-blockdev",
                 f"driver=throttle,throttle-group=slow,node-name=t,file.driver=raw,file.file.driver=file,file.file.filename={raw}",
                 "-device", "virtio-blk-pci,drive=t",
                 "-drive", f"if=virtio,readonly=on,format=raw,file={fixed}"]
    with Guest(kernel=None, mem_mib=128, smp=1, extra=throttled) as guest:
        failed = vmsieve.fails("save", guest.qmp_path)
        assert failed.code == 7
        assert str(raw) in failed.stderr and "throttle" in failed.stderr and "--disk none" in failed.stderr
        assert is_running(guest)
        saved = vmsieve.save(guest.qmp_path, "--disk", "none")
        assert len(saved["warnings"]) == 1 and "not part of this checkpoint" in saved["warnings"][0]
        assert "disks" not in saved
    part = ["-drive", f"if=virtio,file={raw},format=raw,offset=1048576,size=1048576"]
    with Guest(kernel=None, mem_mib=128, smp=1, extra=part) as guest:
        assert "part of its file" in vmsieve.fails("save", guest.qmp_path).stderr
    assert files_in(folder) == {"a.raw", "b.raw"}
    assert [entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]] == [saved["checkpoint"]]


def test_a_refused_disk_is_told_what_would_work(vmsieve, tmp_path, folder):
    raw = image(folder / "a.raw", form="raw", file_system=False)
    with Guest(kernel=None, mem_mib=128, smp=1, extra=["-drive", f"file={raw},format=raw,if=virtio"]) as guest:
        failed = vmsieve.fails("save", guest.qmp_path, "--disk", "internal")
        assert "--disk snapshot, or --disk copy" in failed.stderr and "none" not in failed.stderr
        away = raw.rename(folder / "away")
        failed = vmsieve.fails("save", guest.qmp_path)
        assert str(raw) in failed.stderr and "put it back" in failed.stderr and "none" not in failed.stderr
        away.rename(raw)
        saved = vmsieve.save(guest.qmp_path)
    restored = vmsieve.restore(saved["checkpoint"], tmp_path / "serial", "--disk-temporary")
    failed = vmsieve.fails("save", restored["qmp"])
    assert "--disk-temporary" in failed.stderr and "save with --disk copy" in failed.stderr
    vmsieve.save(restored["qmp"], "--disk", "copy")
    vmsieve.kill_restored()


@pytest.mark.parametrize("way", ["copy", "internal", "none"])
def test_a_folder_is_for_new_files_only(vmsieve, folder, way):
    failed = vmsieve.fails("save", "nobody", "--disk", way, "--disk-folder", folder)
    assert failed.code == 2 and "--disk-folder" in failed.stderr


def test_read_only_disks_are_left_alone(vmsieve, tmp_path, folder):
    path, fixed = image(folder / "a.qcow2"), image(folder / "fixed.raw", form="raw")
    extra = ["-drive", f"if=none,id=fixed,readonly=on,format=raw,file={fixed}", "-device", "virtio-blk-pci,drive=fixed"]
    with guest_with([path], extra=extra, folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path)
        assert images_of(saved) == [path]
        runs_clean(vmsieve, tmp_path, saved["checkpoint"], "copy")
    assert files_in(folder) == {"a.qcow2", "fixed.raw", overlays_of(saved)[0].name}


def test_a_folder_of_ones_choice(vmsieve, tmp_path, folder):
    path, elsewhere = image(folder / "a.qcow2"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path, "--disk-folder", elsewhere)
        serial = tmp_path / "second"
        restored = vmsieve.restore(saved["checkpoint"], serial, "--disk-folder", elsewhere)
        Ledger(Serial(serial)).wait_rounds(1)
        assert files_in(folder) == {"a.qcow2"} and len(files_in(elsewhere)) == 2
        assert vmsieve.json("show", saved["checkpoint"])["disks"]["children"] == restored["disks"]
        # Out of sight of the image, and known all the same.
        vmsieve.kill_restored()
        report = vmsieve.json("rm", saved["checkpoint"])
        assert restored["disks"][0] in report["untidy_disks"][0]["reason"]
        os.unlink(restored["disks"][0])
        assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
        assert files_in(elsewhere) == set()
        ledger.wait_rounds(1, alive=guest.check_alive)


def test_flatten_makes_a_vm_independent(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = [vmsieve.save(guest.qmp_path), vmsieve.save(guest.qmp_path)]
        flat = vmsieve.json("disk", "flatten", guest.qmp_path)["disks"]
        last = overlays_of(saves[1])[0]
        assert [(disk["file"], disk["images_before"]) for disk in flat] == [(str(last), 3)]
        assert chain(last) == [str(last)]
        ledger.wait_rounds(2, alive=guest.check_alive)
        for saved in saves:
            runs_clean(vmsieve, tmp_path, saved["checkpoint"], saved["checkpoint"])
        # Its command line names an image that it has no more.
        again = vmsieve.save(guest.qmp_path)
        assert images_of(again) == [last]
        ledger.wait_rounds(1, alive=guest.check_alive)
        runs_clean(vmsieve, tmp_path, again["checkpoint"], "again")
        report = vmsieve.json("rm", *(saved["checkpoint"] for saved in (*saves, again)))
        assert report["untidy_disks"] == []
        ledger.wait_rounds(2, alive=guest.check_alive)
        assert last.name in files_in(folder)
        guest.kill()
    check_image(last, leaks=True)
    check_file_system(last, tmp_path)


def test_a_watch_keeps_chains_short(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        watch = subprocess.Popen([str(BINARY), "watch", str(guest.qmp_path), "--every", "1s", "--keep", "3"],
                                 env=vmsieve.env, stdout=subprocess.DEVNULL)
        try:
            ledger.wait_rounds(25, alive=guest.check_alive)
            wait_until(lambda: len(vmsieve.json("log")["checkpoints"]) >= 3, 30, "three checkpoints")
        finally:
            watch.send_signal(signal.SIGTERM)
            assert watch.wait(60) == 0
        vmsieve.json("disk", "tidy")
        assert len(backing_files_of(guest.pid, folder)) <= 4
        assert len(files_in(folder)) <= 4
        for entry in vmsieve.json("log")["checkpoints"]:
            runs_clean(vmsieve, tmp_path, entry["checkpoint"], entry["checkpoint"])
        ledger.wait_rounds(1, alive=guest.check_alive)


def runs_clean_beside(vmsieve, tmp_path, checkpoint, other):
    """As runs_clean(), while another restored guest goes on."""
    serial = tmp_path / f"{checkpoint}.serial"
    restored = vmsieve.restore(checkpoint, serial, "--disk-temporary")
    Ledger(Serial(serial)).wait_rounds(2)
    vmsieve.kill(restored["pid"])
    assert process_exists(other["pid"])


def test_a_guest_that_takes_the_vms_place_gets_its_images_back(vmsieve, tmp_path, folder):
    paths = [image(folder / "a.qcow2"), image(folder / "b.raw", form="raw")]
    with guest_with(paths, folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path)
        ledger.wait_rounds(1, alive=guest.check_alive)
        failed = vmsieve.fails("restore", saved["checkpoint"], "--instead")
        assert failed.code == 10 and f"process {guest.pid} has {overlays_of(saved)[0]} open" in failed.stderr
        guest.kill()
    old = overlays_of(saved)
    serial = tmp_path / "second"
    back = vmsieve.restore(saved["checkpoint"], serial, "--instead")
    assert back["abandoned"] == [str(path) for path in old]
    second = Ledger(Serial(serial))
    second.wait_rounds(1)
    assert vmsieve.json("show", saved["checkpoint"])["disks"]["abandoned"] == back["abandoned"]
    again = vmsieve.save(back["qmp"])
    second.wait_rounds(1)
    # As long as the checkpoint is there it can be restored, also without taking anybody's place.
    runs_clean_beside(vmsieve, tmp_path, saved["checkpoint"], back)
    report = vmsieve.json("rm", saved["checkpoint"])
    assert report["untidy_disks"] == []
    tidied = {one["file"]: one.get("image") for one in report["tidied_disks"]}
    assert tidied == {str(path): None for path in old} | {
        disk: str(path) for disk, path in zip(back["disks"], paths)}
    assert files_in(folder) == {"a.qcow2", "b.raw", *(path.name for path in overlays_of(again))}
    runs_clean_beside(vmsieve, tmp_path, again["checkpoint"], back)
    assert vmsieve.json("rm", again["checkpoint"])["untidy_disks"] == []
    assert files_in(folder) == {"a.qcow2", "b.raw"} == backing_files_of(back["pid"], folder)
    second.wait_rounds(1)
    # What its command line names is gone; it can be saved and brought back all the same.
    third = vmsieve.save(back["qmp"])
    assert third["warnings"] == []
    vmsieve.kill_restored()
    back = vmsieve.restore(third["checkpoint"], tmp_path / "third", "--instead")
    Ledger(Serial(tmp_path / "third")).wait_rounds(2)
    vmsieve.json("rm", third["checkpoint"])
    assert files_in(folder) == {"a.qcow2", "b.raw"}
    vmsieve.kill_restored()
    for path in paths:
        check_file_system(path, tmp_path)


def dead_vm(vmsieve, tmp_path, path, ways):
    """Saved once for each of `ways`, then killed."""
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saves = []
        for way in ways:
            saves.append(vmsieve.save(guest.qmp_path, "--disk", way))
            ledger.wait_rounds(1, alive=guest.check_alive)
        guest.kill()
    return saves


@pytest.mark.parametrize("way", ["snapshot", "internal"])
def test_the_place_of_an_older_checkpoint_is_not_taken(vmsieve, tmp_path, folder, way):
    """The file that would be given up is the disk of a later one."""
    path = image(folder / "a.qcow2")
    first, later = dead_vm(vmsieve, tmp_path, path, ["snapshot", way])
    failed = vmsieve.fails("restore", first["checkpoint"], "--instead")
    assert failed.code == 7 and later["checkpoint"] in failed.stderr
    runs_clean(vmsieve, tmp_path, later["checkpoint"], "later", *(["--disk-folder", folder] if way == "internal" else []))
    # Once the later one is removed, all that the VM wrote behind the first is given up.
    vmsieve.json("rm", later["checkpoint"])
    serial = tmp_path / "second"
    back = vmsieve.restore(first["checkpoint"], serial, "--instead")
    assert back["abandoned"] == list(map(str, overlays_of(first) + (overlays_of(later) if way == "snapshot" else [])))
    Ledger(Serial(serial)).wait_rounds(1)
    assert vmsieve.json("rm", first["checkpoint"])["untidy_disks"] == []
    assert files_in(folder) == {"a.qcow2"}
    Ledger(Serial(serial)).wait_rounds(1)


def test_no_place_is_taken_while_a_record_cannot_be_read(vmsieve, tmp_path, folder):
    """It may be of a checkpoint that needs what would be given up."""
    first, later = dead_vm(vmsieve, tmp_path, image(folder / "a.qcow2"), ["snapshot", "snapshot"])
    record = vmsieve.store / "checkpoints" / first["checkpoint"] / "disks"
    right = record.read_bytes()
    record.write_bytes(right[:-1] + b"?")
    failed = vmsieve.fails("restore", later["checkpoint"], "--instead")
    assert failed.code == 6 and first["checkpoint"] in failed.stderr
    record.write_bytes(right)
    vmsieve.restore(later["checkpoint"], tmp_path / "second", "--instead")
    Ledger(Serial(tmp_path / "second")).wait_rounds(1)


def test_a_file_that_is_given_up_and_written_to_stays(vmsieve, tmp_path, folder):
    (saved,) = dead_vm(vmsieve, tmp_path, image(folder / "a.qcow2"), ["snapshot"])
    vmsieve.restore(saved["checkpoint"], tmp_path / "second", "--instead")
    old = overlays_of(saved)[0]
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 4k", str(old)], check=True, capture_output=True)
    untidy = vmsieve.json("rm", saved["checkpoint"])["untidy_disks"]
    assert any(one["file"] == str(old) and "was written to" in one["reason"] for one in untidy), untidy
    vmsieve.kill_restored()
    vmsieve.json("disk", "tidy")
    assert old.exists()
    old.unlink()
    vmsieve.json("disk", "tidy")
    assert len(files_in(folder)) == 2  # of a VM that does not run the last one stays, empty


def test_what_a_dead_vm_wrote_stays_as_it_was(vmsieve, tmp_path, folder):
    """Beside a guest that was restored, but does not take its place: whatever is removed and merged."""
    first, later = dead_vm(vmsieve, tmp_path, image(folder / "a.qcow2"), ["snapshot", "snapshot"])
    last = overlays_of(later)[0]
    before = last.read_bytes()
    vmsieve.restore(later["checkpoint"], tmp_path / "second")
    ledger = Ledger(Serial(tmp_path / "second"))
    ledger.wait_rounds(1)
    vmsieve.json("rm", first["checkpoint"])
    untidy = vmsieve.json("rm", later["checkpoint"])["untidy_disks"]
    assert any(one["file"] == str(last) and "may be removed if nobody wants that" in one["reason"] for one in untidy), untidy
    assert last.read_bytes() == before
    check_image(last, leaks=True)
    ledger.wait_rounds(1)
    last.unlink()
    assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
    ledger.wait_rounds(1)


def test_restarts_by_a_watch_do_not_make_chains_longer(vmsieve, tmp_path, folder):
    path = image(folder / "a.qcow2")
    serial = tmp_path / "again.serial"
    with guest_with([path], folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        with Watching(vmsieve, guest.qmp_path, "--every", "2s", "--keep", 2, "--restart", "--set",
                      f"serial=file:{serial}") as watch:
            pid = guest.pid
            for _ in range(4):
                saved = [watch.next("saved") for _ in range(3)]
                end_process(pid)
                restarted = watch.next("restarted")
                pid = restarted["pid"]
                assert restarted["abandoned"] == [disk["overlay"] for disk in saved[-1]["disks"]["disks"]] or \
                    restarted["checkpoint"] != saved[-1]["checkpoint"]
                time.sleep(8)  # one that ends within ten seconds is not brought back before these are over
            for _ in range(4):
                watch.next("saved")
            assert watch.end()[0] == 0
            vmsieve.json("disk", "tidy")
            assert len(backing_files_of(pid, folder)) <= 3, backing_files_of(pid, folder)
            assert len(files_in(folder)) <= 3, files_in(folder)
            Ledger(Serial(serial)).wait_rounds(1)
            for entry in vmsieve.json("log")["checkpoints"]:
                runs_clean(vmsieve, tmp_path, entry["checkpoint"], entry["checkpoint"])


# ---- death -----------------------------------------------------------------

def killed_after(vmsieve, seconds, *arguments):
    """The command, killed (SIGKILL) with all that it has started; True when it was not done before."""
    process = subprocess.Popen([str(BINARY), *map(str, arguments)], env=vmsieve.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    return was_running


def is_tidy(vmsieve, guest):
    """Nothing is left of what was not finished."""
    assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
    for node in monitor(guest, "query-named-block-nodes", flat=True):
        if node["node-name"].startswith("vmsieve-"):
            assert node["node-name"].split("-")[1] in {
                entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]}, node["node-name"]


@pytest.mark.parametrize("way", ["snapshot", "copy", "internal"])
def test_a_save_that_is_killed_leaves_the_disks_whole(vmsieve, tmp_path, folder, way):
    moments = random_moments()
    paths = [image(folder / "a.qcow2"), image(folder / "b.qcow2")]
    with guest_with(paths, folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        kept = vmsieve.save(guest.qmp_path, "--disk", way)["checkpoint"]
        for _ in range(40 if LONG else 5):
            killed_after(vmsieve, moments.uniform(0.02, 0.45), "save", guest.qmp_path, "--disk", way)
            ledger.wait_rounds(1, alive=guest.check_alive)
            assert is_running(guest)
        # One may have been done before it was killed.
        done = [entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]]
        is_tidy(vmsieve, guest)
        for checkpoint in (kept, done[-1]):
            runs_clean(vmsieve, tmp_path, checkpoint, checkpoint)
        assert vmsieve.json("rm", *done)["untidy_disks"] == []
        assert {"a.qcow2", "b.qcow2"} == files_in(folder)
        ledger.wait_rounds(2, alive=guest.check_alive)
        guest.kill()
    for path in paths:
        check_image(path, leaks=True)
        check_file_system(path, tmp_path).unlink()


def test_a_merge_that_is_killed_goes_on_next_time(vmsieve, tmp_path, folder):
    moments = random_moments()
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        for turn in range(20 if LONG else 3):
            saves = []
            for _ in range(3):
                saves.append(vmsieve.save(guest.qmp_path)["checkpoint"])
                ledger.wait_rounds(1, alive=guest.check_alive)
            victim = saves.pop(moments.randrange(3))
            for _ in range(3):
                killed_after(vmsieve, moments.uniform(0.01, 0.12), "disk" if vmsieve.json("log")["checkpoints"] == []
                             else "rm", victim)
            if victim in {entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]}:
                vmsieve.run("rm", victim)
            is_tidy(vmsieve, guest)
            for checkpoint in saves:
                runs_clean(vmsieve, tmp_path, checkpoint, f"{turn}{checkpoint}", rounds=2)
            assert vmsieve.json("rm", *saves)["untidy_disks"] == []
            assert files_in(folder) == {"a.qcow2"}
            ledger.wait_rounds(1, alive=guest.check_alive)
        guest.kill()
    check_image(path, leaks=True)
    check_file_system(path, tmp_path)


def test_a_restore_that_is_killed_leaves_the_images_as_they_are(vmsieve, tmp_path, folder):
    moments = random_moments()
    path = image(folder / "a.qcow2")
    with guest_with([path], folder=tmp_path / "guest") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        checkpoint = vmsieve.save(guest.qmp_path)["checkpoint"]
        guest.kill()
    before = path.read_bytes()
    for turn in range(30 if LONG else 6):
        killed_after(vmsieve, moments.uniform(0.01, 0.25), "restore", checkpoint, "--foreground", "--set",
                     f"serial=file:{tmp_path}/killed{turn}")
    assert path.read_bytes() == before
    # One that had all of its memory when the command was killed goes on.
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if names_image(pid, folder):
            end_process(pid)
    runs_clean(vmsieve, tmp_path, checkpoint, "copy")
    for name in files_in(folder) - {"a.qcow2"}:
        if name.count(".") > 2:  # of the restored ones, not the VM's own
            (folder / name).unlink()
    assert vmsieve.json("rm", checkpoint)["untidy_disks"] == []
    check_image(path)


def names_image(pid, folder):
    try:
        return str(folder).encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() and \
            "qemu-system" in os.readlink(f"/proc/{pid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_was_merged_is_in_the_image_before_the_overlay_goes(vmsieve, tmp_path, folder):
    """Not in QEMU's own memory, which is lost with it. Killed about when the overlay is left out of the chain."""
    moments = random_moments()
    for turn in range(20 if LONG else 2):
        path = image(folder / f"a{turn}.qcow2")
        with guest_with([path], folder=tmp_path / f"guest{turn}") as guest:
            ledger = Ledger(guest.serial)
            ledger.wait_rounds(1, alive=guest.check_alive)
            saves = [vmsieve.save(guest.qmp_path)]
            ledger.wait_rounds(3, alive=guest.check_alive)
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(1, alive=guest.check_alive)
            rows = ledger.rounds()[-1][2]
            qmp = guest.monitor
            removing = subprocess.Popen([str(BINARY), "rm", saves[0]["checkpoint"]], env=vmsieve.env,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not any(event["event"] == "JOB_STATUS_CHANGE" and event["data"]["status"] == "pending"
                          and event["data"]["id"].startswith("vmsieve-") for event in qmp.events):
                qmp.wait_event()
            time.sleep(moments.uniform(0, 0.003))
            guest.kill()
            removing.wait(60)
        vmsieve.json("disk", "tidy")
        last = overlays_of(saves[1])[0]
        assert database_in(check_file_system(last, tmp_path), tmp_path) >= rows - 1
        vmsieve.run("rm", saves[1]["checkpoint"])


def test_qemu_that_is_killed_in_a_merge_loses_nothing(vmsieve, tmp_path, folder):
    moments = random_moments()
    for turn in range(20 if LONG else 3):
        path = image(folder / f"a{turn}.qcow2")
        with guest_with([path], folder=tmp_path / f"guest{turn}") as guest:
            ledger = Ledger(guest.serial)
            ledger.wait_rounds(1, alive=guest.check_alive)
            saves = [vmsieve.save(guest.qmp_path)]
            ledger.wait_rounds(2, alive=guest.check_alive)
            saves.append(vmsieve.save(guest.qmp_path))
            ledger.wait_rounds(2, alive=guest.check_alive)
            removing = subprocess.Popen([str(BINARY), "rm", saves[0]["checkpoint"]], env=vmsieve.env,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.02, 0.1))
            guest.kill()
            removing.wait(60)
            rows = ledger.rounds()[-1][2]
        vmsieve.json("disk", "tidy")
        runs_clean(vmsieve, tmp_path, saves[1]["checkpoint"], f"copy{turn}")
        last = overlays_of(saves[1])[0]
        for disk in chain(last):
            check_image(disk, leaks=True)
        assert database_in(check_file_system(last, tmp_path), tmp_path) >= rows - 1
        assert vmsieve.json("rm", saves[1]["checkpoint"])["untidy_disks"] == []
        assert database_in(check_file_system(path, tmp_path), tmp_path) >= rows - 1
        shutil.rmtree(tmp_path / f"guest{turn}")
