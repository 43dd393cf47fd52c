# SPDX-License-Identifier: Apache-2.0
"""The demo: one guest, QEMU's own way of saving it beside vmsieve's, death and return."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.lab import Guest, Serial, end_process

ROOT = pathlib.Path(__file__).resolve().parent.parent
VMSIEVE = ROOT / "build" / "release" / "vmsieve"


def say(text):
    print(f"== {text}", flush=True)


def vmsieve(store, *arguments):
    result = subprocess.run([str(VMSIEVE), *map(str, arguments), "--store", str(store), "--json"],
                            text=True, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def migrate(guest, path):
    """QEMU's own way: stop, `migrate` to a file, cont. Milliseconds and bytes."""
    with guest.qmp() as qmp:
        # The default limit of 128 MiB/s is for networks.
        qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
        started = time.monotonic()
        qmp.execute("stop")
        qmp.execute("migrate", uri=f"exec:cat > {path}")
        while (status := qmp.execute("query-migrate")["status"]) not in ("completed", "failed"):
            time.sleep(0.005)
        elapsed = (time.monotonic() - started) * 1000
        qmp.execute("cont")
    if status != "completed":
        sys.exit("QEMU's own migration failed")
    size = path.stat().st_size
    path.unlink()
    return elapsed, size


def print_table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))))


def row(name, pause_ms, total_ms, size):
    return [name, f"{pause_ms:.0f} ms", f"{total_ms:.0f} ms", f"{size / 1e6:.1f} MB"]


def run(folder, options):
    say(f"booting a Debian guest with {options.mem_mib} MiB; it writes and frees {options.churn_mib} MiB")
    with Guest(mem_mib=options.mem_mib, smp=2, name="demo", memory=options.memory, folder=folder,
               selfcheck={"churn_mib": options.churn_mib}) as guest:
        total_kib, free_kib, used_kib = guest.wait_ready()
        guest.wait_rounds(3)
        say(f"the guest verifies its memory, and says that it uses {used_kib / 1024:.0f} MiB "
            f"of {total_kib / 1024:.0f} MiB")

        say("saving it: QEMU's migrate to a file, then vmsieve")
        qemu_ms, qemu_bytes = migrate(guest, folder / "migrate.stream")
        guest.wait_rounds(1)
        store = folder / "store"
        plain = vmsieve(store, "save", "demo", "--paused", "--compress", "none")
        guest.wait_rounds(1)
        paused = vmsieve(store, "save", "demo", "--paused")
        guest.wait_rounds(1)
        saved = vmsieve(store, "save", "demo")
        guest.wait_rounds(2)
        vmsieve(store, "save", "demo", "--incremental")  # the first one: all of it
        guest.wait_rounds(1)
        step = vmsieve(store, "save", "demo", "--incremental")
        if not saved["introspection"]["used"]:
            sys.exit(f"saved in full: {saved['introspection']['reason']}")

        say("killing the guest's QEMU with SIGKILL")
        end_process(guest.pid)

        say("restoring it")
        serial = folder / "restored.serial"
        restored = vmsieve(store, "restore", step["checkpoint"], "--set", f"serial=file:{serial}")
        try:
            last = Serial(serial).wait_rounds(5)
            say(f"the restored guest verifies its memory: round {last.number} ok")
        finally:
            end_process(restored["pid"])

    print()
    print_table([["", "paused", "total", "bytes"],
                 row("QEMU migrate to a file", qemu_ms, qemu_ms, qemu_bytes),
                 row("vmsieve save --paused --compress none", plain["pause_ms"], plain["total_ms"],
                     plain["stored_bytes"]),
                 row("vmsieve save --paused (zstd)", paused["pause_ms"], paused["total_ms"], paused["stored_bytes"]),
                 row(f"vmsieve save ({saved['mode']}, zstd)", saved["pause_ms"], saved["total_ms"],
                     saved["stored_bytes"]),
                 row("vmsieve save --incremental, the second", step["pause_ms"], step["total_ms"],
                     step["stored_bytes"])])
    for warning in saved["warnings"]:
        print(f"note: {warning}")
    used = used_kib * 1024
    # What MemTotal leaves out is the kernel's own: its image and the page structures.
    kernel_own = options.mem_mib * 1024 * 1024 - total_kib * 1024
    print(f"""
pause {qemu_ms / saved["pause_ms"]:.0f} times shorter (--paused: {qemu_ms / paused["pause_ms"]:.0f} times)
stored: uncompressed {100 * plain["stored_bytes"] / (used + kernel_own):.0f} %, zstd \
{100 * saved["stored_bytes"] / (used + kernel_own):.0f} % of the {(used + kernel_own) / 1e6:.0f} MB that guest and kernel use
classification {saved["introspection"]["classify_ms"]:.1f} ms, restore to a running guest {restored["ready_ms"]:.0f} ms""")
    if options.json:
        options.json.write_text(json.dumps({
            "migrate": {"pause_ms": qemu_ms, "total_ms": qemu_ms, "stored_bytes": qemu_bytes},
            "none": plain, "paused": paused, "zstd": saved, "incremental": step, "restore": restored,
            "used_bytes": used, "kernel_own_bytes": kernel_own}, indent=2), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(prog="./demo.sh", description=__doc__)
    parser.add_argument("--mem-mib", type=int, default=4096)
    parser.add_argument("--churn-mib", type=int, default=2048)
    parser.add_argument("--memory", default="plain", choices=["plain", "memfd", "file"])
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file as well")
    options = parser.parse_args()
    # Not in /tmp, which may be memory: both ways are to write to the same disk.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / "build"))
    try:
        run(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
