# SPDX-License-Identifier: Apache-2.0
"""Guests that write to disks and remember what they wrote (tests/guests/ledger)."""

import json
import re
import subprocess

from .guest import Guest
from .host import wait_until

ROUND = re.compile(r"ledger: round (\d+) ok records=(\d+) rows=(\d+)")
FAIL = re.compile(r"(?:ledger|disks): FAIL.*|.*I/O error.*|.*EXT4-fs error.*")
SMALL = {"churn_mib": 64, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 4, "procs": 2}

# Every disk mounted as /NAME.
MOUNT = """
for turn in 1 2 3 4; do
    for driver in /drivers/*.ko; do /bin/busybox insmod $driver 2> /dev/null; done
done
folders=
for disk in {disks}; do
    for wait in 1 2 3 4 5 6 7 8 9; do [ -b /dev/$disk ] || /bin/busybox sleep 1; done
    /bin/busybox mkdir /$disk
    /bin/busybox mount -t ext4 /dev/$disk /$disk || echo "disks: FAIL no file system on $disk"
    folders="$folders /$disk"
    /bin/busybox rm /dev/$disk  # selfcheck would watch that it stays as it is
done
"""
HOOK = MOUNT + "/bin/ledger $folders &\n"

MODELS = {
    "virtio-blk": ("virtio-blk-pci,drive={drive}", "vd"),
    "virtio-scsi": ("scsi-hd,drive={drive},bus=scsi0.0", "sd"),
    "ide": ("ide-hd,drive={drive},bus=ide.{number}", "sd"),
    "nvme": ("nvme,drive={drive},serial=disk{number}", "nvme"),
}


def image(path, size_mib=48, form="qcow2", file_system=True):
    """A new image with an empty ext4 file system over all of it; its path."""
    raw = path.with_suffix(".made") if form != "raw" else path
    with open(raw, "wb") as file:
        file.truncate(size_mib << 20)
    if file_system:
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-J", "size=4", "-E", "lazy_itable_init=0", str(raw)],
                       check=True)
    if form != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, str(raw), str(path)], check=True)
        raw.unlink()
    return path


def options(images, model="virtio-blk", way="drive", cache="writeback"):
    """QEMU options for the disks, and their names in the guest. `way`: how they are given to QEMU."""
    out = ["-device", "virtio-scsi-pci,id=scsi0"] if model == "virtio-scsi" else []
    device, prefix = MODELS[model]
    names = []
    for number, path in enumerate(images):
        form = "raw" if path.suffix == ".raw" else "qcow2"
        drive = f"disk{number}"
        direct = "on" if cache == "none" else "off"
        if way == "drive":
            out += ["-drive", f"if=none,id={drive},file={path},format={form},cache={cache}"]
        elif way == "blockdev":
            out += ["-blockdev", json.dumps({"driver": "file", "node-name": f"{drive}-file", "filename": str(path),
                                             "cache": {"direct": cache == "none"}}),
                    "-blockdev", f"driver={form},node-name={drive},file={drive}-file,cache.direct={direct}"]
        elif way == "nested":
            out += ["-blockdev", f"driver={form},node-name={drive},file.driver=file,file.filename={path},"
                                 f"cache.direct={direct},file.cache.direct={direct}"]
        elif way == "bare":  # no node of the format over the file
            assert form == "raw"
            out += ["-blockdev", f"driver=file,node-name={drive},filename={path},cache.direct={direct}"]
        else:
            raise ValueError(way)
        out += ["-device", device.format(drive=drive, number=number)]
        names.append(f"nvme{number}n1" if prefix == "nvme" else f"{prefix}{'abcdefgh'[number]}")
    return out, names


def guest_with(images, model="virtio-blk", way="drive", cache="writeback", extra=(), hook="", **more):
    """A Guest whose ledger is on these images."""
    disk_options, names = options(images, model, way, cache)
    parameters = {"mem_mib": 256, "smp": 2, "drivers": True, "selfcheck": SMALL, **more}
    return Guest(hook=HOOK.format(disks=" ".join(names)) + hook, extra=[*disk_options, *extra], **parameters)


class Ledger:
    """What a guest's ledger says on its console."""

    def __init__(self, serial):
        self.serial = serial

    def rounds(self):
        return [tuple(map(int, found.groups())) for found in ROUND.finditer(self.serial.text())]

    def check(self, alive=None):
        if alive:
            alive()
        self.serial.check()
        failure = FAIL.search(self.serial.text())
        assert not failure, f"{failure.group(0)}\n" + "\n".join(self.serial.text().splitlines()[-30:])

    def wait_rounds(self, count, timeout=120, alive=None):
        """Until `count` more rounds have passed; the last one."""
        before = len(self.rounds())

        def passed():
            self.check(alive)
            return len(self.rounds()) >= before + count
        wait_until(passed, timeout, f"{count} further rounds of the ledger")
        return self.rounds()[-1]


def check_image(path, leaks=False):
    """QEMU's own check of an image's structure. `leaks`: one whose QEMU was killed may have clusters that
    nothing refers to."""
    checked = subprocess.run(["qemu-img", "check", "-q", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode in ((0, 3) if leaks else (0,)), checked.stdout + checked.stderr


def check_file_system(path, folder):
    """The file system in an image is clean once its journal is replayed. The image is only read."""
    copy = folder / f"{path.name}.copy"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(path), str(copy)], check=True)
    subprocess.run(["e2fsck", "-E", "journal_only", "-y", str(copy)], check=False, capture_output=True)
    checked = subprocess.run(["e2fsck", "-f", "-n", str(copy)], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return copy


def chain(path):
    """The files of an image's chain, the topmost first."""
    told = subprocess.run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)],
                          capture_output=True, text=True, check=True)
    return [entry["filename"] for entry in json.loads(told.stdout)]
