#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How figures grow with a guest's memory and vCPUs, with a chain's length and with a store's size: bench/README.md."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.peers import host  # noqa: E402
from bench.peers.line_chart import line_chart  # noqa: E402
from bench.peers.plot import number  # noqa: E402
from tests.lab import Guest, end_process, wait_until  # noqa: E402

RESULTS = ROOT / "bench" / "results"
SMALL = {"churn_mib": 64, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 4}


class Store:
    """vmsieve's commands on a store of its own; each tells its time and its largest memory too."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = dict(os.environ, VMSIEVE_STORE=str(folder / "store"))

    def run(self, *arguments):
        begun = time.monotonic()
        told, usage = host.run(self.folder, [host.VMSIEVE, *map(str, arguments), "--json"], env=self.environment)
        return json.loads(told) | {"wall_ms": (time.monotonic() - begun) * 1000, "peak_mb": usage["peak_rss_bytes"] / 1e6,
                                   "cpu_s": usage["user_s"] + usage["system_s"]}

    def text_ms(self, *arguments):
        """How long a command takes that writes no JSON."""
        begun = time.monotonic()
        host.run(self.folder, [host.VMSIEVE, *arguments], env=self.environment)
        return (time.monotonic() - begun) * 1000

    def save(self, guest, *options):
        return self.run("save", guest.qmp_path, *options)

    def remove(self, saved):
        return self.run("rm", saved["checkpoint"])


def median(values):
    return statistics.median(list(values))


def medians(runs, names):
    return {name: median(run[name] for run in runs) for name in names}


SAVED = ("pause_ms", "total_ms", "stored_bytes", "peak_mb", "cpu_s")
# Parts that grow with memory itself, by the way whose part they are: member of `--json`, figure.
PARTS = {"live": (("live", "prepare_ms"), ("pause", "freeze_ms")), "paused": (("pause", "classify_ms"), ("pause", "plan_ms")),
         "incremental": (("tracking", "scan_ms"),)}


def save_ways(store, guest, rounds):
    """Medians of each way, in turns."""
    ways = {"live": ("--live", "--compress", "zstd"), "paused": ("--paused", "--compress", "zstd"), "incremental": ("--incremental",)}
    runs = {way: [] for way in ways}
    classify = []
    for _ in range(rounds):
        for way, options in ways.items():
            if way == "incremental":
                base = store.save(guest, *options)
                time.sleep(1)
            runs[way].append(store.save(guest, *options))
            classify.append(runs[way][-1]["pause"]["classify_ms"])
            if way == "incremental":
                store.run("untrack", guest.qmp_path)
            store.remove(runs[way][-1])
            if way == "incremental":
                store.remove(base)
    found = {way: medians(runs[way], SAVED) | {figure: median(run[member][figure] for run in runs[way])
                                              for member, figure in PARTS[way]} for way in ways}
    return found | {"classify_ms": median(classify)}


def restored(store, checkpoint, serial, lazy=True):
    """Until the guest runs, and until all of its memory is there: as the command tells it, and by the clock."""
    begun = time.monotonic()
    done = subprocess.run([host.VMSIEVE, "restore", checkpoint, "--lazy" if lazy else "--eager", "--wait", "--json",
                           "--set", f"serial=file:{serial}"], env=store.environment, check=True, stdout=subprocess.PIPE, text=True)
    complete_ms = (time.monotonic() - begun) * 1000  # --wait: the command ends then
    told = json.loads(done.stdout)
    end_process(told["pid"])
    wait_until(lambda: not pathlib.Path(f"/proc/{told['pid']}").exists(), 60, "the end of QEMU", interval=0.01)
    return {"ready_ms": told["ready_ms"], "complete_ms": complete_ms}


@contextlib.contextmanager
def folder_of(name):
    host.BUILD.mkdir(exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"growth-{name}-", dir=host.BUILD))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text):
    print(text, flush=True)


# ---- with the guest --------------------------------------------------------

def by_memory(options):
    """The same in use in all of them, and as much again for each GiB up to 4: half of the guest, at most 4 GiB."""
    points = []
    for mem_mib in options.sizes:
        used = min(mem_mib // 2, options.used_mib)
        load = {**SMALL, "churn_mib": mem_mib // 4, "anon_mib": used, "busy": 1}
        with folder_of("memory") as folder, Guest(mem_mib=mem_mib, smp=2, selfcheck=load, folder=folder / "guest") as guest:
            store = Store(folder)
            guest.wait_ready(timeout=1800)
            point = {"mem_mib": mem_mib, "used_mib": used, **save_ways(store, guest, options.rounds)}
            kept = store.save(guest, "--live")
            guest.wait_rounds(1, timeout=600)
            guest.kill()
            point |= medians([restored(store, kept["checkpoint"], folder / "serial") for _ in range(options.rounds)],
                             ("ready_ms", "complete_ms"))
        points.append(point)
        say(f"{mem_mib} MiB: {json.dumps(point)}")
    return points


def by_vcpus(options):
    points = []
    for vcpus in options.vcpus:
        with folder_of("vcpus") as folder, \
                Guest(mem_mib=2048, smp=vcpus, selfcheck={**SMALL, "anon_mib": 512, "busy": 1}, folder=folder / "guest") as guest:
            guest.wait_ready(timeout=1800)
            points.append({"vcpus": vcpus, **save_ways(Store(folder), guest, options.rounds)})
        say(f"{vcpus} vCPUs: {json.dumps(points[-1])}")
    return points


# ---- with what there is already --------------------------------------------

LOOKS = {"log_ms": "log, ms", "log_json_ms": "log --json, ms", "show_ms": "show, ms", "verify_ms": "verify, ms",
         "rm_ms": "rm, ms", "ready_ms": "restored: runs, ms"}


def looks(store, newest, spare, serial, rounds):
    """Of commands that look at what is there; `spare()` makes a checkpoint that is removed again."""
    runs = []
    for _ in range(rounds):
        runs.append({"log_ms": store.text_ms("log"), "log_json_ms": store.run("log")["wall_ms"],
                     "show_ms": store.run("show", newest)["wall_ms"],
                     "verify_ms": store.run("verify", newest)["wall_ms"], "rm_ms": store.remove(spare())["wall_ms"]})
        if serial:
            runs[-1] |= restored(store, newest, serial)
    return medians(runs, [name for name in LOOKS if name in runs[0]])


def by_chain(options):
    """Increments, each on the one before; the guest writes 20 MiB/s all over 64 MiB."""
    points, saved = [], []
    with folder_of("chain") as folder, \
            Guest(mem_mib=1024, smp=1, selfcheck=SMALL, hook="/bin/hazard speed 64 20 &", folder=folder / "guest") as guest:
        store = Store(folder)
        guest.wait_ready(timeout=900)
        for length in range(1, max(options.chain) + 1):
            saved.append(store.save(guest, "--incremental"))
            time.sleep(0.2)
            if length not in options.chain:
                continue
            newest = saved[-1]
            point = {"length": length, **medians(saved[-10:], SAVED),
                     **looks(store, newest["checkpoint"], lambda: store.save(guest, "--live"), folder / "serial", options.rounds)}
            points.append(point)
            say(f"chain of {length}: {json.dumps(point)}")
    return points


def by_store(options):
    """Checkpoints of many VMs would be told from those of one by their names only: one small VM stands for all."""
    points, saved = [], []
    with folder_of("store") as folder, \
            Guest(mem_mib=64, smp=1, kernel=None, folder=folder / "guest") as guest:
        store = Store(folder)
        time.sleep(2)
        for count in range(1, max(options.store) + 1):
            saved.append(store.save(guest, "--live"))
            if count not in options.store:
                continue
            point = {"checkpoints": count, **medians(saved[-10:], SAVED),
                     **looks(store, saved[-1]["checkpoint"], lambda: store.save(guest, "--live"), folder / "serial", options.rounds)}
            points.append(point)
            say(f"store of {count}: {json.dumps(point)}")
    return points


# ---- the page --------------------------------------------------------------

def write(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = ["# Growth\n", "Made by `bench/growth.py` ([how](../README.md#growth)); do not edit. Medians; raw figures in "
             "[growth.json](growth.json).\n"]
    for part, of, unit in (("memory", "mem_mib", "MiB of guest memory"), ("vcpus", "vcpus", "vCPUs")):
        if part not in results:
            continue
        points = results[part]
        lines.append(measured(results[f"{part}_at"]))
        columns = [(f"{way}: {name}", way, figure) for way in ("live", "paused", "incremental")
                   for name, figure in (("pause, ms", "pause_ms"), ("total, ms", "total_ms"), ("CPU, s", "cpu_s"))]
        restores = [(name, figure) for name, figure in (("restored: runs, ms", "ready_ms"), ("complete, ms", "complete_ms"))
                    if all(figure in point for point in points)]
        lines.append(table([unit, *(name for name, _, _ in columns), *(name for name, _ in restores)],
                           [[f"{point[of]}", *(point[way][figure] for _, way, figure in columns),
                             *(point[figure] for _, figure in restores)] for point in points]))
        parts = [(f"{way}: {figure.removesuffix('_ms')}, ms", way, figure) for way, found in PARTS.items() for _, figure in found]
        lines.append(table([unit, *(name for name, _, _ in parts)],
                           [[f"{point[of]}", *(point[way][figure] for _, way, figure in parts)] for point in points]))
        columns = [column for column in columns if column[2] != "cpu_s"]
        series = {name: [(point[of], point[way][figure]) for point in points] for name, way, figure in columns}
        if part == "memory":
            series["restored: guest runs, ms"] = [(point[of], point["ready_ms"]) for point in points]
        line_chart(folder / f"growth-{part}.svg", f"growth with {unit}", unit, "ms", series)
        lines.append(f"![growth with {unit}](growth-{part}.svg)\n")
    for part, of, unit in (("chain", "length", "checkpoints in the chain"), ("store", "checkpoints", "checkpoints in the store")):
        if part not in results:
            continue
        points = results[part]
        lines.append(measured(results[f"{part}_at"]))
        names = {"pause_ms": "save: pause, ms", "total_ms": "save: total, ms", **LOOKS}
        names = {name: head for name, head in names.items() if all(name in point for point in points)}
        lines.append(table([unit, *names.values()], [[f"{point[of]}", *(point[name] for name in names)] for point in points]))
        line_chart(folder / f"growth-{part}.svg", f"growth with {unit}", unit, "ms",
                   {name.removesuffix("_ms"): [(point[of], point[name]) for point in points] for name in names})
        lines.append(f"![growth with {unit}](growth-{part}.svg)\n")
    (folder / "growth.md").write_text("\n".join(lines), encoding="utf-8")


def measured(at):
    return f"{at['when']}, commit {at['commit']}, {at['rounds']} rounds.\n"


def table(heads, rows):
    """The last row: how much larger each is at the end than at the beginning."""
    rows = [*rows, ["last / first", *(number(last / first) if first else "" for first, last in zip(rows[0][1:], rows[-1][1:]))]]
    text = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads),
                      *("| " + " | ".join(row) + " |" for row in text)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=["memory", "vcpus", "chain", "store"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], metavar="MIB")
    parser.add_argument("--used-mib", type=int, default=4096, help="in use, at most; else half of the guest")
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--chain", type=int, nargs="+", default=[1, 3, 10, 30, 100])
    parser.add_argument("--store", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only make the page and the plots anew")
    options = parser.parse_args()
    path = options.results / "growth.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not options.page:
        for part, measure in (("memory", by_memory), ("vcpus", by_vcpus), ("chain", by_chain), ("store", by_store)):
            if options.only and part not in options.only:
                continue
            results[part] = measure(options)
            results[f"{part}_at"] = {"when": host.utc(), "machine": host.machine(), "rounds": options.rounds,
                                     "commit": host.first_line("git", "-C", ROOT, "describe", "--always", "--dirty")}
            write(results, options.results)
    write(results, options.results)


if __name__ == "__main__":
    main()
