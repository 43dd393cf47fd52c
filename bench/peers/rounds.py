# SPDX-License-Identifier: Apache-2.0
"""All turns of all ways of one guest in one setting, then the restores."""

import shutil
import time

from tests.lab import QmpError

from . import host, measure, migration
from .subject import GuestLost

SPARE_BYTES = 8 << 30  # of the disk, that stay free
RESTORES = 5           # of each way's last file, at most
BOOTS = 3              # a guest that was lost is booted again, so often in all


def say(text):
    print(text, flush=True)


class Rounds:
    """`record` is what the results' file has of this setting; it grows as figures come."""

    def __init__(self, part, kind, options, folder, record):
        self.part, self.kind, self.options, self.folder, self.record = part, kind, options, folder, record
        record |= {"title": part.setting.title, "rounds": options.rounds, "ways": {}, "restores": {}, "boots": 0, "boot_s": [],
                   "limits": {"disk_bytes_per_s": [], "memory_bytes_per_s": []}}
        for way in part.ways:
            record["ways"][way.name] = {"title": way.title, "ours": way.ours, "note": way.note, "rounds": [], "failed": []}
        self.done = 0

    def run(self):
        while self.done < self.options.rounds and self.record["boots"] < BOOTS:
            self.record["boots"] += 1
            say(f"-- {self.kind}, {self.part.setting.title}: booting a guest with {self.options.mem_mib} MiB")
            begun = time.monotonic()
            with self.part.setting.boot(self.kind, self.options.mem_mib, self.folder) as subject:
                self.record["boot_s"].append(time.monotonic() - begun)
                try:
                    self._rounds(subject)
                except GuestLost as lost:
                    say(f"   the guest was lost: {lost}")
                    self.record.setdefault("lost", []).append(str(lost))
                    continue
                if self.options.restores:
                    self._restores(subject)

    # ---- turns ---------------------------------------------------------

    def _rounds(self, subject):
        while self.done < self.options.rounds:
            self._measure_limits()
            last = self.done == self.options.rounds - 1
            for way in self.part.ways:
                self._turn(way, subject, keep=last and self.options.restores)
            self.done += 1

    def _measure_limits(self):
        limits = self.record["limits"]
        limits["disk_bytes_per_s"].append(host.disk_rate(self.folder))
        limits["memory_bytes_per_s"].append(host.memory_rate())

    def _turn(self, way, subject, keep):
        told, place = self.record["ways"][way.name], self.folder / "files" / way.name
        if len(told["failed"]) >= 2 or told.get("not_there") or (way.turns and len(told["rounds"]) >= way.turns):
            return
        shutil.rmtree(place, ignore_errors=True)
        whole = False
        try:
            self._check_room()
            figures = measure.turn(way, subject, place)
            subject.check()
            told["rounds"].append(figures)
            whole = True
            say(f"   {self.done + 1} {way.name:24} pause {figures['pause_ms']:9.1f} ms, durable "
                f"{figures['durable_ms']:7.0f} ms, {figures['bytes'] / 1e6:7.1f} MB, CPU {figures['cpu_s']:5.2f} s, "
                f"guest {100 * figures.get('speed_ratio', float('nan')):3.0f} %")
        except host.NotThere as error:
            told["not_there"] = str(error)
            say(f"   {way.name}: {error}")
        except (OSError, RuntimeError, AssertionError, QmpError, TimeoutError, ValueError, KeyError, GuestLost,
                migration.MigrationFailed) as error:
            told["failed"].append(f"{type(error).__name__}: {error}"[:600])
            say(f"   {self.done + 1} {way.name:24} FAILED {error}")
            self._recover(way, subject, place)
        if not (whole and keep and way.restores(place) and host.free_bytes(self.folder) > SPARE_BYTES):
            shutil.rmtree(place, ignore_errors=True)

    def _check_room(self):
        # Two files of all of the memory, as of a dump and what is made of it.
        if host.free_bytes(self.folder) < SPARE_BYTES // 2 + (2 * self.options.mem_mib << 20):
            raise OSError("the disk is too full for this way")

    def _recover(self, way, subject, place):
        subject.recover()
        try:
            way.forget(subject, place)
        except Exception as error:
            say(f"   {way.name}: {error}")

    # ---- restores ------------------------------------------------------

    def _restores(self, subject):
        kept = [(way, how, function) for way in self.part.ways if (self.folder / "files" / way.name).exists()
                for how, function in way.restores(self.folder / "files" / way.name).items()]
        if not kept:
            return
        restart = self.part.setting.restart(subject)
        for number in range(min(RESTORES, self.options.rounds)):
            for way, how, function in kept:
                self._restore(way, how, function, restart, number)
        shutil.rmtree(self.folder / "files", ignore_errors=True)

    def _restore(self, way, how, function, restart, number):
        told = self.record["restores"].setdefault(f"{way.name} {how}".strip(), {"way": way.name, "how": how, "rounds": [],
                                                                               "failed": []})
        if len(told["failed"]) >= 2 or "not_there" in told:
            return
        try:
            host.drop_caches()
            empty = restart.empty_start_ms()  # which also brings QEMU's own files into the page cache again
            figures = {"empty_ms": empty, **function(restart)}
            told["rounds"].append(figures)
            say(f"   {number + 1} restore {way.name + ' ' + how:24} answers after {figures['answer_ms']:7.0f} ms, "
                f"complete after {figures['complete_ms'] or 0:7.0f} ms")
        except host.NotThere as error:
            told["not_there"] = str(error)
        except (OSError, RuntimeError, AssertionError, QmpError, TimeoutError, ValueError, KeyError,
                migration.MigrationFailed) as error:
            told["failed"].append(f"{type(error).__name__}: {error}"[:600])
            say(f"   restore {way.name} {how} FAILED {error}")
