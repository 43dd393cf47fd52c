# SPDX-License-Identifier: Apache-2.0
"""What the tests need of the host: processes, time, huge pages, the lab's files."""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pathlib
import signal
import subprocess
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Unavailable(Exception):
    """This host cannot give what a test needs; tests skip on it."""


def wait_until(condition, timeout, what, interval=0.05):
    """Returns the first true value of condition(), or raises TimeoutError naming `what`."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(interval)


def process_exists(pid):
    """True for a process that runs; a zombie counts as ended, once no thread of it still holds its memory."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return fields[0] not in "ZX" or int(fields[17]) > 1  # num_threads, proc(5)
    except (FileNotFoundError, ProcessLookupError):
        return False


def end_process(pid, timeout=10):
    """SIGKILL by process id, and waits until the process is gone; harmless when it is."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_until(lambda: not process_exists(pid), timeout, f"the end of process {pid}")
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def die_with_parent():
    """For Popen's preexec_fn: a test run that is killed leaves no QEMU behind."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.lru_cache(maxsize=None)
def lab(*wanted):
    """The lab's folder, after scripts/lab.sh made sure of what is wanted."""
    script = REPOSITORY / "scripts" / "lab.sh"
    done = subprocess.run([script, *wanted, "path"], check=False, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable(f'scripts/lab.sh {" ".join(wanted)}: {done.stderr.strip()}')
    return pathlib.Path(done.stdout.splitlines()[-1])


def lab_has(part):
    """Is it in the lab already, without a download? `part` is as 'kernels/5.10'."""
    return (lab() / part).exists()


class HostHugepages:
    """Reserves `mib` of 2 MiB huge pages on the host, besides those reserved before.

    Raises Unavailable when the host has not that much memory in one piece.
    """

    PATH = "/proc/sys/vm/nr_hugepages"

    def __init__(self, mib):
        self.pages = (mib + 1) // 2
        with self._alone():
            self._reserve()

    def _reserve(self):
        before = self._read()
        for _ in range(5):
            try:
                self._write(before + self.pages)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
                    raise
                raise Unavailable(f"{self.PATH}: {error.strerror}") from error
            got = self._read() - before
            if got >= self.pages:
                return
            # The host's memory is full of small pieces, of cached files most likely.
            pathlib.Path("/proc/sys/vm/compact_memory").write_text("1", encoding="ascii")
        self._write(before)
        raise Unavailable(f"only {max(got, 0)} of {self.pages} huge pages can be reserved")

    def release(self):
        with self._alone():
            self._write(max(0, self._read() - self.pages))
        self.pages = 0

    @staticmethod
    @contextlib.contextmanager
    def _alone():
        """Tests in other processes change the same number."""
        with open(pathlib.Path(tempfile.gettempdir()) / "vmsieve-lab-hugepages.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def _read(self):
        try:
            with open(self.PATH, encoding="ascii") as file:
                return int(file.read())
        except FileNotFoundError as error:
            raise Unavailable(f"{self.PATH}: the host kernel has no huge pages") from error

    def _write(self, pages):
        with open(self.PATH, "w", encoding="ascii") as file:
            file.write(str(pages))
