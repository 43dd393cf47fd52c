# SPDX-License-Identifier: Apache-2.0
"""Medians and ratios of the raw figures in a results' file."""

import statistics

PLAIN = "migrate"
# What QEMU has got since; background-snapshot has been there since 6.0.
NEWER = ("mapped-ram", "mapped-ram-multifd", "mapped-ram-direct", "mapped-ram-live", "background-snapshot")
OURS = "live-zstd"


def values(rounds, name):
    return [turn[name] for turn in rounds if turn.get(name) is not None]


def median(rounds, name):
    """None where no round has it."""
    found = values(rounds, name)
    return statistics.median(found) if found else None


def limit(setting, name):
    found = setting.get("limits", {}).get(name)
    return statistics.median(found) if found else None


def nearness(setting, way):
    """Bytes written to what the disk would have taken in that time."""
    rate = limit(setting, "disk_bytes_per_s")
    found = [turn["bytes"] / (rate * turn["durable_ms"] / 1000) for turn in way["rounds"]] if rate else []
    return statistics.median(found) if found else None


def per(way, name):
    """Bytes stored to those that the guest said it used."""
    found = [turn["bytes"] / turn[name] for turn in way["rounds"] if turn.get(name)]
    return statistics.median(found) if found else None


def references(setting, name):
    """(QEMU's plain migrate, the best of its newer modes, ours) of a figure; None where there is none."""
    medians = {key: median(way["rounds"], name) for key, way in setting["ways"].items()}
    newer = [medians[key] for key in NEWER if medians.get(key) is not None]
    return medians.get(PLAIN), min(newer, default=None), medians.get(OURS)


def ratio(value, reference):
    return value / reference if value is not None and reference else None
