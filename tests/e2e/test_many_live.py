# SPDX-License-Identifier: Apache-2.0
"""Many live saves and increments of a guest that writes all the time; each copy, in which all that was left out
reads as 0x5a, verifies all of its memory, and so does the original."""

import concurrent.futures
import random
import time

from tests.conftest import LONG, monitor
from tests.lab import Guest, Serial

SAVES = 1000 if LONG else 100
BATCH = 10
AT_ONCE = 2  # copies: for each a core
ROUNDS = 4   # after so many, a guest has verified everything


def judge(vmsieve, tmp_path, saved):
    serial = tmp_path / f'{saved["checkpoint"]}.serial'
    report = vmsieve.restore(saved["checkpoint"], serial, "--omitted-fill", "0x5a",
                             "--qmp", tmp_path / f'{saved["checkpoint"]}.qmp')
    try:
        Serial(serial).wait_rounds(ROUNDS, timeout=180)
    finally:
        vmsieve.kill(report["pid"])


def test_every_copy_of_a_hundred_runs_on(vmsieve, tmp_path):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Guest(mem_mib=384, smp=2, selfcheck={"busy": 1, "churn_mib": 96, "anon_mib": 32, "tmpfs_mib": 8},
               hook="/bin/hazard counter 32 &") as guest, \
            concurrent.futures.ThreadPoolExecutor(AT_ONCE) as judges:
        guest.wait_ready()
        guest.serial.wait_for("hazard: counted", 120, guest.check_alive)
        for batch in range(SAVES // BATCH):
            # Whole batches of increments: a full live save of a tracked guest goes their way.
            ways = ["--incremental"] if batch % 3 == 2 else ["--live"]
            saves = []
            for turn in range(BATCH):
                time.sleep(moments.uniform(0, 0.2))
                # A small buffer makes the guest's writes wait for the store.
                small = ["--buffer-mib", "1"] if turn % 2 else []
                saves.append(vmsieve.save(guest.qmp_path, *ways, "--compress", "lz4", *small))
                assert saves[-1]["mode"] == "live"
                assert saves[-1]["introspection"]["used"], saves[-1]["introspection"]["reason"]
            guest.wait_rounds(1)
            vmsieve.run("untrack", guest.qmp_path)
            monitor(guest, "stop")  # the copies need the cores
            list(judges.map(lambda saved: judge(vmsieve, tmp_path, saved), saves))
            monitor(guest, "cont")
            vmsieve.run("rm", *(saved["checkpoint"] for saved in saves))
        guest.wait_rounds(ROUNDS)
