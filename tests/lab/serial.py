# SPDX-License-Identifier: Apache-2.0
"""A guest's serial console in a file, and what selfcheck says there."""

import collections
import pathlib
import re

from .host import wait_until

READY = re.compile(r"selfcheck: ready total_kib=(\d+) free_kib=(\d+) used_kib=(\d+)")
ROUND = re.compile(r"selfcheck: round (\d+) ok total_kib=(\d+) free_kib=(\d+) procs=(\d+)")
# Whole lines: the console grows by single characters.
FAILURE = re.compile(r"(?:selfcheck: FAIL|workload: \S+ FAIL|disks: FAIL|.*Kernel panic).*(?=[\r\n])")

Round = collections.namedtuple("Round", "number total_kib free_kib procs")


class GuestFailed(AssertionError):
    """The guest itself says that it is corrupt, or its kernel panicked."""


class Serial:
    """Reads a serial file that QEMU appends to; also that of a restored guest."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def text(self):
        try:
            return self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def failure(self):
        """The first line that tells of a failure, or None."""
        found = FAILURE.search(self.text())
        return found.group(0).strip() if found else None

    def check(self):
        failure = self.failure()
        if failure:
            raise GuestFailed(f"{self.path}: {failure}\n{self._tail(60)}")

    def _tail(self, lines):
        return "the console ends:\n" + "\n".join(self.text().splitlines()[-lines:])

    def rounds(self):
        """All rounds that passed, oldest first."""
        return [Round(*map(int, found.groups())) for found in ROUND.finditer(self.text())]

    def ready(self):
        """(total_kib, free_kib, used_kib) of the ready line, or None."""
        found = READY.search(self.text())
        return tuple(map(int, found.groups())) if found else None

    def wait_for(self, pattern, timeout=60, alive=None):
        """Waits for a match of `pattern`; raises GuestFailed when the guest fails first.

        `alive` is a function that raises when nothing more can come.
        """
        regex = re.compile(pattern)

        def found():
            match = regex.search(self.text())
            if not match:
                self.check()
                if alive:
                    alive()
            return match
        return self._wait(found, timeout, f"/{regex.pattern}/")

    def wait_rounds(self, count, timeout=60, alive=None):
        """Waits for `count` further rounds; raises GuestFailed when the guest fails."""
        before = len(self.rounds())

        def passed():
            self.check()
            if alive:
                alive()
            return len(self.rounds()) >= before + count
        self._wait(passed, timeout, f"{count} further rounds")
        return self.rounds()[-1]

    def wait_failure(self, timeout=60):
        """Waits until the guest reports a failure, and returns that line."""
        return self._wait(self.failure, timeout, "a failure")

    def _wait(self, condition, timeout, what):
        try:
            return wait_until(condition, timeout, f"{self.path}: {what}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self._tail(5)}") from None
