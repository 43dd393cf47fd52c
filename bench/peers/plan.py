# SPDX-License-Identifier: Apache-2.0
"""Which ways are taken of which guests."""

import dataclasses

from . import domains, settings
from .dump_ways import dump_ways
from .libvirt_ways import libvirt_ways, newer_ways
from .qemu_ways import IgnoreShared, Migrate, Settled, SnapshotSave, mapped_ways, stream_ways
from .vmsieve_ways import save_ways

# vmsieve's in the guests that are booted for others: what those are compared with.
REFERENCE = ("paused-none", "live-zstd")

MAIN = (*stream_ways(), *mapped_ways(), SnapshotSave("snapshot-save", "QEMU snapshot-save into a qcow2 image"),
        *dump_ways(), *save_ways())


@dataclasses.dataclass(frozen=True)
class Part:
    """The ways of one setting."""

    setting: settings.Setting
    ways: tuple


EVERYTHING = (
    Part(settings.QEMU_10, MAIN),
    Part(settings.QEMU_7, (*stream_ways(), *save_ways(*REFERENCE))),
    Part(settings.SHARED_FILE, (
        Migrate("migrate", "QEMU migrate, stopped", restored=False),
        IgnoreShared("ignore-shared", "QEMU x-ignore-shared, stopped", False,
                     "no checkpoint by itself: the memory file goes on changing"),
        IgnoreShared("ignore-shared-copy", "QEMU x-ignore-shared, stopped, and a copy of the memory file", True,
                     "cp --sparse=always while the guest stands still; restored from the copy, which is mapped"),
        *save_ways(*REFERENCE))),
    Part(settings.BALLOON, (
        Settled("migrate", "QEMU migrate, stopped"), *save_ways(*REFERENCE))),
    Part(settings.INIT_ON_FREE, (
        Migrate("migrate", "QEMU migrate, stopped"), *save_ways(*REFERENCE))),
    Part(domains.SYSTEM, (*libvirt_ways(), *save_ways(*REFERENCE))),
    Part(domains.BACKPORTS, (*newer_ways(), *save_ways(*REFERENCE))),
)

QUICK = (Part(settings.QEMU_10, tuple(
    way for way in MAIN if way.name in ("migrate", "mapped-ram-multifd", "paused-zstd", "live-zstd", "incremental"))),)

# Where not all ways are taken.
FEW = ("migrate", "migrate-live", "migrate-zstd", "mapped-ram-multifd", "mapped-ram-direct", "background-snapshot",
       "paused-none", "live-lz4", "live-zstd", "incremental")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is done with a kind of guest unless told otherwise."""

    parts: tuple
    restores: bool
    rounds: int = 5


def some(names):
    return (Part(settings.QEMU_10, tuple(way for way in MAIN if way.name in names)),)


DEFAULTS = {
    "churned": Choice(EVERYTHING, True),
    "full": Choice(some((*FEW, "mapped-ram", "live-none")), True),
}
OTHERS = Choice(some(FEW), False)


def choice(kind, everything=False, names=(), setting_names=()):
    """The choice for a kind of guest; `names`: these ways alone, wherever they are; `setting_names`: in these alone."""
    made = DEFAULTS.get(kind, OTHERS)
    if everything or names or setting_names:
        made = dataclasses.replace(made, parts=EVERYTHING)
    if names:
        made = dataclasses.replace(made, parts=tuple(
            dataclasses.replace(part, ways=tuple(way for way in part.ways if way.name in names)) for part in made.parts))
    return dataclasses.replace(made, parts=tuple(
        part for part in made.parts if part.ways and (not setting_names or part.setting.name in setting_names)))


def way_names():
    return sorted({way.name for part in EVERYTHING for way in part.ways})


def setting_names():
    return [part.setting.name for part in EVERYTHING]
