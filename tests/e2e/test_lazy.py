# SPDX-License-Identifier: Apache-2.0
"""Lazy restores: the guest runs before its memory is there, and cannot tell."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from tests.conftest import BINARY, LONG, Vmsieve, monitor, random_moments
from tests.lab import Guest, Qmp, Serial, end_process, process_exists, wait_until

BUSY = {"busy": 1, "churn_mib": 256}
SLOW = 20_000_000  # bytes a second


@pytest.fixture(scope="session")
def slow_reads(tmp_path_factory):
    """What makes vmsieve's store a slow one, when it is preloaded."""
    library = tmp_path_factory.mktemp("slow") / "slow_reads.so"
    source = pathlib.Path(__file__).parent.parent / "lab" / "slow_reads.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.fixture
def slow(vmsieve, slow_reads):
    """The command with a store of 20 MB/s."""
    vmsieve.env |= {"LD_PRELOAD": str(slow_reads), "SLOW_READS_BYTES": str(SLOW)}
    return vmsieve


@pytest.fixture(scope="module")
def store_of_busy(tmp_path_factory):
    """A store with one checkpoint of a busy guest with 4 vCPUs: (folder, id). No page compresses."""
    command = Vmsieve(tmp_path_factory.mktemp("busy") / "store")
    with Guest(mem_mib=1024, smp=4, selfcheck=BUSY) as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = command.save(guest.qmp_path, "--compress", "none")
    return command.store, saved["checkpoint"]


@pytest.fixture
def saved(vmsieve, store_of_busy):
    """The id of that checkpoint, in the command's own copy of the store."""
    store, checkpoint = store_of_busy
    subprocess.run(["cp", "-a", str(store), str(vmsieve.store)], check=True)
    return checkpoint


def is_filled(report):
    return not process_exists(report["filled_by"])


