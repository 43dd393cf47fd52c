# SPDX-License-Identifier: Apache-2.0
"""Real guests for tests: boot one, watch it verify itself, end it.

    with Guest(mem_mib=1024, memory="memfd") as guest:
        guest.wait_ready()
        ...                      # save it, restore it, hurt it
        guest.wait_rounds(3)     # it still verifies all of its memory

Standard library only. The kernels, the initramfs and QEMU 10.0 come from
scripts/lab.sh, which is run when something is missing.
"""

from .guest import Guest, kernel_path
from .host import HostHugepages, Unavailable, end_process, lab, lab_has, process_exists, wait_until
from .qmp import Qmp, QmpError
from .serial import GuestFailed, Serial

__all__ = [
    "Guest", "GuestFailed", "HostHugepages", "Qmp", "QmpError", "Serial", "Unavailable",
    "end_process", "kernel_path", "lab", "lab_has", "process_exists", "wait_until",
]
