# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of one monitor and one OSD, which keeps its objects in memory, on loopback: for disks in rbd."""

import pathlib
import shutil
import socket
import subprocess
import tempfile
import uuid

from .host import Unavailable, die_with_parent, end_process

CONF = """[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
"""
POOL = "rbd"


class Cluster:
    """With it: the cluster, its pool POOL, and what makes images in it. Raises Unavailable where Ceph or QEMU's rbd
    driver is not installed."""

    def __init__(self):
        missing = [name for name in ("ceph", "ceph-mon", "ceph-osd", "rbd") if not shutil.which(name)]
        if missing:
            raise Unavailable(f'there is no {", ".join(missing)}')
        formats = subprocess.run(["qemu-img", "--help"], capture_output=True, text=True, check=False).stdout
        if " rbd" not in formats.partition("Supported formats")[2]:
            raise Unavailable("QEMU has no driver rbd (qemu-block-extra)")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vmsieve-ceph-"))
        self.conf = self.folder / "ceph.conf"
        self._daemons = []

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for daemon in self._daemons:
            end_process(daemon.pid)
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command, limit=60):
        done = subprocess.run([command[0], "-c", self.conf, *map(str, command[1:])], capture_output=True, text=True,
                              timeout=limit, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr[-500:]}")
        return done.stdout

    def _start(self):
        fsid, osd = uuid.uuid4(), uuid.uuid4()
        ports = free_ports(2)
        self.conf.write_text(CONF.format(fsid=fsid, folder=self.folder, ports=ports), encoding="ascii")
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        plain(["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
        plain(["ceph-authtool", keyring, "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *"])
        plain(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]", monmap])
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "a")
        self.run("ceph", "osd", "new", osd)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "0")
        self.run("ceph", "osd", "pool", "create", POOL, "8")

    def _daemon(self, program, name):
        with open(self.folder / f"{program}.out", "wb") as out:
            self._daemons.append(subprocess.Popen([program, "-c", self.conf, "-i", name, "-f"], stdin=subprocess.DEVNULL,
                                                  stdout=out, stderr=out, preexec_fn=die_with_parent))

    def take_in(self, path, name):
        """A file becomes the image POOL/name."""
        self.run("rbd", "import", path, f"{POOL}/{name}")

    def snapshots(self, name):
        return [line.split()[1] for line in self.run("rbd", "snap", "ls", f"{POOL}/{name}").splitlines()[1:]]


def plain(command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
