# SPDX-License-Identifier: Apache-2.0
"""Other programs' answer to "which pages are free?", on QEMU's own dump of a guest."""

import mmap
import re
import struct
import subprocess

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4


def add_vmcoreinfo(dump, target):
    """Copies QEMU's ELF dump and adds what a kernel's own dump has, and other programs look for: VMCOREINFO
    as a note, and a segment that tells where the kernel's image is mapped. Returns the text of VMCOREINFO."""
    with open(dump, "rb") as source, open(target, "wb") as output:
        memory = mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ)
        header = bytearray(memory[:64])
        offset, entries = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        segments = [list(struct.unpack_from("<IIQQQQQQ", memory, offset + 56 * i)) for i in range(entries)]
        loads = [segment for segment in segments if segment[0] == PT_LOAD]
        text = _find_vmcoreinfo(memory, segments)
        notes = b"".join(memory[s[2]:s[2] + s[5]] for s in segments if s[0] == PT_NOTE)
        notes += struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text + bytes(-len(text) % 4)

        at = -(-(64 + 56 * (2 + len(loads)) + len(notes)) // PAGE) * PAGE
        shift = at - min(load[2] for load in loads)
        program_headers = [[PT_NOTE, 0, 64 + 56 * (2 + len(loads)), 0, 0, len(notes), len(notes), 0],
                           _kernel_image(loads, text.decode("ascii")), *loads]
        for segment in program_headers[1:]:
            segment[2] += shift
        struct.pack_into("<QQ", header, 32, 64, 0)
        struct.pack_into("<HHHH", header, 56, len(program_headers), 0, 0, 0)
        output.write(header)
        for segment in program_headers:
            output.write(struct.pack("<IIQQQQQQ", *segment))
        output.write(notes)
        output.seek(at)
        for begin in range(at - shift, len(memory), 1 << 24):
            output.write(memory[begin:begin + (1 << 24)])
        return text.decode("ascii")


def _kernel_image(loads, text):
    """A segment for the kernel's image: 64 MiB from _stext on, or what its RAM has."""
    begin = int(re.search(r"^SYMBOL\(_stext\)=(\w+)$", text, re.M).group(1), 16)
    base = int(re.search(r"^NUMBER\(phys_base\)=(\S+)$", text, re.M).group(1))
    physical = begin - 0xffffffff80000000 + base
    for _, flags, offset, _, address, size, _, align in loads:
        if address <= physical < address + size:
            length = min(64 << 20, address + size - physical)
            return [PT_LOAD, flags, offset + physical - address, begin, physical, length, length, align]
    raise LookupError("the kernel's image is not in the dump")


def _find_vmcoreinfo(memory, segments):
    """The first page that begins with the text: a guest that was booted once has one."""
    for kind, _, offset, _, _, size, _, _ in segments:
        if kind != PT_LOAD:
            continue
        at = memory.find(b"OSRELEASE=", offset, offset + size)
        while at >= 0:
            if (at - offset) % PAGE == 0:
                text = memory[at:at + PAGE].split(b"\0")[0]
                if b"SYMBOL(swapper_pg_dir)" in text:
                    return text
            at = memory.find(b"OSRELEASE=", at + 1, offset + size)
    raise LookupError("the dump holds no VMCOREINFO")


def free_by_makedumpfile(core, target):
    """The page frames that `makedumpfile -d 16` leaves out."""
    subprocess.run(["makedumpfile", "-d", "16", str(core), str(target)], check=True, capture_output=True,
                   timeout=300)
    with open(target, "rb") as file:
        head = file.read(PAGE)
        assert head.startswith(b"KDUMP   "), "makedumpfile wrote another format"
        # struct disk_dump_header (diskdump_mod.h): block size, sub-header and bitmaps in blocks.
        block, sub_header, bitmap = struct.unpack_from("<III", head, 428)
        file.seek((1 + sub_header) * block)
        present = int.from_bytes(file.read(bitmap * block // 2), "little")
        dumped = int.from_bytes(file.read(bitmap * block // 2), "little")
    return _set_bits(present & ~dumped)


def _set_bits(number):
    return {at * 8 + bit for at, byte in enumerate(number.to_bytes(-(-number.bit_length() // 8), "little"))
            if byte for bit in range(8) if byte >> bit & 1}


class Structures:
    """The kernel's page structures as drgn reads them from a dump, by the offsets in VMCOREINFO."""

    def __init__(self, core, text):
        import drgn  # only where it is installed
        self._text = text
        self._program = drgn.Program()
        self._program.set_core_dump(str(core))
        # With a virtual memory map, the coded address in every memory section is where it begins.
        root = self._word(self._symbol("mem_section"))
        self._memmap = self._word(root + self._number("OFFSET", "mem_section.section_mem_map")) & ~0x3f
        self._page_bytes = self._number("SIZE", "page")

    def free_by_lists(self):
        """The page frames in blocks that hang on the zones' free lists.

        vmsieve goes by the flags in struct page instead and never looks at these lists.
        """
        found = set()
        lru, lists = self._number("OFFSET", "page.lru"), self._number("LENGTH", "free_area.free_list")
        for areas in self._free_areas():
            for order in range(self._number("LENGTH", "zone.free_area")):
                for kind in range(lists):
                    head = areas + order * self._number("SIZE", "free_area") + kind * 16
                    at = self._word(head)
                    while at != head:
                        pfn, rest = divmod(at - lru - self._memmap, self._page_bytes)
                        assert rest == 0
                        found.update(range(pfn, pfn + (1 << order)))
                        at = self._word(at)
        return found

    def in_use(self, pfns):
        """Those of the page frames whose reference count is not 0."""
        offset = self._memmap + self._number("OFFSET", "page._refcount")
        return {pfn for pfn in pfns if self._word(offset + pfn * self._page_bytes, 4) != 0}

    def _free_areas(self):
        nodes = self._symbol("node_data")
        for index in range(self._number("LENGTH", "node_data")):
            node = self._word(nodes + index * 8)
            if not node:
                continue
            for zone in range(self._word(node + self._number("OFFSET", "pglist_data.nr_zones"), 4)):
                yield (node + self._number("OFFSET", "pglist_data.node_zones")
                       + zone * self._number("SIZE", "zone") + self._number("OFFSET", "zone.free_area"))

    def _word(self, address, size=8):
        return int.from_bytes(self._program.read(address, size), "little")

    def _value(self, kind, name):
        return re.search(rf"^{kind}\({re.escape(name)}\)=(\S+)$", self._text, re.M).group(1)

    def _number(self, kind, name):
        return int(self._value(kind, name))

    def _symbol(self, name):
        return int(self._value("SYMBOL", name), 16)
