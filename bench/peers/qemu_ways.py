# SPDX-License-Identifier: Apache-2.0
"""QEMU's own ways: migrations to files, background snapshots, snapshots in images."""

import time

from tests.lab import wait_until

from . import host, migration
from .way import Taken, Way


class Migrate(Way):
    """`migrate` to a file.

    through         a command that the stream goes through on its way to the file; empty: QEMU writes it itself
    back            the command that undoes it
    stopped         the guest is stopped before; else it is stopped by QEMU, when little is left to write
    """

    def __init__(self, name, title, through="cat", back="cat", stopped=True, capabilities=(), parameters=None,
                 incoming_capabilities=None, restored=True, note=""):
        super().__init__(name, title, note)
        self.through, self.back, self.stopped = through, back, stopped
        self.capabilities, self.parameters = capabilities, parameters or {}
        self.incoming_capabilities = capabilities if incoming_capabilities is None else incoming_capabilities
        self.restored = restored
        self.programs = tuple(through.split()[:1])

    def prepare(self, subject, place):
        for program in self.programs:
            host.need(program)

    def take(self, subject, place):
        file, qmp = place / "stream", subject.qmp
        usage = host.Usage(subject.folder) if self.through else None
        uri = f"exec:{' '.join(usage.words)} {self.through} > {file}" if usage else f"file:{file}"
        usages = []
        with migration.settings(qmp, self.capabilities, self.parameters):
            if self.stopped:
                qmp.execute("stop")
            migration.run(qmp, uri, check=lambda: self._check_size(subject, place))
            usages += self.while_stopped(subject, place)
            if qmp.status() != "running":
                qmp.execute("cont")
        if usage:
            usages.append(usage.read())
        return Taken(usages, {"rounds_of_memory": qmp.execute("query-migrate").get("ram", {}).get("dirty-sync-count")})

    def while_stopped(self, subject, place):
        """What else belongs to the checkpoint and needs the guest to stand still; what it used."""
        return []

    def _check_size(self, subject, place):
        """A guest that writes faster than it is written never ends."""
        if host.allocated_bytes(place) > 4 * subject.mem_mib << 20:
            raise migration.MigrationFailed("four times the guest's memory was written, and no end was in sight")

    def restores(self, place):
        if not self.restored:
            return {}
        file = place / "stream"
        uri = f"exec:{self.back} {file}" if self.through else f"file:{file}"
        return {"": lambda restart: restart.incoming(uri, self.incoming_capabilities, self.parameters)}


class IgnoreShared(Migrate):
    """`migrate` without the memory that is a file of its own; with a copy of that file it is a checkpoint."""

    def __init__(self, name, title, copied, note):
        super().__init__(name, title, capabilities=["x-ignore-shared"], restored=copied, note=note)
        self.copied = copied

    def while_stopped(self, subject, place):
        if not self.copied:
            return []
        _, usage = host.run(subject.folder, ["cp", "--sparse=always", subject.guest.memory_path(), place / "memory"])
        return [usage]

    def restores(self, place):
        if not self.restored:
            return {}

        def back(restart):
            # The file is mapped and not written to: memory comes from it as it is wanted.
            own = f"mem-path={restart.guest.memory_path()},share=on"
            figures = restart.incoming(f"exec:cat {place}/stream", self.capabilities,
                                       replace=[(own, f"mem-path={place}/memory,share=off")])
            return figures | {"complete_ms": None}
        return {"": back}


class SnapshotSave(Way):
    """`snapshot-save`, as `savevm`: memory and state into a qcow2 image, here an empty one of its own."""

    NODE = "bench-state"

    def prepare(self, subject, place):
        host.run(subject.folder, ["qemu-img", "create", "-q", "-f", "qcow2", place / "state.qcow2", "1M"])
        subject.qmp.execute("blockdev-add", driver="qcow2", node_name=self.NODE,
                            file={"driver": "file", "filename": str(place / "state.qcow2")})

    def take(self, subject, place):
        qmp = subject.qmp
        qmp.execute("snapshot-save", job_id="bench", tag="bench", vmstate=self.NODE, devices=[self.NODE])
        job = wait_until(lambda: next((job for job in qmp.execute("query-jobs")
                                       if job["id"] == "bench" and job["status"] == "concluded"), None),
                         migration.LIMIT_S, "snapshot-save", interval=0.002)
        qmp.execute("job-dismiss", id="bench")
        if "error" in job:
            raise RuntimeError(f"snapshot-save: {job['error']}")
        return Taken()

    def forget(self, subject, place):
        if any(node["node-name"] == self.NODE for node in subject.qmp.execute("query-named-block-nodes")):
            subject.qmp.execute("blockdev-del", node_name=self.NODE)

    def restores(self, place):
        drive = f"if=none,id=state,format=qcow2,file={place}/state.qcow2"
        return {"": lambda restart: restart.load_snapshot("bench", "-drive", drive)}


class Settled(Migrate):
    """A migration, in a guest that is given time before to hand back what it does not use."""

    def prepare(self, subject, place):
        super().prepare(subject, place)
        smallest, since = host.status_bytes(subject.pid, "VmRSS"), time.monotonic()
        end = since + 30
        while time.monotonic() < min(end, since + 3):
            time.sleep(0.2)
            now = host.status_bytes(subject.pid, "VmRSS")
            if now < smallest - (4 << 20):
                smallest, since = now, time.monotonic()


ZSTD = {"through": "zstd -q -1 -T0", "back": "zstd -q -dc"}

MAPPED_NOTE = "pages at fixed places of a sparse file"


def stream_ways():
    """Those of every QEMU."""
    return [
        Migrate("migrate", "QEMU migrate, stopped"),
        Migrate("migrate-live", "QEMU migrate, live", stopped=False, restored=False,
                note="restored as the stopped one is"),
        Migrate("migrate-zstd", "QEMU migrate, stopped, through zstd -1 -T0", **ZSTD),
        Migrate("background-snapshot", "QEMU background-snapshot", stopped=False, capabilities=["background-snapshot"],
                incoming_capabilities=()),
    ]


def mapped_ways():
    """Those of QEMU 9.0 and later."""
    multifd = {"capabilities": ["mapped-ram", "multifd"], "through": ""}
    channels = {"multifd-channels": 2}
    return [
        Migrate("mapped-ram", "QEMU mapped-ram, stopped", through="", capabilities=["mapped-ram"], note=MAPPED_NOTE),
        Migrate("mapped-ram-multifd", "QEMU mapped-ram + multifd, stopped", parameters=channels, **multifd),
        Migrate("mapped-ram-direct", "QEMU mapped-ram + multifd + direct-io, stopped",
                parameters={**channels, "direct-io": True}, **multifd),
        Migrate("mapped-ram-live", "QEMU mapped-ram + multifd, live", stopped=False, restored=False,
                parameters=channels, **multifd),
    ]
