# SPDX-License-Identifier: Apache-2.0
"""Moments at which a guest's memory tells something false: docs/hazards.md, each with a real guest.

At every moment looked at, free pages are either not told apart, or they are free: judged by restoring the
guest with all of them reading as 0x5a.
"""

import random
import re
import time

import pytest

from tests.conftest import LONG, hmp, is_running, monitor, need_kernel
from tests.lab import Guest, Qmp, Serial, kernel_path, lab, wait_until
from tests.lab.gdb import Gdb

BUSYBOX = "/bin/busybox"
# selfcheck makes this once everything is held: from then on the guest is ready, or nearly.
WHEN_READY = f"until [ -e /tmp/tree/link ]; do {BUSYBOX} sleep 1; done; {BUSYBOX} sleep 2"
SMALL = {"churn_mib": 200, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 8}


class Look:
    """What vmsieve says of a guest that is stopped, so that there is no other try."""

    def __init__(self, vmsieve, guest):
        assert not is_running(guest)
        report = vmsieve.json("inspect", guest.qmp_path)
        self.kernel, self.reason, self.exact = report["kernel"], report["reason"], report["exact"]
        self.find_ms = report["find_ms"]
        self.free_mib = report["free_bytes"] >> 20
        # Whatever is called free, is called so with the counters of its zone agreeing.
        assert self.exact or self.reason
        self.used = self.free_mib > 0

    def __repr__(self):
        return f"{self.kernel or 'no kernel'}: {self.free_mib} MiB free, {self.reason or 'exact'}"


def judge(vmsieve, guest, folder, *options, rounds=2):
    """Saves the stopped guest, and lets a copy run in which all that was left out reads as 0x5a."""
    saved = vmsieve.save(guest.qmp_path, "--compress", "lz4")
    serial = folder / f"judged{len(list(folder.glob('judged*')))}"
    restored = vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a", *options)
    with Qmp(restored["qmp"]) as qmp:
        qmp.execute("cont")
    Serial(serial).wait_rounds(rounds, timeout=180)
    vmsieve.kill_restored()
    vmsieve.run("rm", saved["checkpoint"])
    return saved


def let_run(guest, seconds):
    monitor(guest, "cont")
    time.sleep(seconds)
    monitor(guest, "stop")


def leave_boot_loader(guest):
    """Lets the guest run until the kernel's own code does: unpacking a kernel takes long, and nothing else
    happens meanwhile. On a stopped guest, which it leaves stopped."""
    end = time.monotonic() + 120
    while not re.search(r"RIP=ffff", hmp(guest, "info registers")):
        assert time.monotonic() < end, "the kernel does not start"
        let_run(guest, 0.02)


def walk(vmsieve, guest, folder, judged):
    """Looks at a stopped guest at MOMENTS moments, a random part of STEP seconds of running apart, later of
    more, and on until free pages were found when any are to be judged. Up to `judged` of such moments are:
    the first two after a change, then at random."""
    looks, before = [], Look(vmsieve, guest)
    fresh = 2
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    while len(looks) < MOMENTS or (judged > 0 and not before.used and len(looks) < 4 * MOMENTS):
        look = Look(vmsieve, guest)
        looks.append(look)
        print(f"{len(looks)}: {look}")
        if look.used != before.used or look.kernel != before.kernel:
            fresh = 2
        if look.used and judged > 0 and (fresh > 0 or dice.random() < 0.1):
            judged, fresh = judged - 1, fresh - 1
            print("   judged")
            judge(vmsieve, guest, folder)
        before = look
        if len(looks) % 5 == 0:
            leave_boot_loader(guest)
        let_run(guest, dice.uniform(0, STEP * (1 + len(looks) / MOMENTS)))
    return looks


BOOTS = [pytest.param("6.1", "nokaslr"),
         *[pytest.param(kernel, append, marks=pytest.mark.matrix) for kernel, append in [
             ("6.12", ""), ("6.1", ""), ("6.12", "nokaslr"), ("newest", ""), ("newest", "nokaslr"), ("5.10", "nokaslr")]]]
MOMENTS = 150 if LONG else 30
STEP = 0.08 if LONG else 0.3


