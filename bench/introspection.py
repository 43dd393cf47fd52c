#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long finding a guest's kernel and telling its free pages apart takes: bench/README.md."""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab import Guest  # noqa: E402

# Name, what selfcheck is to hold of a guest of so many MiB.
LOADS = {
    "mostly free": lambda mib: {"churn_mib": mib // 2},
    "all in use": lambda mib: {"churn_mib": 0, "anon_mib": mib - mib // 16 - 400, "cache_mib": 16, "tmpfs_mib": 16},
}


def build():
    folder = ROOT / "build" / "bench"
    subprocess.run(["cmake", "--preset", "release", "-B", folder, "-DVMSIEVE_BENCH=ON", "-DVMSIEVE_COMMAND=OFF"],
                   cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "introspection_bench"


def measure(program, guest, repetitions):
    """{benchmark: (median in ms, its counters)}"""
    result = subprocess.run(
        [program, guest.qmp_path, f"--benchmark_repetitions={repetitions}", "--benchmark_format=json",
         "--benchmark_report_aggregates_only=true", "--benchmark_min_time=0.1"],
        check=True, stdout=subprocess.PIPE, text=True)
    found = {}
    for entry in json.loads(result.stdout)["benchmarks"]:
        if entry.get("error_occurred"):
            raise RuntimeError(f'{entry["name"]}: {entry["error_message"]}')
        if entry.get("aggregate_name") == "median":
            found[entry["run_name"].removesuffix("/real_time")] = (entry["real_time"], entry)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mem-mib", type=int, default=8192)
    parser.add_argument("--kernel", action="append", help="of the lab; 6.1 and newest unless given")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    program = build()
    print(f"medians of {options.repetitions} runs, guest of {options.mem_mib} MiB\n")
    print("| kernel | guest | free, MiB | what | ms | ms per GiB | of reading only |\n|---|---|---|---|---|---|---|")
    for kernel in options.kernel or ["6.1", "newest"]:
        for load, selfcheck in LOADS.items():
            with Guest(kernel=kernel, mem_mib=options.mem_mib, selfcheck=selfcheck(options.mem_mib)) as guest:
                guest.wait_ready(timeout=600)
                guest.monitor.execute("stop")
                found = measure(program, guest, options.repetitions)
            free = int(found["classify/1_thread"][1]["free_MiB"])
            limit = found["read_page_structures/1_thread"][0]
            for name, (ms, entry) in found.items():
                size = entry.get("GiB")
                print(f"| {kernel} | {load} | {free} | {name} | {ms:.2f} | "
                      + (f"{ms / size:.2f} | {ms / limit:.2f} |" if size else "| |"))


if __name__ == "__main__":
    main()
