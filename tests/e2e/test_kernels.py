# SPDX-License-Identifier: Apache-2.0
"""Kernels and their options: the guest is saved without its free pages, and cannot tell after the restore.

Every guest is restored twice: as users do, and with every page that was left out reading as 0x5a, which the
guest's own check of its memory survives only when none of them was needed.
"""

import dataclasses
import pathlib
import random
import re
from typing import Callable

import pytest

from tests.conftest import KERNELS, MORE_KERNELS, monitor, need_kernel
from tests.lab import Guest, Qmp, Serial, wait_until

ONLINE = """
for block in /sys/devices/system/memory/memory*; do
    [ "$(/bin/busybox cat $block/state)" = offline ] && echo online > $block/state
done
"""


def no_action(_guest):
    return ()


def plug_dimm(guest):
    """256 MiB more, which memhp_default_state=online makes the kernel use at once."""
    before = guest.serial.rounds()[-1].total_kib
    with guest.qmp() as qmp:
        qmp.execute("object-add", qom_type="memory-backend-ram", id="more", size=256 << 20)
        qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    wait_until(lambda: guest.wait_rounds(1).total_kib > before + (200 << 10), 60, "the new memory")
    # A restore goes by the command line, which does not know of what was plugged later.
    return ("-object", "memory-backend-ram,id=more,size=256M", "-device", "pc-dimm,id=dimm,memdev=more")


def plug_virtio_mem(guest):
    before = guest.serial.rounds()[-1].total_kib
    monitor(guest, "qom-set", path="/machine/peripheral/vm0", property="requested-size", value=256 << 20)
    wait_until(lambda: guest.wait_rounds(1).total_kib > before + (200 << 10), 90, "the new memory")
    return ()


def inflate(guest):
    before = guest.serial.rounds()[-1].free_kib
    monitor(guest, "balloon", value=640 << 20)
    wait_until(lambda: guest.wait_rounds(1).free_kib < before - (64 << 10), 60, "the balloon")
    return ()


@dataclasses.dataclass
class Option:
    """One way to run a guest."""

    append: str = ""
    guest: dict = dataclasses.field(default_factory=dict)  # more for Guest()
    selfcheck: dict = dataclasses.field(default_factory=dict)
    action: Callable = no_action  # what happens to it before the save; more options for the restore
    omit: str = "per-cpu,hugetlb"  # what is left out beside the buddy allocator's pages
    kinds: tuple = ("buddy", "per_cpu")  # of free pages that must be found
    free_reads: int | None = None  # the byte that free pages must be full of; None: any
    least_free: int = 256  # MiB that must be left out at least
    default: str = ""  # the kernel with which the default run tries it
    kernels: tuple = ("6.1", "6.12", "newest")  # those of the long run


FULL_POOL = {"guest": {"hook": "/bin/hazard huge-pages 220 0x77"}, "least_free": 100,
             "selfcheck": {"churn_mib": 100, "hugetlb_mib": 220}, "kinds": ("buddy", "hugetlb")}

OPTIONS = {
    "plain": Option(kernels=tuple(KERNELS + MORE_KERNELS), default="newest"),
    "nokaslr": Option("nokaslr", kernels=tuple(KERNELS + MORE_KERNELS)),
    "five_levels": Option(guest={"qemu": "10.0", "cpu": "max"}),
    "no_five_levels": Option("no5lvl nokaslr", guest={"qemu": "10.0", "cpu": "max"}),
    "numa2": Option(guest={"memory": "numa", "smp": 4}),
    "numa4": Option(guest={"memory": "numa4", "smp": 4, "mem_mib": 1100}, default="6.12"),
    "dimm": Option("memhp_default_state=online", guest={"extra": ["-m", "slots=2,maxmem=4G"]},
                   action=plug_dimm),
    "dimm_offline": Option("memhp_default_state=offline", guest={"extra": [
        "-m", "slots=2,maxmem=4G", "-object", "memory-backend-ram,id=more,size=256M",
        "-device", "pc-dimm,id=dimm,memdev=more"]}),
    "dimm_at_boot": Option(guest={"hook": ONLINE, "extra": [
        "-m", "slots=2,maxmem=4G", "-object", "memory-backend-ram,id=more,size=256M",
        "-device", "pc-dimm,id=dimm,memdev=more"]}),
    "virtio_mem": Option("memhp_default_state=online", action=plug_virtio_mem, guest={
        "drivers": True, "qemu": "10.0", "extra": [
            "-m", "maxmem=4G", "-object", "memory-backend-ram,id=vmem,size=1G",
            "-device", "virtio-mem-pci,id=vm0,memdev=vmem,requested-size=0"]},
        default="6.1", omit="per-cpu,hugetlb,offline"),
    "balloon": Option(action=inflate, least_free=128, omit="per-cpu,hugetlb,offline",
                      kinds=("buddy", "offline"),
                      guest={"drivers": True, "extra": ["-device", "virtio-balloon-pci"]}),
    "hugetlb": Option("hugetlb_free_vmemmap=on hugepages=100", least_free=100, selfcheck={"hugetlb_mib": 64},
                      kinds=("buddy", "hugetlb")),
    "init_on_free": Option("init_on_free=1", free_reads=0),
    "page_poison": Option("page_poison=1", kernels=("6.12-generic",), free_reads=0xaa),
    # Free pages of a pool are neither poisoned nor cleared, and may be the most of what is free.
    "page_poison_hugetlb": Option("page_poison=1", kernels=("6.12-generic",), free_reads=0xaa, **FULL_POOL),
    "init_on_free_hugetlb": Option("init_on_free=1", kernels=("6.12",), free_reads=0, default="6.12",
                                   **FULL_POOL),
    "mem": Option("mem=500M", least_free=100),
    "memmap": Option("memmap=64M$0x10000000 memmap=3M$0x18180000"),
    "odd_size": Option(guest={"mem_mib": 777}),
    "pti": Option("pti=on"),
    "one_vcpu": Option(guest={"smp": 1}),
    "pc_above_4g": Option(guest={"machine": "pc", "mem_mib": 4200}),
}