@pytest.mark.parametrize("kernel, append", BOOTS)
def test_warm_reset(vmsieve, tmp_path, request, kernel, append):
    """The old kernel's VMCOREINFO, tables and page structures lie in RAM while the next one boots."""
    need_kernel(request, kernel)
    with Guest(kernel=kernel, append=append, mem_mib=512, reboots=True, selfcheck=SMALL,
               folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        assert Look(vmsieve, guest).exact
        monitor(guest, "system_reset")
        looks = walk(vmsieve, guest, tmp_path, judged=6 if LONG else 3)
        monitor(guest, "cont")
        wait_until(lambda: guest.serial.text().count("selfcheck: ready") == 2, 180, "the second boot")
        monitor(guest, "stop")
        assert Look(vmsieve, guest).exact
    assert not looks[0].used  # in the firmware


@pytest.mark.parametrize("kernel, append", BOOTS)
def test_early_boot(vmsieve, tmp_path, request, kernel, append):
    need_kernel(request, kernel)
    with Guest(kernel=kernel, append=append, mem_mib=512, extra=["-S"], selfcheck=SMALL,
               folder=tmp_path / "guest") as guest:
        looks = walk(vmsieve, guest, tmp_path, judged=6 if LONG else 2)
    assert not looks[0].used
    assert looks[-1].used


def next_kernel(kernel):
    return {"/next/vmlinuz": kernel_path(kernel), "/next/initramfs": lab("initramfs") / "initramfs.cpio"}


@pytest.mark.parametrize("first, second", [
    pytest.param("6.1", "6.12", marks=pytest.mark.matrix), pytest.param("6.12", "6.1", marks=pytest.mark.matrix),
    pytest.param("newest", "newest", marks=pytest.mark.matrix)])
def test_kexec_into_another_kernel(vmsieve, tmp_path, request, first, second):
    need_kernel(request, first)
    need_kernel(request, second)
    line = "console=ttyS0 loglevel=3 panic=-1 oops=panic" + "".join(
        f" selfcheck.{k}={v}" for k, v in SMALL.items())
    hook = f"({WHEN_READY}; /bin/hazard kexec /next/vmlinuz /next/initramfs '{line}') &"
    with Guest(kernel=first, mem_mib=768, selfcheck=SMALL, folder=tmp_path / "guest", hook=hook,
               files=next_kernel(second)) as guest:
        guest.wait_ready()
        guest.serial.wait_for("hazard: loaded", 120, guest.check_alive)
        monitor(guest, "stop")
        release = Look(vmsieve, guest).kernel
        looks = walk(vmsieve, guest, tmp_path, judged=6 if LONG else 3)
        monitor(guest, "cont")
        wait_until(lambda: guest.serial.text().count("selfcheck: ready") == 2, 180, "the second kernel")
        guest.wait_rounds(1)
        monitor(guest, "stop")
        last = Look(vmsieve, guest)
        assert last.exact
        assert first == second or last.kernel != release
        judge(vmsieve, guest, tmp_path)
    assert any(not look.used for look in looks)  # between the two


def free_runs(vmsieve, checkpoint):
    return [(run["first_pfn"], run["first_pfn"] + run["count"])
            for run in vmsieve.json("show", checkpoint, "--pages")["runs"] if run["class"] == "free"]


@pytest.mark.parametrize("smp", [1, pytest.param(2, marks=pytest.mark.matrix)])
def test_kdump_kernel(vmsieve, tmp_path, smp):
    """A crash kernel runs in its reserve: the first kernel's memory, free or not, is the dump."""
    line = ("console=ttyS0 loglevel=3 panic=-1 nr_cpus=1 reset_devices selfcheck.churn_mib=16 "
            "selfcheck.anon_mib=8 selfcheck.tmpfs_mib=4 selfcheck.cache_mib=4 selfcheck.hugetlb_mib=0")
    hook = f"""
    {BUSYBOX} grep -i crash /proc/iomem
    /bin/hazard crash-kernel /next/vmlinuz /next/initramfs '{line}'
    ({WHEN_READY}; echo c > /proc/sysrq-trigger) &
    """
    with Guest(mem_mib=768, smp=smp, append="crashkernel=256M", selfcheck=SMALL, hook=hook,
               folder=tmp_path / "guest", files=next_kernel("6.1")) as guest:
        guest.wait_ready()
        reserve = re.search(r"([0-9a-f]+)-([0-9a-f]+) : Crash kernel", guest.serial.text())
        first, last = (int(address, 16) for address in reserve.groups())
        time.sleep(2)
        monitor(guest, "stop")
        looks = walk(vmsieve, guest, tmp_path, judged=0)
        monitor(guest, "cont")
        wait_until(lambda: guest.serial.text().count("selfcheck: ready") == 2, 180, "the crash kernel")
        monitor(guest, "stop")
        look = Look(vmsieve, guest)
        print(look, looks)
        saved = judge(vmsieve, guest, tmp_path)
        if smp == 1:
            assert look.used
        again = vmsieve.save(guest.qmp_path, "--compress", "lz4")
        for begin, end in free_runs(vmsieve, again["checkpoint"]):
            assert first >> 12 <= begin and end <= (last >> 12) + 1
        assert saved["pages"]["free"] <= (last + 1 - first) >> 12


def test_vcpus_in_user_mode_under_page_table_isolation(vmsieve, tmp_path):
    hook = f"({WHEN_READY}; echo spinning; /bin/hazard spin & /bin/hazard spin) &"
    with Guest(mem_mib=768, smp=2, append="pti=on", hook=hook, selfcheck=SMALL,
               folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.serial.wait_for("spinning", 60, guest.check_alive)
        in_user_mode = exact = 0
        for _ in range(60 if LONG else 15):
            monitor(guest, "stop")
            registers = hmp(guest, "info registers -a")
            in_user_mode += "CPL=3" in registers
            look = Look(vmsieve, guest)
            exact += look.exact
            assert look.used or "CPL=3" not in registers, look
            monitor(guest, "cont")
            time.sleep(0.05)
        assert in_user_mode > 5
        assert exact > 10
        monitor(guest, "stop")
        judge(vmsieve, guest, tmp_path, rounds=5)


def test_offline_vcpu(vmsieve, tmp_path):
    hook = "echo 0 > /sys/devices/system/cpu/cpu1/online"
    with Guest(mem_mib=768, smp=2, hook=hook, selfcheck=SMALL, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        monitor(guest, "stop")
        look = Look(vmsieve, guest)
        assert look.exact, look
        judge(vmsieve, guest, tmp_path, rounds=5)


# Functions that change the allocator's lists, those of a zone and those of a CPU, where the compiler left
# them whole.
ALLOCATOR = ["__free_one_page", "rmqueue_bulk", "free_pcppages_bulk", "__rmqueue_smallest", "expand",
             "__del_page_from_free_list", "__rmqueue_pcplist", "rmqueue_pcplist", "free_unref_page_commit",
             "free_unref_page", "free_unref_page_list", "free_unref_folios"]


def step_through(vmsieve, guest, folder, gdb, name, address):
    """Looks at the guest at steps from the next call of a function on; none when there is no call soon."""
    gdb.break_at(address)
    met = gdb.run(20)
    gdb.clear(address)
    looks, steps = [], (60 if LONG else 12) if met else 0
    # Every function in the long run; else one of a zone's lists and one of a CPU's.
    judged = random.randrange(1, 12) if LONG or name in ("free_pcppages_bulk", "free_unref_page_commit") else -1
    for step in range(steps):
        look = Look(vmsieve, guest)
        looks.append(look)
        print(name, look)
        if step >= judged >= 0 and look.used:
            print("   judged")
            judged = -1
            judge(vmsieve, guest, folder, "--set", f"gdb=unix:{folder}/gdb-copy,server=on,wait=off", rounds=5)
        gdb.step(5 if LONG else 23)
    return looks


@pytest.mark.parametrize("kernel", ["6.1", pytest.param("6.12", marks=pytest.mark.matrix),
                                    pytest.param("newest", marks=pytest.mark.matrix)])
def test_stopped_inside_the_allocator(vmsieve, tmp_path, request, kernel):
    """Instruction by instruction: a zone whose lists are half changed is saved in full."""
    need_kernel(request, kernel)
    names = "|".join(ALLOCATOR)
    hook = f"{BUSYBOX} grep -E ' ({names})$' /proc/kallsyms"
    stub = tmp_path / "gdb"
    with Guest(kernel=kernel, mem_mib=512, smp=1, append="nokaslr", hook=hook, folder=tmp_path / "guest",
               selfcheck={**SMALL, "busy": 1}, extra=["-gdb", f"unix:{stub},server=on,wait=off"]) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        text = guest.serial.text()
        symbols = {name: int(address, 16) for address, name in re.findall(r"([0-9a-f]{16}) [tT] (\w+)", text)}
        assert symbols, "none of the allocator's functions is in /proc/kallsyms"
        gdb = Gdb(stub)
        looks = [look for name in sorted(symbols)
                 for look in step_through(vmsieve, guest, tmp_path, gdb, name, symbols[name])]
        gdb.detach()
        guest.wait_rounds(2)
    doubtful = [look for look in looks if not look.exact]
    print(f"{len(looks)} looks, {len(doubtful)} inside the allocator's work")
    assert doubtful
    assert any(look.exact for look in looks)


@pytest.mark.parametrize("count, kind", [
    (5000, "same"), (20, "twin"), pytest.param(20, "same", marks=pytest.mark.matrix),
    pytest.param(5000, "twin", marks=pytest.mark.matrix)])
def test_forged_vmcoreinfo(vmsieve, tmp_path, count, kind):
    """A program that fills memory with copies of VMCOREINFO costs bounded time, and is not believed."""
    with Guest(mem_mib=768, smp=2, selfcheck=SMALL, folder=tmp_path / "guest",
               hook=f"/bin/hazard forge {count} {kind} &") as guest:
        guest.wait_ready()
        guest.serial.wait_for("hazard: forged", 60, guest.check_alive)
        monitor(guest, "stop")
        started = time.monotonic()
        look = Look(vmsieve, guest)
        print(look, look.find_ms)
        assert time.monotonic() - started < 20
        if look.used:
            assert look.exact
        judge(vmsieve, guest, tmp_path, rounds=5)
