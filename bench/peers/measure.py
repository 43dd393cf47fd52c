# SPDX-License-Identifier: Apache-2.0
"""One turn of one way: its figures."""

import contextlib
import os
import time

from . import host

BEFORE_S = 2.5  # how fast the guest works without the way
WINDOW_S = 3.0  # at least, from the way's start: how fast it works with it


class Peaks:
    """With it: how much memory QEMU and the page cache come to take, by Sampler and the kernel's own peak."""

    def __init__(self, subject):
        self._subject, self._pid = subject, subject.pid
        self.page_cache_bytes = self.qemu_bytes = 0

    def __enter__(self):
        host.reset_peak(self._pid)
        self._qemu_before = host.status_bytes(self._pid, "VmRSS")
        self._cache_before = host.page_cache_bytes()
        self._sampler = host.Sampler(self._look).__enter__()
        return self

    def _look(self):
        self.page_cache_bytes = max(self.page_cache_bytes, host.page_cache_bytes() - self._cache_before)
        with contextlib.suppress(OSError, KeyError):  # when QEMU has ended
            self.qemu_bytes = max(self.qemu_bytes, host.status_bytes(self._pid, "VmHWM") - self._qemu_before)
            self._subject.cpu_seconds()

    def __exit__(self, *_):
        self._sampler.__exit__()
        self._look()


def turn(way, subject, place):
    """Figures of one turn; the files that were made are in `place` afterwards. Raises whatever goes wrong."""
    place.mkdir(parents=True)
    quiet = (time.time(), time.time() + BEFORE_S)
    time.sleep(BEFORE_S)
    way.prepare(subject, place)
    host.drop_caches()
    host.read_files(way.programs)
    figures = {"at": host.utc(), "load": os.getloadavg()[0], **subject.used()}
    bytes_before = host.allocated_bytes(place)

    with Peaks(subject) as peaks:
        cpu_before, begin = subject.cpu_seconds(), time.time()
        taken = way.take(subject, place)
        done = time.time()
        if not way.durable:
            host.make_durable(place)
        end, cpu = time.time(), subject.cpu_seconds() - cpu_before

    pauses = subject.pauses()
    helpers = sum(usage["user_s"] + usage["system_s"] for usage in taken.usages)
    figures |= {
        "pause_ms": overlap(pauses, begin, end) * 1000,
        "done_ms": (done - begin) * 1000,
        "durable_ms": (end - begin) * 1000,
        "bytes": host.allocated_bytes(place) - bytes_before,
        "helpers_cpu_s": helpers, "qemu_cpu_s": cpu, "cpu_s": helpers + cpu,
        "helpers_peak_bytes": max((usage["peak_rss_bytes"] for usage in taken.usages), default=0),
        "qemu_growth_bytes": peaks.qemu_bytes,
        "page_cache_growth_bytes": peaks.page_cache_bytes,
        **speeds(subject, quiet, (begin, max(end, begin + WINDOW_S))),
        **taken.own,
    }
    way.forget(subject, place)
    return figures


def overlap(pauses, begin, end):
    """Seconds of the pauses that began in a span. An event's time is QEMU's, of the same clock."""
    return sum(resumed - stopped for stopped, resumed in pauses if begin - 0.001 <= stopped <= end)


def speeds(subject, quiet, window):
    """The guest's work a second before and with a way, and the ratio; missing where its meter was silent."""
    during = subject.wait_work(*window)
    before = subject.speed.work(*quiet, subject.pauses())
    if not before or during is None:
        return {}
    return {"speed_before": before, "speed_with": during, "speed_ratio": during / before,
            "speed_window_s": window[1] - window[0]}
