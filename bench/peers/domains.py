# SPDX-License-Identifier: Apache-2.0
"""Guests that are libvirt's domains: how they are booted, watched and brought back."""

import contextlib
import dataclasses
import os
import threading
import time

from tests.lab import Qmp, QmpError, Unavailable, process_exists
from tests.lab.libvirt import Libvirt

from . import host
from .kinds import KINDS
from .restart import PORT, Answers, Command
from .settings import READY_S
from .subject import GuestLost, Subject, intervals

NAME = "bench"


@dataclasses.dataclass(frozen=True)
class DomainSetting:
    """`pair`: whose libvirt and QEMU, as tests/lab/libvirt.py has them."""

    name: str
    title: str
    pair: str = None

    @contextlib.contextmanager
    def boot(self, kind_name, mem_mib, folder):
        kind = KINDS[kind_name]
        if kind.disk:
            raise host.NotThere("guests with disks are not measured under libvirt")
        try:
            libvirt = Libvirt(self.pair).__enter__()
        except Unavailable as error:
            raise host.NotThere(str(error)) from error
        try:
            sockets = libvirt.folder / "sockets"  # where QEMU, which runs as a user of libvirt's, may make them
            sockets.mkdir()
            sockets.chmod(0o777)
            serial = libvirt.start(
                NAME, mem_mib=mem_mib, selfcheck=kind.selfcheck(mem_mib), hook=kind.hook(mem_mib), timeout=READY_S,
                arguments=["-qmp", f"unix:{sockets}/qmp,server=on,wait=off",
                           "-chardev", f"socket,id=answers,path={sockets}/{PORT},server=on,wait=off",
                           "-device", "isa-serial,chardev=answers,index=1"])
            with contextlib.closing(DomainSubject(libvirt, sockets, serial, folder, mem_mib, kind.speed)) as subject:
                subject.wait_at_work(kind, READY_S)
                yield subject
        finally:
            libvirt.__exit__()

    def restart(self, subject):
        subject.libvirt.virsh("destroy", NAME)
        return DomainRestart(subject.libvirt, subject.sockets / PORT)

    def programs(self):
        return {}


class DomainSubject(Subject):
    """A domain. Its QEMU has a monitor for the benchmark besides libvirt's."""

    def __init__(self, libvirt, sockets, serial, folder, mem_mib, speed):
        super().__init__(f"libvirt:{NAME}", serial, folder, mem_mib, speed)
        self.libvirt, self.sockets, self.inside = libvirt, sockets, tuple(libvirt.inside)
        self._events = []  # of QEMUs that have ended
        self.qmp = self._next = None
        self._adopt(self._connect())

    def close(self):
        if self.qmp:
            self.qmp.close()
        super().close()

    def _connect(self, limit=60):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            with contextlib.suppress(OSError, QmpError):
                return Qmp(self.sockets / "qmp", timeout=120)
            time.sleep(0.001)
        raise TimeoutError("the domain's QEMU does not answer")

    def _adopt(self, qmp):
        if self.qmp:
            self._events += self.qmp.events
            self.qmp.close()
        self.qmp = qmp
        self._next = None
        self._vcpus = sorted({cpu["thread-id"] for cpu in qmp.execute("query-cpus-fast")})
        self.pid, self._cpu = tgid(self._vcpus[0]), 0.0

    def brought_back(self, command):
        """Calls `command`, which has libvirt start a new QEMU for the domain; the old one has ended, and the new one is
        watched from then on."""
        self.qmp.read_to_end()
        found = []
        # An event is told to those alone who are connected.
        thread = threading.Thread(target=lambda: found.append(self._connect()), daemon=True)
        thread.start()
        command()
        thread.join(60)
        if not found:
            raise GuestLost("the domain's new QEMU does not answer")
        self._next = found[0]

    def settle(self):
        """After brought_back(): figures of the old QEMU are not asked for any more."""
        if self._next:
            self._adopt(self._next)

    def pauses(self):
        monitors = [self.qmp, self._next] if self._next else [self.qmp]
        monitors[-1].execute("query-status")
        return intervals(sum((monitor.events for monitor in monitors), self._events), "STOP", "RESUME")

    def cpu_seconds(self):
        """As of a QemuSubject; of a QEMU that has ended, what was seen last."""
        with contextlib.suppress(OSError, IndexError):
            self._cpu = host.cpu_seconds(f"/proc/{self.pid}") - sum(
                host.cpu_seconds(f"/proc/{self.pid}/task/{thread}") for thread in self._vcpus)
        return self._cpu

    def daemon_cpu_seconds(self):
        """Of libvirtd, and of its helpers that have ended."""
        return host.cpu_seconds(f"/proc/{self.libvirt.daemon.pid}", children=True)

    def recover(self):
        self.settle()
        try:
            if self.libvirt.state(NAME) == "paused":
                self.libvirt.virsh("resume", NAME)
        except AssertionError as error:
            raise GuestLost(str(error)) from error
        self.check()

    def check(self):
        if not process_exists(self.pid):
            raise GuestLost("the domain's QEMU has ended")
        try:
            self.serial.check()
        except AssertionError as error:
            raise GuestLost(str(error)[:500]) from error


def tgid(thread):
    with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))


class DomainRestart:
    """As Restart, by libvirt."""

    def __init__(self, libvirt, port):
        self.libvirt, self.answers = libvirt, Answers(port)

    def empty_start_ms(self):
        """An empty start is nothing that libvirt does."""
        return None

    def _brought_back(self, words, environment=None):
        started = time.monotonic()
        command = Command([*self.libvirt.inside, *words], env=environment)
        try:
            answered = self.answers.wait_ms(started, command.may_succeed)
        finally:
            command.wait()
            complete = (command.ended - started) * 1000
            self.libvirt.virsh("destroy", NAME)
            self.answers.wait_free()
        return {"answer_ms": answered, "complete_ms": complete}

    def virsh(self, path):
        return self._brought_back(["virsh", "-q", "restore", path])

    def vmsieve(self, checkpoint, way, store):
        if way == "--lazy":
            raise host.NotThere("libvirt has QEMU load a stream, all of it")
        return self._brought_back([host.VMSIEVE, "restore", checkpoint, "--json"],
                                  dict(os.environ, VMSIEVE_STORE=str(store)))


SYSTEM = DomainSetting("libvirt", "libvirt's domain, the system's libvirt and QEMU")
BACKPORTS = DomainSetting("libvirt-11", "libvirt's domain, libvirt 11.3 and QEMU 10.0", "backports")
