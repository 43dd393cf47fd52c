# SPDX-License-Identifier: Apache-2.0
"""A running guest, as the ways and the meters see it."""

import contextlib
import os
import pathlib
import time

from tests.lab import Qmp, QmpError, end_process

from . import host, migration
from .speed import Speed


class GuestLost(Exception):
    """The guest is gone, or does not run any more."""


class Subject:
    """What all of them have. `target` is what vmsieve calls it, `inside` the words before a command that is to see
    it, `folder` a place for files."""

    inside = ()

    def __init__(self, target, serial, folder, mem_mib, speed):
        self.target, self.serial, self.folder, self.mem_mib = str(target), serial, folder, mem_mib
        self.speed = Speed(pathlib.Path(serial.path), speed)

    def close(self):
        self.speed.close()

    def wait_at_work(self, kind, limit):
        """Until the kind's load has filled what it fills, and the meter tells how fast the guest works."""
        if kind.load:
            self.serial.wait_for("workload: load ready", limit, self.check)
        if not self.speed.wait_lines(2, limit):
            raise TimeoutError("the guest does not tell how fast it works")

    def run(self, command, **more):
        """A command beside the guest: (what it printed, what it used)."""
        return host.run(self.folder, [*self.inside, *command], **more)

    def used(self):
        """What the guest says that it uses, and what is not free of what it was given, in bytes."""
        rounds = self.serial.rounds()
        if not rounds:
            return {}
        last = rounds[-1]
        return {"used_bytes": (last.total_kib - last.free_kib) << 10,
                "not_free_bytes": (self.mem_mib << 20) - (last.free_kib << 10)}

    def wait_work(self, begin, end, limit=20):
        """Until the meter has told of the whole span; it does so each second."""
        stop = time.monotonic() + limit
        while self.speed.last() <= end and time.monotonic() < stop:
            time.sleep(0.02)
        return self.speed.work(begin, end, self.pauses())


class QemuSubject(Subject):
    """A Guest of the lab's; `qmp` is the benchmark's own monitor."""

    def __init__(self, guest, folder, speed):
        super().__init__(guest.qmp_path, guest.serial, folder, guest.mem_mib, speed)
        self.guest, self.pid = guest, guest.pid
        self.qmp = Qmp(guest.test_qmp_path, timeout=600)
        self._vcpus = sorted({cpu["thread-id"] for cpu in self.qmp.execute("query-cpus-fast")})

    def close(self):
        self.qmp.close()
        super().close()

    def pauses(self):
        """[(from, to)] of all times that the guest stood still, by QEMU's own events, in the host's time."""
        self.qmp.execute("query-status")  # events come before the answer
        return intervals(self.qmp.events, "STOP", "RESUME")

    def cpu_seconds(self):
        """Of QEMU without what its vCPUs do."""
        return host.cpu_seconds(f"/proc/{self.pid}") - sum(
            host.cpu_seconds(f"/proc/{self.pid}/task/{thread}") for thread in self._vcpus)

    def recover(self):
        """After a way that failed: the guest runs, with no migration under way; raises GuestLost when it does not."""
        try:
            migration.end(self.qmp)
            names = [entry["capability"] for entry in self.qmp.execute("query-migrate-capabilities") if entry["state"]]
            migration.set_capabilities(self.qmp, [name for name in names if name != "zero-blocks"], False)
            if self.qmp.status() != "running":
                self.qmp.execute("cont")
        except (OSError, QmpError, TimeoutError, ValueError) as error:
            raise GuestLost(self.words(error)) from error
        self.check()

    def check(self):
        try:
            self.guest.check_alive()
            self.serial.check()
        except (RuntimeError, AssertionError) as error:
            raise GuestLost(str(error)[:500]) from error

    def words(self, error):
        log = self.guest.log_path.read_text(errors="replace").strip()
        return f"{error}; {log[-300:]}" if log else str(error)


def intervals(events, begin, end):
    """Pairs of events of QMP; one that did not end yet ends now."""
    found, since = [], None
    for event in events:
        stamp = event["timestamp"]
        moment = stamp["seconds"] + stamp["microseconds"] / 1e6
        if event["event"] == begin and since is None:
            since = moment
        elif event["event"] == end and since is not None:
            found.append((since, moment))
            since = None
    if since is not None:
        found.append((since, time.time()))
    return found


def end_processes_of(folder):
    """Ends all that have a path in this folder, which is nobody else's, on their command line: QEMUs that outlived
    the command that started them."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            if f"{folder}/".encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                end_process(int(process.name))
