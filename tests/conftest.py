# SPDX-License-Identifier: Apache-2.0
"""What the tests with real guests share."""

import json
import os
import pathlib
import random
import subprocess

import pytest

from tests.lab import Serial, end_process, lab_has

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("VMSIEVE", ROOT / "build" / "release" / "vmsieve"))
LONG = bool(os.environ.get("VMSIEVE_LONG"))


# Guest kernels of the default run; the others are run with --matrix, which the long run implies.
KERNELS = ["6.1", "6.12", "newest"]
MORE_KERNELS = ["5.10", "6.1-rt", "6.12-generic", "sid"]


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", default=LONG,
                     help="also what is marked as matrix: more guest kernels and options")


def pytest_configure(config):
    config.addinivalue_line("markers", "matrix: only with --matrix, or in the long run")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--matrix"):
        return
    for item in items:
        if item.get_closest_marker("matrix"):
            item.add_marker(pytest.mark.skip(reason="only with --matrix, or with VMSIEVE_LONG=1"))


def need_kernel(request, kernel):
    """Skips when the kernel would have to be downloaded first, which only a --matrix run does."""
    if not request.config.getoption("--matrix") and not lab_has(f"kernels/{kernel}"):
        pytest.skip(f"guest kernel {kernel} is not in the lab: scripts/lab.sh kernel-{kernel}")


class Failed(Exception):
    """The command failed: its exit code and what it said."""

    def __init__(self, result):
        super().__init__(f"exit {result.returncode}: {result.stderr.strip()}")
        self.code = result.returncode
        self.stderr = result.stderr
        self.stdout = result.stdout


class Vmsieve:
    """The command, with a store of its own; kills the QEMUs that it restored."""

    def __init__(self, store):
        self.store = pathlib.Path(store)
        self.pids = []
        self.env = dict(os.environ, VMSIEVE_STORE=str(store))

    def run(self, *arguments, timeout=180):
        """Runs the command; its text, or Failed."""
        result = subprocess.run([str(BINARY), *map(str, arguments)], env=self.env, text=True,
                                capture_output=True, timeout=timeout, check=False)
        if result.returncode != 0:
            raise Failed(result)
        return result.stdout

    def json(self, *arguments, timeout=180):
        arguments = list(arguments)
        at = arguments.index("--") if "--" in arguments else len(arguments)
        arguments.insert(at, "--json")
        return json.loads(self.run(*arguments, timeout=timeout))

    def fails(self, *arguments):
        """Runs the command, which must fail with one sentence; the Failed."""
        with pytest.raises(Failed) as failed:
            self.run(*arguments)
        text = failed.value.stderr.strip()
        assert text.startswith("vmsieve: "), text
        return failed.value

    def save(self, vm, *options):
        return self.json("save", vm, *options)

    def restore(self, checkpoint, serial, *options, extra=()):
        arguments = ["restore", checkpoint, "--set", f"serial=file:{serial}", *options]
        if extra:
            arguments += ["--", *extra]
        report = self.json(*arguments)
        self.pids.append(report["pid"])
        return report

    def kill_restored(self):
        for pid in list(self.pids):
            self.kill(pid)

    def kill(self, pid):
        """One that was restored. It is forgotten: in a long run its number is some other process's later."""
        end_process(pid)
        self.pids.remove(pid)


def monitor(guest, command, **arguments):
    """One command through the monitor that the lab keeps for tests."""
    with guest.qmp() as qmp:
        return qmp.execute(command, **arguments)


def hmp(guest, line):
    with guest.qmp() as qmp:
        return qmp.human(line)


def is_running(guest):
    return monitor(guest, "query-status")["running"]


def is_protected(guest):
    """Does a userfaultfd hold QEMU's memory? VmFlags uw: registered for write protection."""
    with open(f"/proc/{guest.pid}/smaps", encoding="ascii") as smaps:
        return any(" uw" in line for line in smaps if line.startswith("VmFlags"))


def random_moments():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def judge(vmsieve, tmp_path, checkpoint, name, rounds=3):
    """A copy in which all that was left out reads as 0x5a runs on clean."""
    serial = tmp_path / f"{name}.serial"
    vmsieve.restore(checkpoint, serial, "--omitted-fill", "0x5a")
    Serial(serial).wait_rounds(rounds, timeout=180)
    vmsieve.kill_restored()


@pytest.fixture
def vmsieve(tmp_path):
    command = Vmsieve(tmp_path / "store")
    yield command
    command.kill_restored()
