# SPDX-License-Identifier: Apache-2.0
"""vmsieve's ways. Disks are left out (`--disk none`), as the peers leave them out."""

import json
import os
import time

from . import host
from .way import Taken, Way

BEAT_S = 2  # between the checkpoint that an increment builds on and the increment


class Save(Way):
    ours = True
    durable = True
    programs = (host.VMSIEVE,)

    def __init__(self, name, title, *options, note=""):
        super().__init__(name, title, note)
        self.options = options

    def prepare(self, subject, place):
        if not host.VMSIEVE.exists():
            raise host.NotThere(f"there is no {host.VMSIEVE}")

    def vmsieve(self, subject, place, *arguments):
        told, usage = subject.run([host.VMSIEVE, *arguments, "--json"], env=dict(os.environ, VMSIEVE_STORE=str(place)))
        return json.loads(told), usage

    def save(self, subject, place):
        return self.vmsieve(subject, place, "save", subject.target, "--disk", "none", *self.options)

    def take(self, subject, place):
        saved, usage = self.save(subject, place)
        return Taken([usage], {"save": saved})

    def restores(self, place):
        if "--paused" in self.options:
            return {}  # as a live one is

        def back(way):
            def restore(restart):
                newest = max((place / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
                (newest / "working-set.hint").unlink(missing_ok=True)  # what an earlier restore has noted
                return restart.vmsieve(newest.name, way, place)
            return restore
        return {"lazy": back("--lazy"), "eager": back("--eager")}


class Increment(Save):
    """The one before is not measured."""

    def prepare(self, subject, place):
        super().prepare(subject, place)
        self.save(subject, place)
        time.sleep(BEAT_S)

    def forget(self, subject, place):
        self.vmsieve(subject, place, "untrack", subject.target)


def save_ways(*names):
    """All of them, or those with these names."""
    ways = [Save(f"{mode}-{compression}", f"vmsieve save --{mode} --compress {compression}",
                 f"--{mode}", "--compress", compression)
            for mode in ("paused", "live") for compression in ("none", "lz4", "zstd")]
    ways.append(Increment("incremental", "vmsieve save --incremental (zstd)", "--incremental",
                          note=f"{BEAT_S} s after the one before; the guest's writes are noted meanwhile"))
    return [way for way in ways if not names or way.name in names]
