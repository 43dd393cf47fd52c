#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What disks add to the pause of a save, beside QEMU's and libvirt's own snapshots: bench/README.md."""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab import Unavailable  # noqa: E402
from tests.lab.disks import Ledger, guest_with, image  # noqa: E402

VMSIEVE = ROOT / "build" / "release" / "vmsieve"


def command(store, *arguments):
    result = subprocess.run([VMSIEVE, *map(str, arguments), "--json"], check=True, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, env=dict(os.environ, VMSIEVE_STORE=str(store)))
    return json.loads(result.stdout)


def row(name, disks, pauses, totals, own=()):
    part = f"{statistics.median(own):.1f}" if own else ""
    print(f"| {name} | {disks} | {statistics.median(pauses):.1f} | {max(pauses):.1f} | {part} | "
          f"{statistics.median(totals):.0f} |", flush=True)
    return statistics.median(pauses)


def snapshot_save(guest, tag, nodes):
    """QEMU's own into the first image: (pause, total) in ms."""
    qmp = guest.monitor
    qmp.events.clear()
    started = time.monotonic()
    qmp.execute("snapshot-save", job_id=tag, tag=tag, vmstate=nodes[0], devices=nodes)
    while next(job for job in qmp.execute("query-jobs") if job["id"] == tag)["status"] != "concluded":
        time.sleep(0.005)
    total = (time.monotonic() - started) * 1000
    times = {}
    for event in qmp.events:
        if event["event"] in ("STOP", "RESUME"):
            stamp = event["timestamp"]
            times[event["event"]] = stamp["seconds"] * 1000 + stamp["microseconds"] / 1000
    qmp.execute("job-dismiss", id=tag)
    qmp.execute("snapshot-delete", job_id="gone", tag=tag, devices=nodes)
    while next(job for job in qmp.execute("query-jobs") if job["id"] == "gone")["status"] != "concluded":
        time.sleep(0.005)
    qmp.execute("job-dismiss", id="gone")
    return times["RESUME"] - times["STOP"], total


def measure(count, options):
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        folder = pathlib.Path(name)
        paths = [image(folder / f"disk{number}.qcow2", size_mib=256) for number in range(count)]
        load = {"churn_mib": 256, "anon_mib": options.used_mib, "busy": 1}
        with guest_with(paths, folder=folder / "guest", mem_mib=options.mem_mib, selfcheck=load) as guest:
            ledger = Ledger(guest.serial)
            ledger.wait_rounds(2, timeout=600, alive=guest.check_alive)
            dice = random.Random(1)
            ways = {way: [] for way in ("none", "snapshot", "copy", "internal")}
            for _ in range(options.saves):
                for way, saves in ways.items():  # in turns
                    time.sleep(dice.uniform(0.1, 0.4))
                    saved = command(folder / "store", "save", guest.qmp_path, "--compress", "lz4", "--disk", way)
                    saves.append(saved)
                    command(folder / "store", "rm", saved["checkpoint"])
            ledger.wait_rounds(1, alive=guest.check_alive)
            plain = 0.0
            for way, saves in ways.items():
                pause = row(f"vmsieve, --disk {way}", count, [saved["pause_ms"] for saved in saves],
                            [saved["total_ms"] for saved in saves], [saved["pause"]["disks_ms"] for saved in saves])
                plain = plain or pause
                if way != "none":
                    print(f"    {(pause - plain) / count:+.2f} ms for each disk", flush=True)
            nodes = [drive["inserted"]["node-name"] for drive in guest.monitor.execute("query-block")
                     if drive.get("inserted")]
            taken = [snapshot_save(guest, f"s{number}", nodes) for number in range(max(3, options.saves // 5))]
            row("QEMU's snapshot-save", count, *zip(*taken))


def measure_libvirt(count, options):
    from tests.lab.libvirt import Libvirt
    try:
        with Libvirt() as libvirt:
            paths = [image(libvirt.folder / f"disk{number}.qcow2", size_mib=256) for number in range(count)]
            for path in paths:
                path.chmod(0o666)
            libvirt.start("bench", mem_mib=options.mem_mib, disks=paths,
                          selfcheck={"churn_mib": 256, "anon_mib": options.used_mib, "busy": 1})
            for live in (False, True):
                taken = [virsh_snapshot(libvirt, number + 100 * live, count, live)
                         for number in range(max(3, options.saves // 5))]
                row(f"virsh snapshot-create-as with memory{', --live' if live else ''}", count, *zip(*taken))
    except Unavailable as error:
        print(f"no libvirt: {error}")


def virsh_snapshot(libvirt, number, count, live):
    with subprocess.Popen([*libvirt.inside, "virsh", "event", "bench", "--event", "lifecycle", "--loop", "--timestamp"],
                          stdout=subprocess.PIPE, text=True) as events:
        time.sleep(0.5)
        started = time.monotonic()
        libvirt.virsh("snapshot-create-as", "bench", f"s{number}", "--no-metadata", "--atomic", *(["--live"] if live else []),
                      "--memspec", f"file={libvirt.folder}/memory{number},snapshot=external",
                      *[word for disk in range(count) for word in
                        ("--diskspec", f"vd{'abcdefgh'[disk]},snapshot=external,file={libvirt.folder}/s{number}-{disk}.qcow2")])
        total = (time.monotonic() - started) * 1000
        time.sleep(0.5)
        events.terminate()
        text = events.stdout.read()
    stamps = {word: [datetime.fromisoformat(found).timestamp() * 1000 for found in
                     re.findall(rf"^(\S+ \S+?)(?:\+0000)?: event 'lifecycle' .*: {word}", text, re.M)]
              for word in ("Suspended", "Resumed")}
    (libvirt.folder / f"memory{number}").unlink(missing_ok=True)
    return stamps["Resumed"][-1] - stamps["Suspended"][0], total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=15)
    parser.add_argument("--mem-mib", type=int, default=1024)
    parser.add_argument("--used-mib", type=int, default=256)
    parser.add_argument("--disks", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--only", choices=["qemu", "libvirt"])
    options = parser.parse_args()
    print("| | disks | pause, median ms | longest | of it the disks | all of it |\n|---|---|---|---|---|---|")
    for count in options.disks:
        if options.only != "libvirt":
            measure(count, options)
        if options.only != "qemu":
            measure_libvirt(count, options)


if __name__ == "__main__":
    main()
