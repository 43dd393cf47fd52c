# SPDX-License-Identifier: Apache-2.0
"""File systems that qemu-guest-agent freezes for the pause: Debian's agent, in a real guest."""

import contextlib
import pathlib
import re
import socket
import subprocess
import threading
import time

import pytest

from tests.conftest import BINARY, LONG, is_running, random_moments
from tests.lab import Guest, Serial
from tests.lab.disks import Ledger, guest_with, image
from tests.lab.host import lab

SO_SNDBUFFORCE = 32  # socket(7)

AGENT = """
/bin/busybox mkdir -p /run /var/run /var/log
for wait in 1 2 3 4 5 6 7 8 9; do [ -c /dev/vport0p1 ] || [ -c /dev/vport1p1 ] || /bin/busybox sleep 1; done
/usr/sbin/qemu-ga -m virtio-serial -p /dev/vport?p1 > /run/agent.log 2>&1 &
"""


def agent_files():
    """The agent and its libraries, by their paths in the guest."""
    agent = lab("guest-agent") / "guest-agent" / "usr" / "sbin" / "qemu-ga"
    linked = subprocess.run(["ldd", str(agent)], capture_output=True, text=True, check=True).stdout
    return {"/usr/sbin/qemu-ga": agent, **{path: path for path in re.findall(r"(/lib\S+) \(", linked)}}


def agent_port(tmp_path):
    return ["-device", "virtio-serial-pci", "-chardev", f"socket,path={tmp_path}/agent,server=on,wait=off,id=agent",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]


def agent_guest(tmp_path, paths, runs=True):
    return guest_with(paths, extra=agent_port(tmp_path), hook=AGENT if runs else "", files=agent_files(), folder=tmp_path / "guest")


def needs_recovery(path, folder):
    """Is there anything in the journal of the file system in this image?"""
    copy = folder / f"{path.name}.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(path), str(copy)], check=True)
    told = subprocess.run(["dumpe2fs", "-h", str(copy)], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in told


def wait_for_agent(vmsieve, guest):
    for _ in range(20):
        saved = subprocess.run([str(BINARY), "save", str(guest.qmp_path), "--quiesce", "--quiesce-limit", "5", "--json"],
                               env=vmsieve.env, capture_output=True, check=False)
        if saved.returncode == 0:
            vmsieve.run("rm", vmsieve.json("log")["checkpoints"][-1]["checkpoint"])
            return
        time.sleep(1)
    raise AssertionError(saved.stderr)


@pytest.mark.parametrize("mode", [["--live"], ["--paused"], ["--incremental"]])
def test_file_systems_are_clean_at_the_checkpoint(vmsieve, tmp_path, mode):
    path = image(tmp_path / "a.qcow2")
    with agent_guest(tmp_path, [path]) as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        wait_for_agent(vmsieve, guest)
        ledger.wait_rounds(1, alive=guest.check_alive)
        saved = vmsieve.save(guest.qmp_path, "--quiesce", *mode)
        assert saved["frozen_file_systems"] == 1 and saved["warnings"] == []
        ledger.wait_rounds(2, alive=guest.check_alive)  # thawed
        assert not needs_recovery(pathlib.Path(saved["disks"]["disks"][0]["image"]), tmp_path)
        plain = vmsieve.save(guest.qmp_path)
        assert "frozen_file_systems" not in plain
        assert needs_recovery(pathlib.Path(plain["disks"]["disks"][0]["image"]), tmp_path)
        guest.kill()
    # The restored guest, which was frozen, is thawed.
    restored = vmsieve.restore(saved["checkpoint"], tmp_path / "second")
    assert "warnings" not in restored
    Ledger(Serial(tmp_path / "second")).wait_rounds(3)


def test_no_agent_or_one_that_is_silent(vmsieve, tmp_path):
    path = image(tmp_path / "a.qcow2")
    with agent_guest(tmp_path, [path], runs=False) as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        begun = time.monotonic()
        failed = vmsieve.fails("save", guest.qmp_path, "--quiesce", "--quiesce-limit", "2")
        assert "guest agent" in failed.stderr and time.monotonic() - begun < 30
        assert is_running(guest)
        ledger.wait_rounds(1, alive=guest.check_alive)
    assert {entry.name for entry in tmp_path.glob("*.qcow2")} == {"a.qcow2"}
    with guest_with([image(tmp_path / "b.qcow2")], folder=tmp_path / "other") as guest:
        Ledger(guest.serial).wait_rounds(1, alive=guest.check_alive)
        failed = vmsieve.fails("save", guest.qmp_path, "--quiesce")
        assert failed.code == 3 and "org.qemu.guest_agent.0" in failed.stderr


@pytest.mark.parametrize("words", ["x", '{"return": 1}\n', "x\n"])
def test_an_agent_that_talks_for_ever(vmsieve, tmp_path, words):
    """The test sits where the agent does, and never stops."""
    def talk():
        with listener.accept()[0] as client, contextlib.suppress(OSError):
            # So much that there is always more to be read: else it is silent now and then, after all.
            with contextlib.suppress(PermissionError):
                client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 256 << 20)
            while True:
                client.sendall(words.encode() * (1 << 20))
    with Guest(kernel=None, mem_mib=128, smp=1, extra=agent_port(tmp_path)) as guest, \
            socket.socket(socket.AF_UNIX) as listener:
        assert is_running(guest)  # QEMU has made its socket when it answers
        (tmp_path / "agent").unlink()
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        threading.Thread(target=talk, daemon=True).start()
        begun = time.monotonic()
        failed = vmsieve.fails("save", guest.qmp_path, "--quiesce", "--quiesce-limit", "2")
        assert "guest agent" in failed.stderr and time.monotonic() - begun < 15
        assert is_running(guest)


def test_a_save_that_is_killed_leaves_nothing_frozen(vmsieve, tmp_path):
    moments = random_moments()
    path = image(tmp_path / "a.qcow2")
    with agent_guest(tmp_path, [path]) as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        wait_for_agent(vmsieve, guest)
        for _ in range(30 if LONG else 6):
            save = subprocess.Popen([str(BINARY), "save", str(guest.qmp_path), "--quiesce"], env=vmsieve.env,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.05, 0.4))
            save.kill()
            save.wait()
            ledger.wait_rounds(2, alive=guest.check_alive)
        vmsieve.save(guest.qmp_path, "--quiesce")
        ledger.wait_rounds(1, alive=guest.check_alive)
