#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long a busy guest stands still for a save, beside QEMU's own ways: bench/README.md."""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab import Guest  # noqa: E402

VMSIEVE = ROOT / "build" / "release" / "vmsieve"
PARTS = ["stop_ms", "classify_ms", "device_ms", "plan_ms", "read_ms", "freeze_ms", "resume_ms"]


def save(guest, store, *options):
    result = subprocess.run([VMSIEVE, "save", guest.qmp_path, "--json", *options], check=True,
                            stdout=subprocess.PIPE, text=True, env=dict(os.environ, VMSIEVE_STORE=str(store)))
    saved = json.loads(result.stdout)
    subprocess.run([VMSIEVE, "rm", saved["checkpoint"]], check=True, stdout=subprocess.DEVNULL,
                   env=dict(os.environ, VMSIEVE_STORE=str(store)))
    return saved


def migrate(guest, path, *capabilities, stopped):
    """QEMU's own, to a file: (downtime, total) in ms. A stopped guest stands still all the time."""
    qmp = guest.monitor
    qmp.execute("migrate-set-capabilities",
                capabilities=[{"capability": name, "state": True} for name in capabilities])
    qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    started = time.monotonic()
    if stopped:
        qmp.execute("stop")
    qmp.execute("migrate", uri=f"exec:cat > {path}")
    while (state := qmp.execute("query-migrate"))["status"] not in ("completed", "failed"):
        time.sleep(0.01)
    total = (time.monotonic() - started) * 1000
    if qmp.execute("query-status")["status"] != "running":
        qmp.execute("cont")
    qmp.execute("migrate-set-capabilities",
                capabilities=[{"capability": name, "state": False} for name in capabilities])
    pathlib.Path(path).unlink(missing_ok=True)
    if state["status"] != "completed":
        raise RuntimeError(f"QEMU's migration failed: {state}")
    return total if stopped else state["downtime"], total


def row(name, pauses, totals, parts=""):
    print(f"| {name} | {statistics.median(pauses):.1f} | {max(pauses):.1f} | {statistics.median(totals):.0f} | {parts} |",
          flush=True)


def parts_of(saves):
    medians = {part: statistics.median(saved["pause"][part] for saved in saves) for part in PARTS}
    return ", ".join(f'{part.removesuffix("_ms")} {ms:.1f}' for part, ms in medians.items() if ms >= 0.05)


def measure(mem_mib, options):
    load = {"busy": 1, "churn_mib": min(1024, mem_mib // 4), "anon_mib": min(options.used_mib, mem_mib // 2)}
    with Guest(mem_mib=mem_mib, smp=2, memory=options.memory, selfcheck=load) as guest, \
            tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        guest.wait_ready(timeout=900)
        dice = random.Random(1)

        def saves(count, *arguments):
            done = []
            for _ in range(count):
                time.sleep(dice.uniform(0.1, 0.5))
                done.append(save(guest, pathlib.Path(folder) / "store", "--compress", "lz4", *arguments))
            return done

        live, paused = saves(options.saves, "--live"), saves(max(1, options.saves // 10), "--paused")
        name = f"{mem_mib} MiB"
        row(f"{name}, live", [s["pause_ms"] for s in live], [s["total_ms"] for s in live], parts_of(live))
        row(f"{name}, paused", [s["pause_ms"] for s in paused], [s["total_ms"] for s in paused], parts_of(paused))
        waits = [s["live"]["longest_wait_ms"] for s in live]
        print(f"| {name}, longest wait of a write in each live save | {statistics.median(waits):.1f} | {max(waits):.1f} | | |")
        if options.peers:
            stream = pathlib.Path(folder) / "stream"
            for title, capabilities, stopped in [("QEMU background-snapshot", ["background-snapshot"], False),
                                                 ("QEMU migrate, stopped", [], True)]:
                try:
                    pause, total = migrate(guest, stream, *capabilities, stopped=stopped)
                    row(f"{name}, {title}", [pause], [total])
                except Exception as error:  # one that cannot is part of the answer
                    print(f"| {name}, {title} | {error} | | | |")
        guest.wait_rounds(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mem-mib", type=int, action="append", help="1024 and 8192 unless given")
    parser.add_argument("--used-mib", type=int, default=4096, help="in use, at most half of the guest")
    parser.add_argument("--memory", default="plain", choices=["plain", "memfd"])
    parser.add_argument("--saves", type=int, default=50)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    options = parser.parse_args()
    print("| guest, way | guest stopped, median ms | worst | total ms | parts of the pause, median ms |\n|---|---|---|---|---|")
    for mem_mib in options.mem_mib or [1024, 8192]:
        measure(mem_mib, options)


if __name__ == "__main__":
    main()
