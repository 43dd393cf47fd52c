# SPDX-License-Identifier: Apache-2.0
"""Disks that are images in a Ceph cluster: a snapshot there is the checkpoint's disk."""

import json

import pytest

from tests.lab import Guest, Serial, Unavailable
from tests.lab.ceph import POOL, Cluster
from tests.lab.disks import HOOK, SMALL, Ledger, check_file_system, image, options

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def cluster():
    try:
        with Cluster() as running:
            yield running
    except Unavailable as error:
        pytest.skip(str(error))


def drive(name, conf):
    return ["-drive", f"if=none,id=d0,file=rbd:{POOL}/{name}:conf={conf},format=raw"]


def drive_of_node(name, conf):
    return ["-drive", f"if=none,id=d0,format=raw,file.driver=rbd,file.pool={POOL},file.image={name},file.conf={conf}"]


def node(name, conf):
    return ["-blockdev", f"driver=rbd,node-name=d0,pool={POOL},image={name},conf={conf}"]


def node_under_format(name, conf):
    return ["-blockdev", json.dumps({"driver": "raw", "node-name": "d0", "file": {
        "driver": "rbd", "pool": POOL, "image": name, "conf": str(conf)}})]


def two_nodes(name, conf):
    return ["-blockdev", f"driver=rbd,node-name=d0-file,pool={POOL},image={name},conf={conf}",
            "-blockdev", "driver=raw,node-name=d0,file=d0-file"]


@pytest.mark.parametrize("number, spelling", enumerate([drive, drive_of_node, node, node_under_format, two_nodes]))
def test_a_disk_in_a_cluster_comes_back(vmsieve, tmp_path, cluster, number, spelling):
    name = f"disk{number}"
    folder = tmp_path / "images"
    folder.mkdir()
    cluster.take_in(image(tmp_path / "made.raw", form="raw"), name)
    # One in a file too: both of one instant.
    beside = image(folder / "b.qcow2")
    file_options, _ = options([beside])
    file_options = [option.replace("disk0", "d1") for option in file_options]
    with Guest(hook=HOOK.format(disks="vda vdb"), mem_mib=256, smp=2, drivers=True, selfcheck=SMALL,
               folder=tmp_path / "guest",
               extra=[*spelling(name, cluster.conf), "-device", "virtio-blk-pci,drive=d0", *file_options]) as guest:
        ledger = Ledger(guest.serial)
        ledger.wait_rounds(1, alive=guest.check_alive)
        assert "--disk internal" in vmsieve.fails("save", guest.qmp_path).stderr
        saves = []
        for _ in range(2):
            saves.append(vmsieve.save(guest.qmp_path, "--disk", "internal"))
            ledger.wait_rounds(1, alive=guest.check_alive)
        assert {disk["image"] for disk in saves[0]["disks"]["disks"]} == {f"rbd:{POOL}/{name}", str(beside)}
        assert cluster.snapshots(name) == [f'vmsieve-{saved["checkpoint"]}' for saved in saves]
        assert "--disk-folder" in vmsieve.fails("restore", saves[0]["checkpoint"]).stderr
        for saved in saves:
            serial = tmp_path / f'{saved["checkpoint"]}.serial'
            back = vmsieve.restore(saved["checkpoint"], serial, "--disk-folder", folder)
            copy = Ledger(Serial(serial))
            copy.wait_rounds(3)
            again = vmsieve.save(back["qmp"])  # a VM like any other
            copy.wait_rounds(1)
            vmsieve.run("rm", again["checkpoint"])
            vmsieve.kill_restored()
            for path in back["disks"]:
                check_file_system(folder / path, tmp_path)
        assert vmsieve.json("rm", saves[0]["checkpoint"])["untidy_disks"] == []
        assert cluster.snapshots(name) == [f'vmsieve-{saves[1]["checkpoint"]}']
        ledger.wait_rounds(1, alive=guest.check_alive)
    # The VM is gone, and its lock with it; the cluster lets go of that by itself.
    assert vmsieve.json("rm", saves[1]["checkpoint"], timeout=180)["untidy_disks"] == []
    assert cluster.snapshots(name) == []
    failed = vmsieve.fails("show", saves[1]["checkpoint"])
    assert failed.code == 3


def test_what_is_gone_from_the_cluster_is_said(vmsieve, tmp_path, cluster):
    cluster.take_in(image(tmp_path / "made.raw", form="raw"), "gone")
    with Guest(kernel=None, mem_mib=64, folder=tmp_path / "guest",
               extra=[*drive("gone", cluster.conf), "-device", "virtio-blk-pci,drive=d0"]) as guest:
        saved = vmsieve.save(guest.qmp_path, "--disk", "internal")
        cluster.run("rbd", "snap", "rm", f'{POOL}/gone@vmsieve-{saved["checkpoint"]}')
        failed = vmsieve.fails("restore", saved["checkpoint"], "--disk-folder", tmp_path)
        assert "No such file or directory" in failed.stderr and f'vmsieve-{saved["checkpoint"]}' in failed.stderr
        assert vmsieve.json("rm", saved["checkpoint"])["untidy_disks"] == []
        again = vmsieve.save(guest.qmp_path, "--disk", "internal")
        away = cluster.conf.rename(tmp_path / "ceph.conf")
        untidy = vmsieve.json("rm", again["checkpoint"])["untidy_disks"]
        assert str(cluster.conf) in untidy[0]["reason"]
        away.rename(cluster.conf)
        assert cluster.snapshots("gone") == [f'vmsieve-{again["checkpoint"]}']
    cluster.run("rbd", "snap", "purge", f"{POOL}/gone", limit=120)
    cluster.run("rbd", "rm", f"{POOL}/gone", limit=120)
    assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
