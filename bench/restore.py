#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How soon a restored guest answers, and how fast its memory comes in, beside QEMU's own ways: bench/README.md."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.peers import migration  # noqa: E402
from bench.peers.host import VMSIEVE  # noqa: E402
from bench.peers.kinds import ANSWER  # noqa: E402
from bench.peers.restart import PATIENCE, Restart, answer_port  # noqa: E402
from tests.lab import Guest  # noqa: E402


class Bench:
    """A guest that everybody saves at the same instant."""

    def __init__(self, guest, folder):
        self.guest = guest
        self.store = folder / "store"

    def save(self, compression):
        result = subprocess.run([VMSIEVE, "save", self.guest.qmp_path, "--paused", "--compress", compression, "--json"],
                                check=True, stdout=subprocess.PIPE, text=True,
                                env=dict(os.environ, VMSIEVE_STORE=str(self.store)))
        return json.loads(result.stdout)

    def migrate(self, uri, *capabilities):
        """The stopped guest's memory and state, by QEMU."""
        with migration.settings(self.guest.monitor, capabilities):
            migration.run(self.guest.monitor, uri, PATIENCE)


def describe(name, values, reference, note=""):
    median = statistics.median(values)
    print(f"| {name} | {median:.0f} | {min(values):.0f}-{max(values):.0f} | {reference / median:.2f} | {note} |", flush=True)
    return median


def measure(options):
    load = {"busy": int(options.busy), "churn_mib": 256, "anon_mib": options.used_mib}
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder, \
            Guest(qemu=options.qemu, mem_mib=options.mem_mib, smp=2, memory=options.memory, selfcheck=load, hook=ANSWER,
                  folder=pathlib.Path(folder) / "guest",
                  extra=answer_port(f"{folder}/guest")) as guest:
        guest.wait_ready(timeout=1800)
        bench = Bench(guest, pathlib.Path(folder))
        restart = Restart(guest, bench.store)
        restart.answers.wait_ms(time.monotonic())
        # One stopped guest for all: everybody brings back the same.
        guest.monitor.execute("stop")
        plain, mapped = f"{folder}/plain", f"{folder}/mapped"
        bench.migrate(f"exec:cat > {plain}")
        # Migrated once, it must run before it may be migrated again.
        ways = {"plain": lambda: restart.incoming(f"exec:cat {plain}")}
        if options.qemu == "10.0":
            guest.monitor.execute("cont")
            guest.monitor.execute("stop")
            multifd = ["mapped-ram", "multifd"]
            bench.migrate(f"file:{mapped}", *multifd)
            ways["mapped"] = lambda: restart.incoming(f"file:{mapped}", multifd)
        guest.monitor.execute("cont")
        saved = {compression: bench.save(compression) for compression in ("none", "zstd")}
        guest.kill()

        times = {name: [] for name in ("empty", "lazy none", "again none", "lazy zstd", "again zstd", "eager none",
                                       "eager zstd", *ways)}
        fills = {"none": [], "zstd": []}
        steps = {"none": [], "zstd": []}
        faults = []
        for _ in range(options.rounds):
            times["empty"].append(restart.empty_start_ms())
            for compression, checkpoint in saved.items():
                hint = pathlib.Path(folder, "store", "checkpoints", checkpoint["checkpoint"], "working-set.hint")
                for way in ("lazy", "again", "eager"):
                    if way == "lazy":
                        hint.unlink(missing_ok=True)
                    restored = restart.vmsieve(checkpoint["checkpoint"], "--eager" if way == "eager" else "--lazy")
                    times[f"{way} {compression}"].append(restored["answer_ms"])
                    if way == "lazy":
                        report = restored["report"]
                        fill = report["fill"]
                        steps[compression].append((report["start_ms"], report["ready_ms"]))
                        fills[compression].append(fill["bytes"] / fill["ms"] / 1e6)
                        faults.append(fill)
            for name, way in ways.items():
                times[name].append(way()["answer_ms"])

        print(f"guest {options.mem_mib} MiB, {options.memory}, QEMU {options.qemu}; a checkpoint has "
              f'{saved["none"]["pages"]["saved"] * 4096 / 1e9:.2f} GB of data; zstd stores '
              f'{saved["zstd"]["stored_bytes"] / 1e9:.2f} GB; {options.rounds} rounds')
        print("| until the guest answers | median ms | range | plain takes so many times longer | |\n|---|---|---|---|---|")
        reference = statistics.median(times["plain"])
        empty = statistics.median(times["empty"])
        names = {"again none": "vmsieve restore, lazy none, with the working set of the one before",
                 "again zstd": "vmsieve restore, lazy zstd, with the working set of the one before",
                 "empty": "QEMU starts with -S, no guest", "plain": "QEMU -incoming exec:cat", "mapped": "QEMU mapped-ram with multifd"}
        for name, values in times.items():
            over = f"{statistics.median(values) - empty:+.0f} ms over QEMU's start" if name != "empty" else ""
            describe(names.get(name, f"vmsieve restore, {name}"), values, reference, over)
        for compression, times in steps.items():
            started, ready = (statistics.median(column) for column in zip(*times))
            print(f"lazy, {compression}: QEMU answers after {started:.0f} ms, the guest runs after {ready:.0f} ms (medians)")
        for compression, rates in fills.items():
            print(f"fill, {compression}: {statistics.median(rates):.2f} GB/s ({min(rates):.2f}-{max(rates):.2f})")
        print(f'faults {statistics.median(f["faults"] for f in faults):.0f}, longest '
              f'{statistics.median(f["longest_fault_ms"] for f in faults):.1f} ms (medians)')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mem-mib", type=int, default=8192)
    parser.add_argument("--used-mib", type=int, default=4096)
    parser.add_argument("--memory", default="plain", choices=["plain", "memfd"])
    parser.add_argument("--qemu", default="10.0")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
