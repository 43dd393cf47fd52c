# SPDX-License-Identifier: Apache-2.0
"""What is measured on the host: helper programs, processes' time and memory, files, limits."""

import itertools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import threading
import time

from tests.lab import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
VMSIEVE = pathlib.Path(os.environ.get("VMSIEVE", ROOT / "build" / "release" / "vmsieve"))
BUILD = ROOT / "build"
TICKS = os.sysconf("SC_CLK_TCK")

_numbers = itertools.count(1)


class NotThere(Exception):
    """What a way needs is not on this machine."""


# ---- programs --------------------------------------------------------------

def helper():
    """The path of helper.c's program, which is built when it is not there or old."""
    source, program = pathlib.Path(__file__).with_name("helper.c"), BUILD / "bench-helper"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-pthread", "-o", program, source], check=True)
    return program


def need(program):
    if not shutil.which(program):
        raise NotThere(f"there is no {program}")
    return program


class Usage:
    """What a command and its children use: `words` stand before it and write the figures into a file."""

    def __init__(self, folder):
        self.path = folder / f"usage-{next(_numbers)}.json"
        self.words = [str(helper()), "run", str(self.path)]

    def read(self, limit=120):
        """The figures, once the command has ended; raises when it failed."""
        wait_until(self.path.exists, limit, "the end of a helper process", interval=0.001)
        figures = json.loads(self.path.read_text(encoding="ascii"))
        self.path.unlink()
        if figures.pop("status"):
            raise RuntimeError(f"a helper process failed: {self.words}")
        return figures


def run(folder, command, limit=300, **more):
    """Runs a command; (what it printed, what it used)."""
    usage = Usage(folder)
    done = subprocess.run([*usage.words, *map(str, command)], text=True, capture_output=True, timeout=limit,
                          check=False, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{pathlib.Path(command[0]).name}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout, usage.read()


# ---- processes -------------------------------------------------------------

def cpu_seconds(path, children=False):
    """Of /proc/PID or /proc/PID/task/TID; also of its children that have ended."""
    words = pathlib.Path(path, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return sum(map(int, words[11:15 if children else 13])) / TICKS


def reset_peak(pid):
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def status_bytes(pid, name):
    """A line of /proc/PID/status that counts KiB, as VmHWM."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def page_cache_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return sum(int(lines[name].split()[0]) for name in ("Cached", "Buffers")) << 10


class Sampler:
    """With it: looks again and again, in a thread of its own, at what has no peak or is gone in the end."""

    def __init__(self, *looks, interval=0.03):
        self._looks, self._interval = looks, interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._end.wait(self._interval):
            for look in self._looks:
                look()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


# ---- files -----------------------------------------------------------------

def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def allocated_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in files_in(folder))


def make_durable(folder):
    """All files in it, and their names."""
    for path in [*files_in(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def read_files(paths):
    """Brings them into the page cache; a name without a folder is a program's."""
    for path in filter(None, map(shutil.which, map(str, paths))):
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass


def free_bytes(folder):
    return shutil.disk_usage(folder).free


# ---- limits ----------------------------------------------------------------

def disk_rate(folder, mib=1024):
    """Bytes a second that the disk takes, without a page cache."""
    path = folder / "limit"
    try:
        done = subprocess.run([helper(), "disk", path, str(mib)], check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout)
    finally:
        path.unlink(missing_ok=True)


def memory_rate():
    """Bytes a second that one core copies."""
    return int(subprocess.run([helper(), "memory", "256"], check=True, stdout=subprocess.PIPE, text=True).stdout)


# ---- what machine this is --------------------------------------------------

def first_line(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return next(iter(done.stdout.splitlines()), "")


def machine():
    cpus = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    mount = first_line("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", "-T", str(BUILD))
    return {
        "cpu": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "disk": " ".join(mount.split()[1:]),
        "load_before": os.getloadavg()[0],
    }


def versions(qemus):
    return {
        "vmsieve": first_line(VMSIEVE, "--version"),
        "commit": first_line("git", "-C", ROOT, "describe", "--always", "--dirty"),
        **{f"QEMU {name}": first_line(path, "--version") for name, path in qemus.items()},
        "libvirt": first_line("virsh", "--version"),
        "zstd": first_line("zstd", "--version"),
        "makedumpfile": first_line("makedumpfile", "-v").removeprefix("makedumpfile: version "),
    }


def utc():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
