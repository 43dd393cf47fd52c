# SPDX-License-Identifier: Apache-2.0
"""Guests brought back from files, and how soon they answer."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import threading
import time

from tests.lab import Qmp, end_process, wait_until
from tests.lab.host import die_with_parent

from . import migration
from .host import VMSIEVE

PATIENCE = 300
PORT = "answers"


def answer_port(folder):
    """The arguments for the serial port that a guest answers on, with kinds.ANSWER in its hook."""
    return ["-serial", f"unix:{folder}/{PORT},server=on,wait=off"]


def unread(port):
    """Bytes that were sent and that nobody has taken yet."""
    SIOCOUTQ = 0x5411
    return struct.unpack("i", fcntl.ioctl(port, SIOCOUTQ, bytes(4)))[0]


class Answers:
    """Asks a guest through the socket of its second serial port."""

    def __init__(self, port):
        self.port, self._number = pathlib.Path(port), 0

    def wait_ms(self, started, alive=lambda: True):
        """From `started` until the guest answers a question that it has not heard before. `alive` tells whether an
        answer can still come."""
        self._number += 1
        question, answer = f"\nquestion{self._number}\n".encode(), f"answer question{self._number}".encode()
        while time.monotonic() < started + PATIENCE and alive():
            with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(socket.AF_UNIX) as port:
                port.connect(str(self.port))
                port.settimeout(0.01)
                heard = b""
                while time.monotonic() < started + PATIENCE and alive():
                    # What a serial port hears before its state is loaded is lost, so it is asked again; but not
                    # while the last question was not taken: the guest would have to go through all of them first.
                    if not unread(port):
                        port.send(question)
                    with contextlib.suppress(TimeoutError):
                        more = port.recv(4096)
                        if not more:
                            raise ConnectionResetError
                        heard += more
                    if answer in heard:
                        return (time.monotonic() - started) * 1000
            time.sleep(0.001)
        raise TimeoutError("the guest does not answer")

    def wait_free(self):
        """Until the last thread of a QEMU that was ended has given its sockets back."""
        wait_until(lambda: str(self.port) not in pathlib.Path("/proc/net/unix").read_text(encoding="ascii"), PATIENCE,
                   "the end of QEMU", interval=0.01)


class Restart:
    """New QEMUs with a guest's command line, once it was killed. Each is ended when it was measured."""

    def __init__(self, guest, store=None):
        self.guest, self.store = guest, store
        self.command = guest.command()
        self.answers = Answers(guest.folder / PORT)

    def start(self, *arguments, replace=()):
        """`replace`: pairs of texts, one for the other in the guest's own arguments."""
        command = [str(word) for word in self.command]
        for old, new in replace:
            command = [word.replace(old, new) for word in command]
        self.answers.port.unlink(missing_ok=True)
        return subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def _monitor(self, process):
        """Its monitor, as soon as it answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"QEMU ended with status {process.returncode}")
            with contextlib.suppress(OSError):
                return Qmp(self.guest.test_qmp_path, timeout=PATIENCE)
            time.sleep(0.001)
        raise TimeoutError("QEMU's monitor does not answer")

    @contextlib.contextmanager
    def _running(self, *arguments, replace=()):
        self.guest.test_qmp_path.unlink(missing_ok=True)
        process = self.start(*arguments, replace=replace)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self.answers.wait_free()

    def empty_start_ms(self):
        """QEMU's own start-up: until its monitor answers, with the guest's command line and -S."""
        started = time.monotonic()
        with self._running("-S") as process, self._monitor(process):
            return (time.monotonic() - started) * 1000

    def incoming(self, uri, capabilities=(), parameters=None, replace=()):
        """From a migration to a file: until all memory is there, and until the guest answers."""
        started = time.monotonic()
        defer = bool(capabilities or parameters)
        with self._running("-incoming", "defer" if defer else uri, replace=replace) as process:
            with self._monitor(process) as qmp:
                if defer:
                    migration.set_capabilities(qmp, capabilities, True)
                    if parameters:
                        qmp.execute("migrate-set-parameters", **parameters)
                    qmp.execute("migrate-incoming", uri=uri)
                wait_until(lambda: migration.completed(qmp), PATIENCE, "the incoming migration", interval=0.001)
                complete = time.monotonic()
                if qmp.status() != "running":  # it was stopped when it was migrated
                    qmp.execute("cont")
            return {"answer_ms": self.answers.wait_ms(started), "complete_ms": (complete - started) * 1000}

    def load_snapshot(self, tag, *arguments):
        """From a snapshot in an image. The monitor answers when it is loaded."""
        started = time.monotonic()
        with self._running(*arguments, "-loadvm", tag) as process:
            with self._monitor(process) as qmp:
                wait_until(lambda: qmp.status() != "restore-vm", PATIENCE, "the snapshot", interval=0.001)
                complete = time.monotonic()
                if qmp.status() != "running":
                    qmp.execute("cont")
            return {"answer_ms": self.answers.wait_ms(started), "complete_ms": (complete - started) * 1000}

    def vmsieve(self, checkpoint, way, store=None):
        """By vmsieve's restore, with `--lazy` or `--eager`; also what it reports. It ends when all memory is there."""
        started = time.monotonic()
        command = Command([VMSIEVE, "restore", checkpoint, way, "--wait", "--json"],
                          env=dict(os.environ, VMSIEVE_STORE=str(store or self.store)))
        try:
            answered = self.answers.wait_ms(started, command.may_succeed)
        finally:
            words = command.wait()
            if command.process.returncode == 0:
                report = json.loads(words)
                end_process(report["pid"])
                self.answers.wait_free()
        return {"answer_ms": answered, "complete_ms": (command.ended - started) * 1000, "report": report}


class Command:
    """A process whose end is noted at the moment it comes."""

    def __init__(self, words, **more):
        self.process = subprocess.Popen(list(map(str, words)), text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, **more)
        self.ended = None
        self._told = ("", "")
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self):
        self._told = self.process.communicate()
        self.ended = time.monotonic()

    def may_succeed(self):
        return self.process.poll() in (None, 0)

    def wait(self, limit=PATIENCE):
        """What it printed."""
        self._thread.join(limit)
        if self.ended is None:
            self.process.kill()
            self._thread.join()
        if self.process.returncode != 0:
            raise RuntimeError(f"{self._words()}: {self._told[1].strip()[-500:]}")
        return self._told[0]

    def _words(self):
        return " ".join(map(str, self.process.args[:2]))