def cases():
    for name, option in OPTIONS.items():
        for kernel in option.kernels:
            marks = [] if kernel == option.default else [pytest.mark.matrix]
            yield pytest.param(kernel, option, id=f"{kernel}-{name}", marks=marks)


def runs_clean(vmsieve, checkpoint, serial, *options, extra=()):
    vmsieve.restore(checkpoint, serial, *options, extra=extra)
    Serial(serial).wait_rounds(5)  # four verify everything once
    vmsieve.kill_restored()


def bytes_of_free_pages(vmsieve, checkpoint, serial):
    """What pages that were left out read as in a restored guest that did not run yet."""
    runs = [run for run in vmsieve.json("show", checkpoint, "--pages")["runs"] if run["class"] == "free"]
    restored = vmsieve.restore(checkpoint, serial, "--stopped")
    found = set()
    with Qmp(restored["qmp"]) as qmp:
        for run in random.Random(1).sample(runs, min(len(runs), 40)):
            for pfn in (run["first_pfn"], run["first_pfn"] + run["count"] - 1):
                words = re.findall(r"0x([0-9a-f]{16})", qmp.human(f"xp /512gx {pfn << 12:#x}"))
                assert len(words) == 512
                found.update(bytes.fromhex("".join(words)))
    vmsieve.kill_restored()
    return found


def resident_mib(guest):
    status = pathlib.Path(f"/proc/{guest.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) >> 10


@pytest.mark.parametrize("kernel, option", cases())
def test_guest_cannot_tell(vmsieve, tmp_path, request, kernel, option):
    need_kernel(request, kernel)
    # A restore needs the guest's files: they outlive it here.
    parameters = {"mem_mib": 768, "smp": 2, "folder": tmp_path / "guest", **option.guest}
    with Guest(kernel=kernel, append=option.append, selfcheck={"churn_mib": 256, **option.selfcheck},
               **parameters) as guest:
        guest.wait_ready()
        guest.wait_rounds(2)
        extra = option.action(guest)
        saved = vmsieve.save(guest.qmp_path, "--compress", "lz4", "--omit", option.omit)
    introspection = saved["introspection"]
    assert introspection["used"], introspection["reason"]
    assert introspection["reason"] == ""
    print(introspection["free_pages"])
    for kind in option.kinds:
        assert introspection["free_pages"][kind] > 0, kind
    pages = saved["pages"]
    assert pages["free"] * 4096 > option.least_free << 20
    runs_clean(vmsieve, saved["checkpoint"], tmp_path / "copy", extra=extra)
    if option.free_reads is None:
        runs_clean(vmsieve, saved["checkpoint"], tmp_path / "filled", "--omitted-fill", "0x5a", extra=extra)
    else:
        assert bytes_of_free_pages(vmsieve, saved["checkpoint"], tmp_path / "stopped") == {option.free_reads}


@pytest.mark.parametrize("kernel", [
    pytest.param(kernel, marks=[] if kernel == "newest" else pytest.mark.matrix) for kernel in KERNELS + MORE_KERNELS])
def test_what_was_freed_is_left_out(vmsieve, request, kernel):
    """Of a guest that has just freed 2 GiB, 99 % of what it calls MemFree at least."""
    need_kernel(request, kernel)
    with Guest(kernel=kernel, mem_mib=3072, smp=2, selfcheck={"churn_mib": 2048}) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = vmsieve.save(guest.qmp_path, "--compress", "lz4")
        free_kib = min(guest.serial.rounds()[-1].free_kib, guest.wait_rounds(1).free_kib)
        print(saved["pages"]["free"] * 4 / free_kib, saved["introspection"]["free_pages"])
        assert saved["pages"]["free"] * 4 >= 0.99 * free_kib


@pytest.mark.matrix
@pytest.mark.parametrize("kernel", ["6.12"])
def test_a_look_at_a_large_guest_makes_none_of_its_memory_resident(vmsieve, tmp_path, kernel):
    """64 GiB, of which little was ever touched: neither `inspect` nor `save` touches more of it."""
    with Guest(kernel=kernel, mem_mib=64 << 10, memory="unreserved", selfcheck={"churn_mib": 256},
               folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        monitor(guest, "stop")
        before = resident_mib(guest)
        assert before < 8 << 10
        inspected = vmsieve.json("inspect", guest.qmp_path)
        assert inspected["exact"] and inspected["free_bytes"] > 60 << 30
        saved = vmsieve.save(guest.qmp_path, "--compress", "lz4")
        assert saved["introspection"]["used"], saved["introspection"]["reason"]
        assert resident_mib(guest) < before + 64
    restored = vmsieve.restore(saved["checkpoint"], tmp_path / "copy")
    with Qmp(restored["qmp"]) as qmp:
        qmp.execute("cont")
    Serial(tmp_path / "copy").wait_rounds(5)
