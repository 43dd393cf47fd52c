#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tracking and a checkpoint each second cost a guest, and what an increment costs: bench/README.md."""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab import Guest  # noqa: E402

VMSIEVE = ROOT / "build" / "release" / "vmsieve"
SPEED = re.compile(r"hazard: speed (\d+)")
PAGE = 4096


class Bench:
    """A guest at work, and the commands that are measured on it."""

    def __init__(self, guest, store):
        self.guest, self.store = guest, store
        self.env = dict(os.environ, VMSIEVE_STORE=str(store))

    def run(self, *arguments):
        return subprocess.run([VMSIEVE, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True,
                              env=self.env).stdout

    def save(self, *options, compress="lz4"):
        return json.loads(self.run("save", self.guest.qmp_path, "--json", "--compress", compress, *options))

    def forget(self):
        self.run("untrack", self.guest.qmp_path)
        for entry in json.loads(self.run("log", "--json"))["checkpoints"]:
            self.run("rm", entry["checkpoint"])

    def speeds(self):
        return [int(found) for found in SPEED.findall(self.guest.serial.text())]

    def speed_during(self, seconds, work=None):
        """The median of what the guest tells each second, and what `work` returned, called again and again."""
        before = len(self.speeds())
        end, results = time.monotonic() + seconds, []
        while time.monotonic() < end:
            if work:
                results.append(work())
            else:
                time.sleep(0.1)
        told = self.speeds()[before + 1:]
        return statistics.median(told), results


def each_second(bench):
    def work():
        started = time.monotonic()
        saved = bench.save("--incremental")
        time.sleep(max(0, 1 - (time.monotonic() - started)))
        return saved
    return work


def measure_speed(title, hook, options):
    """Rounds of all ways in turn, so that what disturbs the machine disturbs all of them."""
    ways = {"alone": [], "tracked": [], "second": [], "live": []}
    increments = []
    with Guest(mem_mib=2048, smp=1, selfcheck={"busy": 0, "churn_mib": 64}, hook=f"{hook} &") as guest, \
            tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        bench = Bench(guest, pathlib.Path(folder) / "store")
        guest.serial.wait_for(SPEED.pattern, 300)
        guest.wait_ready(timeout=900)
        for _ in range(options.rounds):
            ways["alone"].append(bench.speed_during(options.seconds)[0])
            bench.save("--incremental")
            time.sleep(1)  # what is written for the first time, is
            ways["tracked"].append(bench.speed_during(options.seconds)[0])
            speed, saved = bench.speed_during(options.seconds, each_second(bench))
            ways["second"].append(speed)
            increments += saved[1:]
            bench.forget()
            ways["live"].append(bench.speed_during(options.seconds, lambda: bench.save("--live"))[0])
            bench.forget()
    ratios = {way: statistics.median(b / a for a, b in zip(ways["alone"], ways[way])) for way in ways}
    pauses = [saved["pause_ms"] for saved in increments]
    print(f"| {title} | {statistics.median(ways['alone']):.0f} | "
          + " | ".join(f"{100 * (ratios[way] - 1):+.1f} %" for way in ("tracked", "second", "live"))
          + f" | {statistics.median(pauses):.1f} | {max(pauses):.1f} "
          f"| {statistics.median(s['stored_bytes'] for s in increments) / 2**20:.1f} |", flush=True)


def dump(guest, path):
    guest.monitor.execute("pmemsave", val=0, size=guest.mem_mib << 20, filename=str(path))


def free_pages(bench, checkpoint):
    shown = json.loads(bench.run("show", checkpoint, "--pages", "--json"))
    free = bytearray(1 << 26)
    for run in shown["runs"]:
        if run["class"] == "free":
            free[run["first_pfn"]:run["first_pfn"] + run["count"]] = b"\1" * run["count"]
    return free


def changed_pages(before, after, free):
    """Pages of two dumps that differ and are not free."""
    changed = 0
    with open(before, "rb") as a, open(after, "rb") as b:
        page = 0
        while chunk := a.read(PAGE):
            changed += chunk != b.read(PAGE) and not free[page]
            page += 1
    return changed


def measure_size(mib, options):
    """An increment beside the pages that differ between two dumps of a guest that stands still for them."""
    # Most of its memory was used once, so that the host has pages to ask about.
    with Guest(mem_mib=options.mem_mib, smp=1, selfcheck={"busy": 0, "churn_mib": options.mem_mib // 2},
               hook=f"/bin/hazard dirty {mib} {4 * mib} &") as guest, \
            tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        folder = pathlib.Path(folder)
        bench = Bench(guest, folder / "store")
        guest.wait_ready(timeout=900)
        qmp = guest.monitor
        ratios, times, scans = [], [], []
        for _ in range(options.rounds):
            qmp.execute("stop")
            bench.save("--incremental", compress="none")
            dump(guest, folder / "before")
            qmp.execute("cont")
            time.sleep(0.6)
            qmp.execute("stop")
            saved = bench.save("--incremental", compress="none")
            dump(guest, folder / "after")
            qmp.execute("cont")
            changed = changed_pages(folder / "before", folder / "after", free_pages(bench, saved["checkpoint"])) * PAGE
            ratios.append(saved["stored_bytes"] / changed)
            times.append(saved["total_ms"])
            scans.append(saved["tracking"]["scan_ms"] / (guest.mem_mib / 1024))
            last = changed
        print(f"| {mib} MiB | {last / 2**20:.1f} | {statistics.median(ratios):.3f} | {statistics.median(times):.0f} "
              f"| {statistics.median(scans):.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each way in each round")
    parser.add_argument("--rate", type=int, action="append", help="MiB/s that a guest writes; 5, 20, 80 unless given")
    parser.add_argument("--mem-mib", type=int, default=1024, help="of the guests whose increments are measured")
    parser.add_argument("--only", choices=["sizes", "speeds", "compile"])
    options = parser.parse_args()
    if options.only in (None, "sizes"):
        measure_sizes(options)
    if options.only != "sizes":
        measure_speeds(options)


def measure_sizes(options):
    print("| written over and over | changed and in use, MiB | stored / changed | total ms | scan, ms/GiB |\n"
          "|---|---|---|---|---|")
    for mib in (4, 16, 64, 256):
        measure_size(mib, options)


def measure_speeds(options):
    print("\n| guest | alone, 1/s | tracked | and a checkpoint each second | full live saves without a break "
          "| pause of an increment, median ms | worst | stored, MiB |\n|---|---|---|---|---|---|---|---|")
    if options.only != "compile":
        for rate in options.rate or [5, 20, 80]:
            measure_speed(f"computes and writes {rate} MiB/s", f"/bin/hazard speed 256 {rate}", options)
        measure_speed("writes only", "/bin/hazard speed 256 0", options)
    measure_speed("short processes (as a compiler's)", "/bin/hazard compile", options)


if __name__ == "__main__":
    main()