def log_of(report):
    return pathlib.Path(report["log"]).read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("memory", ["plain", "memfd", "hugetlb", pytest.param("numa", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("qemu", ["7.2", pytest.param("10.0", marks=pytest.mark.matrix)])
def test_guest_cannot_tell(vmsieve, tmp_path, memory, qemu):
    with Guest(qemu=qemu, memory=memory, mem_mib=768, smp=2, selfcheck=BUSY, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        saved = vmsieve.save(guest.qmp_path)
        guest.kill()
        for turn in range(100 if LONG and memory == "plain" else 1):
            serial = tmp_path / f"serial{turn}"
            # What was left out may read as anything.
            report = vmsieve.restore(saved["checkpoint"], serial, "--lazy", "--omitted-fill", "0x5a")
            assert report["mode"] == "lazy"
            Serial(serial).wait_rounds(3)
            wait_until(lambda: is_filled(report), 60, "all memory is there")
            Serial(serial).wait_rounds(2)
            assert log_of(report) == ""
            vmsieve.kill_restored()


def test_a_slow_store(slow, tmp_path, saved):
    """Rounds pass while most of the memory is still to come, and after that."""
    serial = tmp_path / "serial"
    report = slow.restore(saved, serial, "--lazy")
    Serial(serial).wait_rounds(1)
    wait_until(lambda: is_filled(report), 120, "all memory is there")
    Serial(serial).wait_rounds(3)


def test_a_save_waits_until_the_memory_is_there(slow, tmp_path, saved):
    report = slow.restore(saved, tmp_path / "serial", "--lazy")
    again = slow.save(report["qmp"])
    assert is_filled(report)
    assert again["introspection"]["used"], again["introspection"]["reason"]
    slow.kill_restored()
    serial = tmp_path / "again.serial"
    slow.restore(again["checkpoint"], serial, "--lazy")
    Serial(serial).wait_rounds(2)


def test_a_chain(vmsieve, tmp_path):
    with Guest(mem_mib=768, smp=2, selfcheck=BUSY, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        for _ in range(4):
            saved = vmsieve.save(guest.qmp_path, "--incremental")
            guest.wait_rounds(1)
        assert saved["tracking"]["incremental"]
        guest.kill()
        serial = tmp_path / "serial"
        report = vmsieve.restore(saved["checkpoint"], serial, "--lazy", "--wait")
        assert report["fill"]["faults"] > 0
        Serial(serial).wait_rounds(3)


def test_what_is_wanted_first_comes_first_the_next_time(vmsieve, tmp_path, saved):
    hint = vmsieve.store / "checkpoints" / saved / "working-set.hint"

    def restore(name, *options):
        serial = tmp_path / name
        report = vmsieve.restore(saved, serial, "--lazy", "--wait", *options)
        Serial(serial).wait_rounds(2)
        vmsieve.kill_restored()
        return report["fill"]

    assert restore("first")["first_jobs"] == 0
    noted = hint.read_text(encoding="ascii").splitlines()
    assert noted[0] == "vmsieve-working-set 1" and len(noted) > 10
    assert restore("second")["first_jobs"] > 0
    assert hint.read_text(encoding="ascii").splitlines() == noted
    assert restore("recording", "--record")["first_jobs"] == 0
    assert hint.read_text(encoding="ascii").splitlines() != noted
    # It is only a hint.
    hint.write_bytes(hint.read_bytes()[:-3])
    assert restore("damaged")["first_jobs"] == 0
    assert restore("again")["first_jobs"] > 0
    vmsieve.run("verify", saved)
    vmsieve.run("rm", saved)
    assert not hint.parent.exists()


def test_who_stays_with_the_vm_tells_how_it_ended(vmsieve, tmp_path, saved):
    for end, code in ((signal.SIGTERM, 0), (signal.SIGKILL, 9)):
        with subprocess.Popen([str(BINARY), "restore", saved, "--foreground", "--wait", "--json", "--set",
                               f"serial=file:{tmp_path}/{code}.serial"], env=vmsieve.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            report = ""
            for line in process.stdout:
                report += line
                if line == "}\n":
                    break
            pid = json.loads(report)["pid"]
            vmsieve.pids.append(pid)
            Serial(tmp_path / f"{code}.serial").wait_rounds(1)
            os.kill(pid, end)
            assert process.wait(timeout=30) == code
            assert ("ended with status 137" in process.stderr.read()) == (code == 9)


def test_killed_at_random_moments_no_guest_runs_on(slow, tmp_path, saved):
    moments = random_moments()
    ended = 0
    for turn in range(100 if LONG else 5):
        serial = tmp_path / f"serial{turn}"
        report = slow.restore(saved, serial, "--lazy")
        time.sleep(moments.uniform(0, 3 if LONG else 1.5))
        os.kill(report["filled_by"], signal.SIGKILL)
        try:
            wait_until(lambda: not process_exists(report["pid"]), 10, "the end of QEMU")
        except TimeoutError:
            # It was done, or the kill came too late.
            Serial(serial).wait_rounds(2)
        else:
            # The words follow QEMU's end.
            wait_until(lambda: "has died before all was there" in log_of(report), 10, "the guard's words")
            ended += 1
        Serial(serial).check()
        slow.kill_restored()
    assert ended > 0
    slow.run("verify", saved)


def test_stopped_for_good_the_guest_waits(slow, tmp_path, saved):
    serial = tmp_path / "serial"
    report = slow.restore(saved, serial, "--lazy")
    os.kill(report["filled_by"], signal.SIGSTOP)
    time.sleep(2)
    os.kill(report["filled_by"], signal.SIGCONT)
    Serial(serial).wait_rounds(2)


def test_qemu_that_ends_ends_the_server(slow, tmp_path, saved):
    report = slow.restore(saved, tmp_path / "serial", "--lazy")
    end_process(report["pid"])
    wait_until(lambda: is_filled(report), 10, "the end of the server")


def spoil(folder, number):
    """Other bytes in the middle of the checkpoint's memory."""
    path = folder / "memory"
    with open(path, "r+b") as file:
        file.seek(int(path.stat().st_size * (0.1 + 0.2 * number)))
        file.write(random.Random(number).randbytes(4096))


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_page_is_never_seen(vmsieve, tmp_path, saved, number):
    spoil(vmsieve.store / "checkpoints" / saved, number)
    serial = tmp_path / "serial"
    result = subprocess.run([str(BINARY), "restore", saved, "--lazy", "--wait", "--json", "--set",
                             f"serial=file:{serial}"], env=vmsieve.env, text=True, capture_output=True,
                            timeout=120, check=False)
    assert result.returncode == 6, result.stderr
    assert json.loads(result.stderr)["error"]["kind"] == "damaged"
    Serial(serial).check()


@pytest.mark.parametrize("memory", ["plain", "memfd"])
def test_an_eager_restore_fills_all_memory_before_the_guest_runs(vmsieve, tmp_path, memory):
    with Guest(mem_mib=512, smp=2, memory=memory, selfcheck={"churn_mib": 128}) as guest:
        guest.wait_ready()
        saved = vmsieve.save(guest.qmp_path)
        assert saved["pages"]["free"] > 0
        guest.kill()
        serial = tmp_path / "serial"
        report = vmsieve.restore(saved["checkpoint"], serial, "--eager", "--omitted-fill", "0x5a")
        assert report["mode"] == "eager" and "filled_by" not in report
        Serial(serial).wait_rounds(4)


def test_an_eager_restore_finds_damage_before_the_guest_runs(vmsieve, tmp_path, saved):
    spoil(vmsieve.store / "checkpoints" / saved, 0)
    serial = tmp_path / "serial"
    result = subprocess.run([str(BINARY), "restore", saved, "--eager", "--json", "--set", f"serial=file:{serial}"],
                            env=vmsieve.env, text=True, capture_output=True, timeout=120, check=False)
    assert result.returncode == 6, result.stderr
    assert json.loads(result.stderr)["error"]["kind"] == "damaged"
    assert Serial(serial).text() == ""


def test_the_log_tells_of_a_damaged_page(slow, tmp_path, saved):
    spoil(slow.store / "checkpoints" / saved, 4)
    report = slow.restore(saved, tmp_path / "serial", "--lazy")
    wait_until(lambda: not process_exists(report["pid"]), 60, "the end of QEMU")
    wait_until(lambda: "cannot be brought in" in log_of(report), 10, "the words in its log")
    Serial(tmp_path / "serial").check()


def test_where_it_is_not_possible_the_reason_is_told(vmsieve, tmp_path):
    filled = ["-object", "memory-backend-ram,id=filled,size=64M,prealloc=on", "-machine", "memory-backend=filled"]
    with Guest(kernel=None, mem_mib=64, smp=1, extra=filled, folder=tmp_path / "guest") as guest:
        saved = vmsieve.save(guest.qmp_path)
        guest.kill()
        report = vmsieve.restore(saved["checkpoint"], tmp_path / "serial")
        assert report["mode"] == "eager" and "RAM block filled" in report["eager_reason"]
        vmsieve.kill_restored()
        failed = vmsieve.fails("restore", saved["checkpoint"], "--lazy", "--set", "serial=null")
        assert failed.code == 7 and "not possible" in failed.stderr


def test_a_guest_that_stands_still_is_brought_back_so(vmsieve, tmp_path):
    with Guest(mem_mib=512, smp=1, selfcheck={"churn_mib": 64}, folder=tmp_path / "guest") as guest:
        guest.wait_ready()
        guest.wait_rounds(1)
        monitor(guest, "stop")
        saved = vmsieve.save(guest.qmp_path)
        guest.kill()
        serial = tmp_path / "serial"
        report = vmsieve.restore(saved["checkpoint"], serial, "--lazy")
        assert not report["running"]
        wait_until(lambda: is_filled(report), 60, "all memory is there")
        with Qmp(report["qmp"]) as qmp:
            qmp.execute("cont")
        Serial(serial).wait_rounds(2)
