# SPDX-License-Identifier: Apache-2.0
"""Guests without a Linux kernel are saved and restored in full, with the reason shown."""

import os
import time

import pytest

from tests.conftest import hmp
from tests.lab import Guest, Qmp


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_firmware_prompt_is_saved_in_full(vmsieve, tmp_path, machine):
    with Guest(machine=machine, kernel=None, mem_mib=256, smp=2) as guest:
        time.sleep(2)  # SeaBIOS has drawn its prompt, or is on the way
        saved = vmsieve.save(guest.qmp_path)
        assert saved["introspection"]["used"] is False
        assert saved["pages"]["free"] == 0
        assert "VMCOREINFO" in saved["introspection"]["reason"] or "paging" in saved["introspection"]["reason"]
        memory = hmp(guest, "xp /64xb 0xf0000")
        guest.kill()
        restored = vmsieve.restore(saved["checkpoint"], tmp_path / "serial")
        with Qmp(restored["qmp"]) as qmp:
            assert qmp.execute("query-status")["running"] is True
            assert qmp.human("xp /64xb 0xf0000") == memory


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm")
def test_firmware_under_kvm(vmsieve, tmp_path):
    with Guest(kernel=None, mem_mib=256, smp=1, accel="kvm") as guest:
        saved = vmsieve.save(guest.qmp_path)
        assert saved["accelerator"] == "kvm"
        assert saved["introspection"]["used"] is False
        guest.kill()
        restored = vmsieve.restore(saved["checkpoint"], tmp_path / "serial")
        with Qmp(restored["qmp"]) as qmp:
            assert qmp.execute("query-status")["running"] is True
            assert qmp.execute("query-kvm")["enabled"] is True
