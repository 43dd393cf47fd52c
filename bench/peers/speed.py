# SPDX-License-Identifier: Apache-2.0
"""How much work a guest does, by what its meter says on its console each second."""

import bisect
import re
import threading
import time


class Speed:
    """Reads the console as it grows, in a thread, and notes when each line came.

    The guest's clock stands still while the guest does, so a line tells of a second of the guest's own time. With
    the pauses known, work is told for any span of the host's time, pauses counted as time without work.
    """

    def __init__(self, path, pattern):
        self._path, self._pattern = path, re.compile(pattern)
        self._lines = []  # (when it came, units a second)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self):
        self._end.set()
        self._thread.join()

    def _read(self):
        position, rest = 0, b""
        while not self._end.wait(0.01):
            try:
                if self._path.stat().st_size < position:  # another QEMU has begun it anew
                    position, rest = 0, b""
                with open(self._path, "rb") as file:
                    file.seek(position)
                    new = file.read()
            except FileNotFoundError:
                continue
            now = time.time()
            position += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                found = self._pattern.search(line)
                if found:
                    self._lines.append((now, int(found.group(1))))

    def count(self):
        return len(self._lines)

    def wait_lines(self, count, timeout=20):
        """Until so many more lines have come; false when the guest says nothing."""
        wanted, end = len(self._lines) + count, time.monotonic() + timeout
        while len(self._lines) < wanted and time.monotonic() < end:
            time.sleep(0.02)
        return len(self._lines) >= wanted

    def last(self):
        """When the last line came."""
        return self._lines[-1][0] if self._lines else 0

    def work(self, begin, end, pauses):
        """Units a second of the host's between two moments; None where no line tells of them."""
        def own(moment):
            """The guest's own time."""
            return moment - sum(min(moment, stop) - start for start, stop in pauses if start < moment)
        lines = [(own(when), speed) for when, speed in self._lines]
        moments = [when for when, _ in lines]
        first = bisect.bisect_left(moments, own(begin))
        last = bisect.bisect_left(moments, own(end))
        if first == 0 or last >= len(lines) or end <= begin:
            return None
        done = 0.0
        for number in range(first, last + 1):
            overlap = min(moments[number], own(end)) - max(moments[number - 1], own(begin))
            done += lines[number][1] * max(0.0, overlap)
        return done / (end - begin)
