# SPDX-License-Identifier: Apache-2.0
"""QEMU's dumps of a guest's memory, to be looked at; no guest is restored from one."""

import mmap
import os
import struct

from . import host
from .way import Taken, Way

NOTE = b"VMCOREINFO\0\0OSRELEASE="


class Dump(Way):
    note = "to be looked at: not restorable"

    def __init__(self, name, title, form, turns=None):
        super().__init__(name, title)
        self.form, self.turns = form, turns

    def dump(self, subject, file):
        arguments = {"paging": False, "protocol": f"file:{file}"}
        if self.form != "elf":
            arguments["format"] = self.form
        subject.qmp.execute("dump-guest-memory", **arguments)

    def take(self, subject, place):
        self.dump(subject, place / "dump")
        return Taken()


class Makedumpfile(Dump):
    """A dump, and of it what is neither free, nor zeros, nor cache, nor user data: makedumpfile's level 31."""

    note = ("to be looked at: not restorable; what programs hold is left out. The dump itself goes in the end. Its program "
            "headers are moved before, to where makedumpfile looks for them")
    programs = ("makedumpfile",)

    def prepare(self, subject, place):
        host.need("makedumpfile")

    def take(self, subject, place):
        dump = place / "dump"
        self.dump(subject, dump)
        information = subject.folder / "vmcoreinfo"
        if not information.exists():
            information.write_bytes(vmcoreinfo(dump))
        move_program_headers(dump)
        intermediate = dump.stat().st_blocks * 512
        _, usage = host.run(subject.folder, ["makedumpfile", "-d", "31", "-i", information, dump, place / "small"])
        dump.unlink()
        return Taken([usage], {"intermediate_bytes": intermediate})


def vmcoreinfo(dump):
    """What a guest's kernel tells of itself for programs like makedumpfile, as /sys/kernel/vmcoreinfo has it."""
    with open(dump, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(NOTE)
        if at < 0:
            raise host.NotThere("the dump holds no VMCOREINFO")
        text = data[at + 12:at + 12 + 4096]
        return text[:text.find(b"\0")]


def move_program_headers(dump):
    """makedumpfile (1.7.2) takes them to follow the ELF header, where QEMU (since 7.1) has sections'."""
    HEADER, PROGRAM_HEADER = 64, 56
    dump.chmod(0o600)
    with open(dump, "r+b") as file:
        header = bytearray(file.read(HEADER))
        offset, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        programs = os.pread(file.fileno(), count * PROGRAM_HEADER, offset)
        struct.pack_into("<QQ", header, 32, HEADER, 0)
        struct.pack_into("<HH", header, 60, 0, 0)  # no sections
        os.pwrite(file.fileno(), header + programs, 0)


def dump_ways():
    return [
        Makedumpfile("dump-makedumpfile", "dump-guest-memory, then makedumpfile -d 31", "elf"),
        # Compressed in one thread: it takes as long as all others together.
        Dump("dump-kdump-zlib", "dump-guest-memory, kdump-zlib", "kdump-zlib", turns=1),
    ]
