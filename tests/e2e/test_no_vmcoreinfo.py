# SPDX-License-Identifier: Apache-2.0
"""Kernels that do not say, or not wholly, how their structures look: VMCOREINFO is taken out of the memory
of a real guest, or cut off as where it is longer than its page."""

import mmap
import re

import pytest

from tests.conftest import need_kernel
from tests.e2e.test_hazards import Look, judge, monitor
from tests.lab import Guest

SMALL = {"churn_mib": 200, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 8}
# kernel/vmcore_info.c writes it into a page of its own and, behind a header, into an ELF note.
VMCOREINFO = re.compile(rb"OSRELEASE=[\w.+-]+\n[^\0]{64,}")
# scripts/kallsyms.c: the tokens that are digits stand in a row, each with its NUL.
TOKENS = b"".join(b"%d\0" % digit for digit in range(10))


def overwrite(guest, pattern, keep):
    """Zeros all but the first `keep` bytes of what matches in the guest's memory; how often it did."""
    with open(guest.memory_path(), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        places = [match.span() for match in re.finditer(pattern, memory)]
        for begin, end in places:
            memory[min(begin + keep, end):end] = bytes(max(0, end - begin - keep))
    return len(places)


@pytest.mark.parametrize("kernel, keep", [
    pytest.param("6.1", 0), pytest.param("newest", 700),
    *[pytest.param(kernel, keep, marks=pytest.mark.matrix) for kernel, keep in [
        ("5.10", 0), ("5.10", 700), ("6.1", 700), ("6.1-rt", 0), ("6.12", 0), ("6.12", 1500),
        ("6.12-generic", 0), ("newest", 0), ("sid", 0), ("sid", 700)]]])
def test_names_and_types_make_up_for_it(vmsieve, tmp_path, request, kernel, keep):
    need_kernel(request, kernel)
    with Guest(kernel=kernel, mem_mib=512, memory="memfd", selfcheck=SMALL, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        before = Look(vmsieve, guest)
        assert before.used
        assert overwrite(guest, VMCOREINFO, keep) >= 1
        after = Look(vmsieve, guest)
        print(before, after, after.find_ms)
        assert (after.kernel, after.exact, after.free_mib) == (before.kernel, before.exact, before.free_mib)
        judge(vmsieve, guest, tmp_path)


def test_without_names_the_guest_is_saved_in_full(vmsieve, tmp_path):
    with Guest(mem_mib=512, memory="memfd", selfcheck=SMALL, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        monitor(guest, "stop")
        assert overwrite(guest, VMCOREINFO, 0) >= 1
        assert overwrite(guest, re.escape(TOKENS), 0) >= 1
        look = Look(vmsieve, guest)
        assert not look.used and not look.kernel
        assert "VMCOREINFO" in look.reason
        saved = judge(vmsieve, guest, tmp_path)
        assert saved["pages"]["free"] == 0
