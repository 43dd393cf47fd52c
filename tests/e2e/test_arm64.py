# SPDX-License-Identifier: Apache-2.0
"""Guests on arm64: the same promises as on x86-64."""

import random
import time

import pytest

from tests.conftest import LONG, monitor
from tests.lab import Guest, Qmp, Serial

FIRMWARE = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"


def save_used(vmsieve, vm, *options):
    saved = vmsieve.save(vm, *options)
    assert saved["introspection"]["used"], saved["introspection"]["reason"]
    assert saved["introspection"]["reason"] == ""
    assert saved["pages"]["free"] * 4096 > 256 << 20
    return saved


def round_trip(vmsieve, tmp_path, guest):
    """Save, kill, restore with 0x5a for what was left out, and all of it once more."""
    guest.wait_ready()
    guest.wait_rounds(1)
    saved = save_used(vmsieve, guest.qmp_path)
    guest.wait_rounds(1)
    guest.kill()
    serial = tmp_path / "second.serial"
    first = vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a")
    Serial(serial).wait_rounds(5)
    again = save_used(vmsieve, first["qmp"])
    vmsieve.kill_restored()
    serial = tmp_path / "third.serial"
    vmsieve.restore(again["checkpoint"], serial, "--omitted-fill", "0x5a")
    Serial(serial).wait_rounds(5)


@pytest.mark.parametrize("memory", ["plain", *(pytest.param(memory, marks=pytest.mark.matrix)
                                               for memory in ("memfd", "file", "numa"))])
def test_guest_cannot_tell(vmsieve, tmp_path, memory):
    folder = tmp_path / "guest"
    with Guest(arch="aarch64", memory=memory, folder=folder) as guest:
        round_trip(vmsieve, tmp_path, guest)


# Pages of 16 KiB and, with a processor that has them, addresses of 52 bits; without page-table isolation
# (6.1 on cortex-a57 with randomised addresses has it); another QEMU.
@pytest.mark.matrix
@pytest.mark.parametrize("kernel,cpu,qemu,append", [
    ("16k", "cortex-a76", "7.2", ""),
    ("16k", "max", "7.2", ""),
    ("newest", "max", "7.2", ""),
    ("6.1", "cortex-a57", "7.2", "kpti=off nokaslr"),
    ("6.1", "cortex-a57", "10.0", ""),
])
def test_other_kernels_and_processors(vmsieve, tmp_path, kernel, cpu, qemu, append):
    with Guest(arch="aarch64", kernel=kernel, cpu=cpu, qemu=qemu, append=append, folder=tmp_path / "guest") as guest:
        round_trip(vmsieve, tmp_path, guest)


@pytest.mark.matrix
def test_processors_that_are_off(vmsieve, tmp_path):
    with Guest(arch="aarch64", smp=3, append="maxcpus=2", folder=tmp_path / "guest") as guest:
        round_trip(vmsieve, tmp_path, guest)


@pytest.mark.matrix
def test_omitted_pages_may_hold_anything(vmsieve, tmp_path):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Guest(arch="aarch64", smp=4, selfcheck={"busy": 1, "churn_mib": 512}) as guest:
        guest.wait_ready()
        for turn in range(50 if LONG else 5):
            time.sleep(moments.uniform(0.05, 1.5))
            saved = save_used(vmsieve, guest.qmp_path, "--compress", "lz4")
            monitor(guest, "stop")
            serial = tmp_path / f"copy{turn}.serial"
            vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a")
            Serial(serial).wait_rounds(4)
            vmsieve.kill_restored()
            vmsieve.run("rm", saved["checkpoint"])
            monitor(guest, "cont")
            guest.wait_rounds(1)


def test_a_look_at_a_running_guest_does_not_stop_it(vmsieve):
    with Guest(arch="aarch64") as guest:
        guest.wait_ready()
        with guest.qmp() as qmp:
            seen = vmsieve.json("inspect", guest.qmp_path)
            assert seen["kernel"].startswith("6.1")
            assert seen["free_bytes"] > 256 << 20
            assert qmp.status() == "running"
            assert not [event for event in qmp.events if event["event"] == "STOP"]


def test_firmware_is_saved_in_full(vmsieve, tmp_path):
    with Guest(arch="aarch64", kernel=None, mem_mib=512, extra=["-bios", FIRMWARE]) as guest:
        time.sleep(3)
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"] is False
        assert saved["pages"]["free"] == 0
        assert saved["introspection"]["reason"]
        guest.kill()
        restored = vmsieve.restore(saved["checkpoint"], tmp_path / "serial")
        with Qmp(restored["qmp"]) as qmp:
            assert qmp.execute("query-status")["running"] is True


# The vCPUs run at EL2, which is not understood: everything is saved, and the guest runs on from that.
@pytest.mark.matrix
def test_kernel_with_virtualization_host_extensions_is_saved_in_full(vmsieve, tmp_path):
    with Guest(arch="aarch64", machine="virt,gic-version=3,virtualization=on", cpu="max", mem_mib=512,
               folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"] is False
        assert "exception level 2" in saved["introspection"]["reason"]
        guest.kill()
        serial = tmp_path / "second.serial"
        vmsieve.restore(saved["checkpoint"], serial)
        Serial(serial).wait_rounds(3)
