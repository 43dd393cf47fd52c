# SPDX-License-Identifier: Apache-2.0
"""How guests are booted for the ways that need one of their own."""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile

from tests.lab import Guest
from tests.lab import disks as lab_disks

from .kinds import KINDS
from .restart import Restart, answer_port
from .subject import QemuSubject, end_processes_of

READY_S = 900


@dataclasses.dataclass(frozen=True)
class Setting:
    """QEMU's version, what backs the guest's memory, and what else differs.

    in_memory   the guest's own files (its memory, where that is one) lie in tmpfs
    """

    name: str
    title: str
    qemu: str = "10.0"
    memory: str = "plain"
    append: str = ""
    devices: tuple = ()
    drivers: bool = False
    in_memory: bool = False

    def guest(self, kind_name, mem_mib, folder):
        kind = KINDS[kind_name]
        names, disk_options = (), []
        if kind.disk:
            image = lab_disks.image(folder / "disk.qcow2", size_mib=mem_mib)
            disk_options, names = lab_disks.options([image])
        return Guest(qemu=self.qemu, memory=self.memory, mem_mib=mem_mib, smp=2, name="bench", folder=folder,
                     append=self.append, drivers=self.drivers or kind.disk, selfcheck=kind.selfcheck(mem_mib),
                     hook=kind.hook(mem_mib, names), extra=[*answer_port(folder), *self.devices, *disk_options])

    @contextlib.contextmanager
    def boot(self, kind_name, mem_mib, folder):
        """A Subject that is ready, at work and tells its speed."""
        home = pathlib.Path(tempfile.mkdtemp(prefix="vmsieve-bench-", dir="/dev/shm" if self.in_memory else folder))
        guest = self.guest(kind_name, mem_mib, home)
        try:
            with guest:
                with contextlib.closing(QemuSubject(guest, folder, KINDS[kind_name].speed)) as subject:
                    guest.wait_ready(timeout=READY_S)
                    subject.wait_at_work(KINDS[kind_name], READY_S)
                    yield subject
        finally:
            end_processes_of(home)
            shutil.rmtree(home, ignore_errors=True)

    def restart(self, subject):
        """Ends the guest; what new QEMUs are started with in its place."""
        subject.guest.kill()
        return Restart(subject.guest)

    def programs(self):
        """{version: QEMU} for the page."""
        return {self.qemu: Guest(qemu=self.qemu, kernel=None).qemu_path()}


QEMU_10 = Setting("qemu-10.0", "QEMU 10.0")
QEMU_7 = Setting("qemu-7.2", "QEMU 7.2", qemu="7.2")
SHARED_FILE = Setting("shared-file", "QEMU 10.0, memory is a shared file in tmpfs", memory="file", in_memory=True)
BALLOON = Setting("balloon", "QEMU 10.0, free page reporting by virtio-balloon", drivers=True,
                  devices=("-device", "virtio-balloon-pci,free-page-reporting=on"))
INIT_ON_FREE = Setting("init-on-free", "QEMU 10.0, guest kernel with init_on_free=1", append="init_on_free=1")
