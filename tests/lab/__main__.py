# SPDX-License-Identifier: Apache-2.0
"""Boots a guest by hand: python3 -m tests.lab boot --help"""

import argparse
import shlex
import sys
import tempfile
import time

from . import Guest, end_process
from .guest import ARCHES, MEMORIES


def boot(options, extra):
    folder = options.folder or tempfile.mkdtemp(prefix="vmsieve-guest-")
    guest = Guest(qemu=options.qemu, arch=options.arch, machine=options.machine, memory=options.memory,
                  mem_mib=options.mem_mib, smp=options.smp, accel=options.accel,
                  kernel=None if options.kernel == "none" else options.kernel,
                  append=options.append, extra=extra, name=options.name or "guest",
                  drivers=options.drivers, vga=options.vga, folder=folder, detached=True,
                  selfcheck=dict(item.split("=", 1) for item in options.selfcheck))
    begin = time.monotonic()
    guest.start()
    print(f"pid     {guest.pid}")
    print(f"qmp     {guest.qmp_path}")
    print(f"qmp 2   {guest.test_qmp_path}")
    print(f"serial  {guest.serial_path}")
    print(f"command {shlex.join(guest.command())}")
    if options.memory == "hugetlb":
        print(f"note    {options.mem_mib // 2} huge pages stay reserved on the host")
    print(f"to end  kill -9 {guest.pid}; rm -r {folder}", flush=True)
    if options.kernel != "none" and not options.no_wait:
        try:
            total, free, used = guest.wait_ready()
        except BaseException:
            end_process(guest.pid)
            raise
        print(f"ready   after {time.monotonic() - begin:.1f} s: {total} KiB in all, "
              f"{free} free, {used} in use")


def main():
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "boot", help="boot a guest that goes on running",
        epilog="Arguments after -- go to QEMU.")
    command.add_argument("--qemu", default="7.2", help="7.2, 5.2, 10.0, newest or a path (7.2)")
    command.add_argument("--arch", default="x86_64", choices=ARCHES)
    command.add_argument("--machine", help="q35, pc, microvm, virt (q35; virt with --arch aarch64)")
    command.add_argument("--memory", default="plain", choices=MEMORIES)
    command.add_argument("--mem-mib", type=int, default=1024, help="guest RAM in MiB (1024)")
    command.add_argument("--smp", type=int, default=2, help="virtual processors (2)")
    command.add_argument("--kernel", default="6.1",
                         help="6.1, 6.12, ..., a path, or none: stay in the firmware (6.1)")
    command.add_argument("--accel", default="tcg,thread=single")
    command.add_argument("--append", default="", help="more for the kernel command line")
    command.add_argument("--selfcheck", action="append", default=[], metavar="NAME=N",
                         help="a parameter of the workload, as busy=1")
    command.add_argument("--name")
    command.add_argument("--drivers", action="store_true", help="load the virtio drivers")
    command.add_argument("--vga", action="store_true", help="with a VGA adapter")
    command.add_argument("--folder", help="for its sockets and files (a new one)")
    command.add_argument("--no-wait", action="store_true", help="do not wait until it is ready")
    arguments, extra = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, extra = arguments[:at], arguments[at + 1:]
    boot(parser.parse_args(arguments), extra)


if __name__ == "__main__":
    main()
