# SPDX-License-Identifier: Apache-2.0
"""Finds selfcheck's patterns in guest memory from outside: tests/guests/pattern.h."""

import os
import struct

PAGE = 4096
STEP_HELD = 0x9e37
STEP_CHURN = 0xd1342543de82ef95
STEP_MOTION = 0xaf251af3b0f025b5

_MASK = (1 << 64) - 1


def _unmix(word):
    """x of  word = x ^ (x >> 29)."""
    return word ^ (word >> 29) ^ (word >> 58)


def step_of_page(page):
    """The step between a page's first words, which tells whose pattern it may be."""
    first, second, third = struct.unpack_from("<3Q", page)
    step = (_unmix(second) - _unmix(first)) & _MASK
    return step if (_unmix(third) - _unmix(second)) & _MASK == step else None


def find_pages(path, step, limit=None):
    """Offsets of the pages in the file at `path` that hold the pattern of `step`.

    Holes are skipped and not read: reading one through a mapping would allocate it.
    """
    found = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        for start, stop in _data(descriptor, end):
            while start < stop:
                block = os.pread(descriptor, min(stop - start, 1 << 20), start)
                for at in range(0, len(block), PAGE):
                    if step_of_page(block[at:at + 24]) == step:
                        found.append(start + at)
                        if limit and len(found) >= limit:
                            return found
                start += len(block)
    finally:
        os.close(descriptor)
    return found


def _data(descriptor, end):
    position = 0
    while position < end:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # nothing but holes from here on
            return
        stop = os.lseek(descriptor, position, os.SEEK_HOLE)
        yield position, stop
        position = stop
