# SPDX-License-Identifier: Apache-2.0
"""Proof that nothing needed was left out: every omitted page reads as 0x5a after the restore, and the
guest, which was caught at a random moment of heavy work, runs on clean."""

import random
import time

from tests.conftest import LONG, monitor
from tests.lab import Guest, Serial


def test_omitted_pages_may_hold_anything(vmsieve, tmp_path):
    saves = 100 if LONG else 10
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Guest(mem_mib=1024, smp=4, selfcheck={"busy": 1, "churn_mib": 512}) as guest:
        guest.wait_ready()
        for turn in range(saves):
            time.sleep(moments.uniform(0.05, 1.5))
            saved = vmsieve.save(guest.qmp_path, "--compress", "lz4")
            assert saved["introspection"]["used"], saved["introspection"]["reason"]
            # The copy runs alone: on two cores the original would only slow it down.
            monitor(guest, "stop")
            serial = tmp_path / f"copy{turn}.serial"
            vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a")
            Serial(serial).wait_rounds(4)
            vmsieve.kill_restored()
            vmsieve.run("rm", saved["checkpoint"])
            monitor(guest, "cont")
            guest.wait_rounds(1)
