# SPDX-License-Identifier: Apache-2.0
"""`kill -9` of vmsieve at any instant of a save leaves the guest running and the store clean.

strace delivers SIGKILL to the saver's main thread at its N-th system call, for one N after the other: the
steps of a save (stop, device state, classification, reading, cont) are all its.
"""

import random
import subprocess
import time

import pytest

from tests.conftest import BINARY, LONG, is_running, monitor
from tests.lab import Guest, wait_until


@pytest.fixture(scope="module")
def guest():
    with Guest(mem_mib=512, smp=2, selfcheck={"churn_mib": 64}) as running:
        running.wait_ready()
        yield running


def traced_save(vmsieve, guest, *strace_options):
    return subprocess.run(["strace", *strace_options, str(BINARY), "save", guest.qmp_path, "--quiet"],
                          env=vmsieve.env, capture_output=True, text=True, timeout=120, check=False)


def assert_unharmed(vmsieve, guest):
    wait_until(lambda: is_running(guest), 5, "the guest runs again")
    folder = vmsieve.store / "checkpoints"

    def is_clean():
        listing = vmsieve.json("log") if vmsieve.store.exists() else {"checkpoints": [], "damaged": []}
        assert listing["damaged"] == []
        for checkpoint in listing["checkpoints"]:
            vmsieve.run("verify", checkpoint["checkpoint"])
            vmsieve.run("rm", checkpoint["checkpoint"])
        return not folder.exists() or all(is_begun(left) for left in folder.iterdir())

    # A child of the saver's, forked a moment before, may not have closed what it inherited yet: its lock too.
    wait_until(is_clean, 5, "nothing is left of the save")


def is_begun(folder):
    """Killed between making the folder and the file in it that tells of the writer: log, which only reads,
    leaves the folder alone (docs/format.md, "some objects"), the next save removes it."""
    return list(folder.iterdir()) == []


def assert_next_save_cleans(vmsieve, guest):
    saved = vmsieve.json("save", guest.qmp_path)["checkpoint"]
    assert [left.name for left in (vmsieve.store / "checkpoints").iterdir()] == [saved]


def sample(calls, count):
    """Calls 1..calls: all of them, or `count` spread at random, seed printed."""
    if calls <= count:
        return range(1, calls + 1)
    seed = random.randrange(1 << 32)
    print(f"{calls} calls, seed {seed}")
    return sorted(random.Random(seed).sample(range(1, calls + 1), count))


def test_killed_at_every_monitor_call(vmsieve, guest, tmp_path):
    """Every message to and from QEMU: the guest is stopped between two of them."""
    calls = "sendmsg,recvmsg,recvfrom,poll,ppoll"
    trace = tmp_path / "trace"
    whole = traced_save(vmsieve, guest, "-o", trace, "-e", f"trace={calls}")
    assert whole.returncode == 0, whole.stderr
    assert_unharmed(vmsieve, guest)
    count = len([line for line in trace.read_text().splitlines() if "(" in line and "---" not in line])
    assert count > 20
    for number in sample(count, 1000 if LONG else 20):
        traced_save(vmsieve, guest, "-o", "/dev/null", "-e", f"trace={calls}",
                    "-e", f"inject={calls}:signal=SIGKILL:when={number}")
        assert_unharmed(vmsieve, guest)
    assert_next_save_cleans(vmsieve, guest)
    guest.wait_rounds(3)


def test_killed_at_every_call_on_the_store(vmsieve, guest, tmp_path):
    calls = "openat,mkdir,mkdirat,rename,renameat,renameat2,fsync,fdatasync,unlink,unlinkat,flock,pwrite64,write"
    trace = tmp_path / "trace"
    whole = traced_save(vmsieve, guest, "-o", trace, "-e", f"trace={calls}")
    assert whole.returncode == 0, whole.stderr
    assert_unharmed(vmsieve, guest)
    count = len([line for line in trace.read_text().splitlines() if "(" in line and "---" not in line])
    for number in sample(count, 1000 if LONG else 20):
        traced_save(vmsieve, guest, "-o", "/dev/null", "-e", f"trace={calls}",
                    "-e", f"inject={calls}:signal=SIGKILL:when={number}")
        assert_unharmed(vmsieve, guest)
    assert_next_save_cleans(vmsieve, guest)
    guest.wait_rounds(3)


def test_killed_at_random_moments(vmsieve, guest):
    started = time.monotonic()
    vmsieve.run("save", guest.qmp_path)
    whole = time.monotonic() - started
    assert_unharmed(vmsieve, guest)
    for _ in range(200 if LONG else 15):
        process = subprocess.Popen([str(BINARY), "save", guest.qmp_path, "--quiet"], env=vmsieve.env,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, whole))
        process.kill()
        process.wait()
        assert_unharmed(vmsieve, guest)
    assert_next_save_cleans(vmsieve, guest)
    guest.wait_rounds(3)


def test_an_owner_s_pause_is_not_undone(vmsieve, guest):
    monitor(guest, "stop")
    try:
        for _ in range(5):
            process = subprocess.Popen([str(BINARY), "save", guest.qmp_path, "--quiet"], env=vmsieve.env,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0.05, 0.4))
            process.kill()
            process.wait()
            time.sleep(0.2)
            assert is_running(guest) is False
    finally:
        monitor(guest, "cont")
    assert_unharmed(vmsieve, guest)
