# SPDX-License-Identifier: Apache-2.0
"""Guests under loads of the kinds that checkpoints are measured with (tests/guests/workload).

    with workload.guest_with({"db": "hold compressible 1024", "disk": "files /vda 64"}, [image]) as guest:
        loads = workload.Loads(guest)
        loads.wait_ready()
        alone, _ = loads.speed_during(8)
        saving, saves = loads.speed_during(8, lambda: save(guest))
        saving["db"] / alone["db"]
"""

import re
import statistics
import time

from . import disks
from .guest import Guest
from .host import wait_until

LINE = re.compile(r"workload: (\S+) (?:(ready)|speed (\d+))\r?\n")
# Beside loads: what selfcheck holds is little, it verifies for ever.
SMALL = {"churn_mib": 16, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 4, "procs": 2}


def hook(loads, names=()):
    """A hook that starts `loads`, {name: kind and arguments}. The disks called `names` in the guest are mounted
    before; the file system of the first one is in /vda, for kinds that want a folder."""
    mount = disks.MOUNT.format(disks=" ".join(names)) if names else ""
    # One that ends says so: else it would be a load of nothing.
    start = '( /bin/workload {name} {rest}; echo "workload: {name} FAIL ended with status $?" ) &\n'
    return mount + "".join(start.format(name=name, rest=rest) for name, rest in loads.items())


def guest_with(loads, images=(), model="virtio-blk", cache="writeback", extra=(), **more):
    """A Guest under these loads, with a disk for each image (disks.image); `more` is for Guest."""
    options, names = disks.options(images, model, cache=cache) if images else ([], [])
    parameters = {"drivers": bool(images), "selfcheck": SMALL, **more}
    guest = Guest(hook=hook(loads, names) + parameters.pop("hook", ""), extra=[*options, *extra], **parameters)
    guest.loads = tuple(loads)
    return guest


class Loads:
    """What loads say on a console: that of a guest of guest_with(), or that of a guest restored from it,
    Loads(serial=Serial(path), names=...), which says nothing of ready any more."""

    def __init__(self, guest=None, serial=None, names=None, alive=None):
        self.serial = serial or guest.serial
        self.names = tuple(names or guest.loads)
        self.alive = alive or (guest.check_alive if guest else lambda: None)

    def check(self):
        """Raises GuestFailed when one has found something wrong."""
        self.alive()
        self.serial.check()

    def are_ready(self):
        said = {found.group(1) for found in LINE.finditer(self.serial.text()) if found.group(2)}
        return said.issuperset(self.names)

    def wait_ready(self, timeout=180):
        """Until all have filled what they fill."""
        def all_ready():
            self.check()
            return self.are_ready()
        wait_until(all_ready, timeout, f"loads {', '.join(self.names)} ready")

    def speeds(self, name):
        """What one has told, once a second, oldest first: units of its kind in a second of the guest's."""
        told = LINE.finditer(self.serial.text())
        return [int(found.group(3)) for found in told if found.group(1) == name and found.group(3)]

    def wait_speeds(self, count, timeout=60):
        """Until each has told its speed `count` more times."""
        self._wait_told({name: len(self.speeds(name)) + count for name in self.names}, timeout)

    def _wait_told(self, counts, timeout):
        def told():
            self.check()
            return all(len(self.speeds(name)) >= count for name, count in counts.items())
        wait_until(told, timeout, f"so many speeds of each load: {counts}")

    def told_during(self, seconds, work=None):
        """({name: the speeds of seconds within so many from now, at least one}, what each call of `work` returned).
        `work` is called again and again; without it nothing is done. The guest's clock stands still with it: a
        pause is in none of the speeds."""
        before = {name: len(self.speeds(name)) for name in self.names}
        end, results = time.monotonic() + seconds, []
        while time.monotonic() < end:
            if work:
                results.append(work())
            else:
                time.sleep(min(0.1, max(0, end - time.monotonic())))
        # The first one tells also of what was before.
        self._wait_told({name: before[name] + 2 for name in self.names}, 60)
        return {name: self.speeds(name)[before[name] + 1:] for name in self.names}, results

    def speed_during(self, seconds, work=None):
        """As told_during(), with the median of each one's speeds."""
        told, results = self.told_during(seconds, work)
        return {name: statistics.median(speeds) for name, speeds in told.items()}, results
