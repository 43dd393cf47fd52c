# SPDX-License-Identifier: Apache-2.0
"""What the guest's memory is used for: `inspect` and `show --memory` against the guest's own account."""

import re

import pytest

from tests.conftest import KERNELS, MORE_KERNELS, monitor, need_kernel
from tests.lab import Guest

# Some of everything, then silence: processes with memory of their own, tmpfs, a page cache, many small
# objects. stat_refresh makes the kernel add up its counters, which each CPU keeps apart otherwise. From its
# account on, the shell itself does all there is to do, and waits for a pipe that nobody opens: a process more
# or less is 28 KiB of page tables.
HOOK = """
cd /tmp
/bin/busybox dd if=/dev/urandom of=/tmp/shared bs=1M count=48 2>/dev/null
/bin/busybox dd if=/dev/urandom of=/cache/cached bs=1M count=32 2>/dev/null
/bin/busybox awk 'BEGIN { s = sprintf("%40000000s", ""); system("/bin/busybox sleep 100000") }' &
i=0
while [ $i -lt 60 ]; do /bin/busybox sleep 100000 & i=$((i + 1)); done
/bin/busybox mkdir /tmp/many
i=0
while [ $i -lt 3000 ]; do : > /tmp/many/$i; i=$((i + 1)); done
/bin/busybox mkfifo /tmp/never
/bin/busybox sleep 4
echo 1 > /proc/sys/vm/stat_refresh
while read -r line; do echo "$line"; done < /proc/meminfo
echo settled
read -r line < /tmp/never
"""


def meminfo(text):
    return {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def every_kernel(default):
    return [pytest.param(kernel, marks=[] if kernel in default else pytest.mark.matrix)
            for kernel in KERNELS + MORE_KERNELS]


@pytest.mark.parametrize("kernel", every_kernel(["6.1", "newest"]))
def test_classes_agree_with_the_guest(vmsieve, tmp_path, request, kernel):
    need_kernel(request, kernel)
    with Guest(kernel=kernel, mem_mib=512, smp=2, hook=HOOK) as guest:
        guest.serial.wait_for("settled", 180, guest.check_alive)
        monitor(guest, "stop")
        seen = vmsieve.json("inspect", guest.qmp_path, "--pages", "--svg", tmp_path / "map.svg", "--png",
                            tmp_path / "map.png")
        saved = vmsieve.save(guest.qmp_path)
        own = meminfo(guest.serial.text())
    assert seen["exact"], seen["reason"]
    classes = seen["classes"]

    # Every page of RAM has one class.
    assert sum(classes.values()) == seen["total_bytes"]
    by_run = {}
    end = 0
    for run in seen["runs"]:
        assert run["first_pfn"] >= end
        end = run["first_pfn"] + run["count"]
        by_run[run["class"]] = by_run.get(run["class"], 0) + run["count"] * 4096
    by_run.pop("other", None)
    assert by_run == {name: count for name, count in classes.items() if count}

    cache = classes["cache-clean"] + classes["cache-dirty"] + classes["shared"] - seen["buffers_bytes"]
    ours = {
        "MemFree": seen["free_pages"]["buddy"] * 4096,
        "AnonPages": classes["anonymous"],
        "Cached": cache,
        "Slab": classes["slab"],
        "PageTables": classes["page-tables"],
        "Shmem": classes["shared"],
    }
    print({name: (own[name] >> 10, value >> 10) for name, value in ours.items()})
    for name, value in ours.items():
        assert abs(value - own[name]) <= 0.02 * own[name], f"{name}: {value >> 10} KiB, the guest says {own[name] >> 10}"

    # Who uses it.
    largest = seen["processes"][0]
    assert largest["name"] == "busybox" and largest["anonymous_bytes"] > 38_000_000
    assert seen["process_count"] >= 62
    files = {file["name"]: file for file in seen["files"]}
    assert files["tmpfs:/shared"]["bytes"] == 48 << 20 and files["tmpfs:/shared"]["shared"]
    assert files["ramfs:/cached"]["bytes"] == 32 << 20 and files["ramfs:/cached"]["dirty_bytes"] == 32 << 20

    # The pictures are there, and the one in text names what there is.
    picture = (tmp_path / "map.svg").read_text(encoding="ascii")
    for word in ("anonymous", "shared memory", "page tables", "node 0 DMA32", "one cell is"):
        assert word in picture, word
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    # A checkpoint shows the same; only what was free and not left out may differ.
    shown = vmsieve.json("show", saved["checkpoint"], "--memory")["memory"]
    assert shown["classes"] == classes
    assert shown["files"] == seen["files"] and shown["processes"] == seen["processes"]


def test_a_look_with_a_pause_says_so_and_the_guest_runs_on(vmsieve):
    with Guest(mem_mib=512, smp=2, selfcheck={"busy": 1, "churn_mib": 128}) as guest:
        guest.wait_ready()
        seen = vmsieve.json("inspect", guest.qmp_path, "--pause")
        assert seen["paused"] and seen["pause_ms"] > 0 and seen["running"]
        assert sum(seen["classes"].values()) == seen["total_bytes"]
        assert monitor(guest, "query-status")["running"]
        guest.wait_rounds(2)
        assert not vmsieve.json("inspect", guest.qmp_path)["paused"]
