#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How soon a restored guest answers, and how fast its memory comes in, beside QEMU's own ways: bench/README.md."""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.lab import Guest, Qmp, end_process, wait_until  # noqa: E402

VMSIEVE = ROOT / "build" / "release" / "vmsieve"
# Answers on its second serial port.
ANSWER = "(while read word; do echo answer $word; done </dev/ttyS1 >/dev/ttyS1) &"
PATIENCE = 300


class Bench:
    def __init__(self, guest, folder, options):
        self.guest, self.folder, self.options = guest, folder, options
        self.port = guest.folder / "answers"
        self.command = guest.command()
        self.environment = dict(os.environ, VMSIEVE_STORE=str(folder / "store"))
        self.number = 0

    def vmsieve(self, *arguments):
        result = subprocess.run([VMSIEVE, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True,
                                env=self.environment)
        return json.loads(result.stdout)

    def save(self, compression):
        return self.vmsieve("save", self.guest.qmp_path, "--paused", "--compress", compression)

    def migrate(self, uri, **capabilities):
        """The stopped guest's memory and state, by QEMU."""
        qmp = self.guest.monitor
        self.set_capabilities(qmp, capabilities)
        qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
        qmp.execute("migrate", uri=uri)
        wait_until(lambda: self.completed(qmp), PATIENCE, f"migration to {uri}")
        self.set_capabilities(qmp, dict.fromkeys(capabilities, False))

    @staticmethod
    def set_capabilities(qmp, capabilities):
        if capabilities:
            qmp.execute("migrate-set-capabilities", capabilities=[
                {"capability": name.replace("_", "-"), "state": state} for name, state in capabilities.items()])

    @staticmethod
    def completed(qmp):
        state = qmp.execute("query-migrate")
        if state.get("status") == "failed":
            raise RuntimeError(f"QEMU's migration failed: {state}")
        return state.get("status") == "completed"

    def answer_ms(self, started):
        """Until the guest answers a question that it has not heard before. What a serial port hears before its
        state is loaded is lost, so the question is asked again and again."""
        self.number += 1
        answer = f"answer question{self.number}".encode()
        while time.monotonic() < started + PATIENCE:
            with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(socket.AF_UNIX) as port:
                port.connect(str(self.port))
                port.settimeout(0.01)
                heard = b""
                while time.monotonic() < started + PATIENCE:
                    with contextlib.suppress(TimeoutError):
                        port.send(f"\nquestion{self.number}\n".encode())
                        more = port.recv(4096)
                        if not more:
                            raise ConnectionResetError
                        heard += more
                    if answer in heard:
                        return (time.monotonic() - started) * 1000
            time.sleep(0.001)
        raise TimeoutError("the guest does not answer")

    def restore(self, checkpoint, way):
        started = time.monotonic()
        process = subprocess.Popen([VMSIEVE, "restore", checkpoint, way, "--wait", "--json"],
                                   stdout=subprocess.PIPE, text=True, env=self.environment)
        answered = self.answer_ms(started)
        report = json.loads(process.communicate(timeout=PATIENCE)[0])
        end_process(report["pid"])
        # The last of its threads gives the sockets back.
        wait_until(lambda: str(self.port) not in pathlib.Path("/proc/net/unix").read_text(encoding="ascii"), PATIENCE,
                   "the end of QEMU", interval=0.01)
        return answered, report

    def start(self, *arguments):
        self.port.unlink(missing_ok=True)
        return subprocess.Popen([*self.command, *arguments], stdin=subprocess.DEVNULL)

    def empty_start_ms(self):
        """QEMU's own start-up: until its monitor answers, with the guest's command line and -S."""
        self.guest.qmp_path.unlink(missing_ok=True)
        started = time.monotonic()
        process = self.start("-S")
        try:
            while True:
                with contextlib.suppress(OSError), Qmp(self.guest.qmp_path):
                    return (time.monotonic() - started) * 1000
                time.sleep(0.001)
        finally:
            process.kill()
            process.wait()

    def incoming_ms(self, uri, **capabilities):
        self.guest.test_qmp_path.unlink(missing_ok=True)
        started = time.monotonic()
        process = self.start("-incoming", "defer" if capabilities else uri)
        try:
            wait_until(self.guest.test_qmp_path.exists, PATIENCE, "the monitor", interval=0.001)
            with Qmp(self.guest.test_qmp_path, timeout=PATIENCE) as qmp:
                if capabilities:
                    self.set_capabilities(qmp, capabilities)
                    qmp.execute("migrate-incoming", uri=uri)
                wait_until(lambda: self.completed(qmp), PATIENCE, "the incoming migration", interval=0.001)
                # It was stopped when it was migrated.
                qmp.execute("cont")
            return self.answer_ms(started)
        finally:
            process.kill()
            process.wait()


def describe(name, values, reference, note=""):
    median = statistics.median(values)
    print(f"| {name} | {median:.0f} | {min(values):.0f}-{max(values):.0f} | {reference / median:.2f} | {note} |", flush=True)
    return median


def measure(options):
    load = {"busy": int(options.busy), "churn_mib": 256, "anon_mib": options.used_mib}
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder, \
            Guest(qemu=options.qemu, mem_mib=options.mem_mib, smp=2, memory=options.memory, selfcheck=load, hook=ANSWER,
                  folder=pathlib.Path(folder) / "guest",
                  extra=["-serial", f"unix:{folder}/guest/answers,server=on,wait=off"]) as guest:
        guest.wait_ready(timeout=1800)
        bench = Bench(guest, pathlib.Path(folder), options)
        bench.answer_ms(time.monotonic())
        # One stopped guest for all: everybody brings back the same.
        guest.monitor.execute("stop")
        plain, mapped = f"{folder}/plain", f"{folder}/mapped"
        bench.migrate(f"exec:cat > {plain}")
        # Migrated once, it must run before it may be migrated again.
        ways = {"plain": lambda: bench.incoming_ms(f"exec:cat {plain}")}
        if options.qemu == "10.0":
            guest.monitor.execute("cont")
            guest.monitor.execute("stop")
            bench.migrate(f"file:{mapped}", mapped_ram=True, multifd=True)
            ways["mapped"] = lambda: bench.incoming_ms(f"file:{mapped}", mapped_ram=True, multifd=True)
        guest.monitor.execute("cont")
        guest._monitor.close()
        guest._monitor = None
        saved = {compression: bench.save(compression) for compression in ("none", "zstd")}
        guest.kill()

        times = {name: [] for name in ("empty", "lazy none", "again none", "lazy zstd", "again zstd", "eager none",
                                       "eager zstd", *ways)}
        fills = {"none": [], "zstd": []}
        steps = {"none": [], "zstd": []}
        faults = []
        for _ in range(options.rounds):
            times["empty"].append(bench.empty_start_ms())
            for compression, checkpoint in saved.items():
                hint = pathlib.Path(folder, "store", "checkpoints", checkpoint["checkpoint"], "working-set.hint")
                for way in ("lazy", "again", "eager"):
                    if way == "lazy":
                        hint.unlink(missing_ok=True)
                    answered, report = bench.restore(checkpoint["checkpoint"], "--eager" if way == "eager" else "--lazy")
                    times[f"{way} {compression}"].append(answered)
                    if way == "lazy":
                        fill = report["fill"]
                        steps[compression].append((report["start_ms"], report["ready_ms"]))
                        fills[compression].append(fill["bytes"] / fill["ms"] / 1e6)
                        faults.append(fill)
            for name, way in ways.items():
                times[name].append(way())

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
