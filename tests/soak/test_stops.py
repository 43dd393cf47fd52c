# SPDX-License-Identifier: Apache-2.0
"""Stops of busy guests at random moments.

Each is judged by the guest's own allocator: a look at a stopped guest is good when every zone's counters
agree with what was found, page by page. On a sample, programs that know nothing of vmsieve answer the same
question on QEMU's own dump of the same instant.
"""

import random
import shutil
import time

import pytest

from tests.conftest import KERNELS, LONG, MORE_KERNELS, need_kernel
from tests.lab import Guest
from tests.soak.vmcore import Structures, add_vmcoreinfo, free_by_makedumpfile

STOPS = 3000 if LONG else 80
WORKLOAD = {"busy": 1, "churn_mib": 256}


def every_kernel(default=KERNELS):
    return [pytest.param(kernel, marks=[] if kernel in default else pytest.mark.matrix)
            for kernel in KERNELS + MORE_KERNELS]


def random_moments():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("kernel", every_kernel(["6.1", "newest"]))
def test_counters_agree_at_random_stops(vmsieve, request, kernel):
    need_kernel(request, kernel)
    kernels = len(KERNELS) + len(MORE_KERNELS) if LONG else 2
    stops, moments = -(-STOPS // kernels), random_moments()
    figures, doubtful = set(), []
    with Guest(kernel=kernel, mem_mib=768, smp=4, selfcheck=WORKLOAD) as guest:
        guest.wait_ready()
        for _ in range(stops):
            guest.monitor.execute("cont")
            time.sleep(moments.uniform(0.02, 0.25))
            guest.monitor.execute("stop")
            look = vmsieve.json("inspect", guest.qmp_path)
            figures.add(look["free_bytes"])
            if not look["exact"]:
                doubtful.append(look["reason"])
        guest.monitor.execute("cont")
        guest.wait_rounds(2)
    print(f"{kernel}: {stops} stops, {len(figures)} different figures, {len(doubtful)} doubtful")
    for reason in doubtful:
        print(f"   {reason}")
    assert len(figures) > stops // 4, "the guest was not busy"
    # A stop inside the allocator's lock: rare, and told. In a real-time kernel who has the lock may be preempted.
    inside = ("the kernel counts", "malformed", "lock of the zone")
    assert all(any(words in reason for words in inside) for reason in doubtful)
    assert len(doubtful) <= 1 + stops // (4 if kernel.endswith("-rt") else 20)


def free_by_vmsieve(report):
    found = set()
    for run in report["runs"]:
        if run["class"] == "free":
            found.update(range(run["first_pfn"], run["first_pfn"] + run["count"]))
    return found


@pytest.mark.parametrize("kernel", every_kernel(["newest"]))
def test_other_programs_agree(vmsieve, request, tmp_path, kernel):
    need_kernel(request, kernel)
    pytest.importorskip("drgn")
    moments, compared, listed = random_moments(), 0, 0
    with Guest(kernel=kernel, mem_mib=384, smp=4, selfcheck={"busy": 1, "churn_mib": 200}) as guest:
        guest.wait_ready()
        for _ in range(10 if LONG else 2):
            guest.monitor.execute("cont")
            time.sleep(moments.uniform(0.05, 1))
            guest.monitor.execute("stop")
            saved = vmsieve.save(guest.qmp_path, "--omit", "none", "--compress", "lz4")
            if saved["introspection"]["reason"]:
                continue  # inside the allocator's lock, where lists and flags disagree
            buddy = free_by_vmsieve(vmsieve.json("show", saved["checkpoint"], "--pages"))
            vmsieve.run("rm", saved["checkpoint"])
            everything = free_by_vmsieve(vmsieve.json("inspect", guest.qmp_path, "--pages"))

            guest.monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/dump")
            text = add_vmcoreinfo(tmp_path / "dump", tmp_path / "core")
            (tmp_path / "dump").unlink()
            structures = Structures(tmp_path / "core", text)
            assert_same(buddy, structures.free_by_lists(), "the free lists, read by drgn")
            # makedumpfile before 1.7.7 does not know the page types of Linux 6.11 and later.
            if kernel in ("5.10", "6.1", "6.1-rt"):
                assert shutil.which("makedumpfile"), "scripts/install-deps.sh installs it"
                assert_same(buddy, free_by_makedumpfile(tmp_path / "core", tmp_path / "short"), "makedumpfile")
                (tmp_path / "short").unlink()
            # Of per-CPU lists and hugetlb pools neither program knows: but whether a page is in use.
            assert buddy <= everything
            assert not structures.in_use(everything - buddy)
            (tmp_path / "core").unlink()
            compared, listed = compared + len(buddy), listed + len(everything - buddy)
    print(f"{kernel}: {compared} pages of the buddy allocator compared, {listed} others seen to be unused")
    assert compared > 10000


def assert_same(ours, theirs, who):
    only_ours, only_theirs = sorted(ours - theirs), sorted(theirs - ours)
    assert not only_ours and not only_theirs, (
        f"{who}: {len(theirs)} free pages, vmsieve: {len(ours)}; only vmsieve has {len(only_ours)}, from "
        f"{[hex(pfn) for pfn in only_ours[:8]]}; only the other {len(only_theirs)}, from "
        f"{[hex(pfn) for pfn in only_theirs[:8]]}")
