# SPDX-License-Identifier: Apache-2.0
"""libvirt's ways. `virsh save` ends the domain, `virsh restore` brings it back: both belong to the pause."""

import time

from . import host
from .domains import NAME
from .way import Taken, Way


class VirshSave(Way):
    """`image_format`: save_image_format of libvirt's configuration."""

    durable = True
    note = ("the domain ends and is restored at once: the pause is from its stop until it runs again; the time until "
            "durable is without the restore")

    def __init__(self, name, title, *options, image_format="raw", note=""):
        super().__init__(name, title, note)
        self.options, self.image_format = options, image_format

    def prepare(self, subject, place):
        configure(subject.libvirt, self.image_format)

    def take(self, subject, place):
        file, begin, daemon = place / "image", time.monotonic(), subject.daemon_cpu_seconds()
        usage = self._save(subject, file)
        saved = time.monotonic()
        daemon = subject.daemon_cpu_seconds() - daemon
        subject.brought_back(lambda: subject.libvirt.virsh("restore", file))
        back = time.monotonic()
        host.make_durable(place)
        save_s, sync_s = saved - begin, time.monotonic() - back
        return Taken([usage], {"done_ms": save_s * 1000, "durable_ms": (save_s + sync_s) * 1000,
                               "back_ms": (back - saved) * 1000, "libvirtd_cpu_s": daemon})

    def _save(self, subject, file):
        try:
            return subject.run(["virsh", "-q", "save", NAME, file, *self.options])[1]
        except RuntimeError as error:
            if "Invalid save image format" in str(error) or "unsupported option" in str(error):
                raise host.NotThere(f"libvirt: {str(error).splitlines()[-1].removeprefix('error: ')}") from error
            raise

    def forget(self, subject, place):
        subject.settle()

    def restores(self, place):
        return {"": lambda restart: restart.virsh(place / "image")}


class VirshSnapshot(Way):
    """Memory alone, by `virsh snapshot-create-as`: the domain has no disks."""

    def __init__(self, name, title, *options, note=""):
        super().__init__(name, title, note)
        self.options = options

    def prepare(self, subject, place):
        configure(subject.libvirt, "raw")

    def take(self, subject, place):
        daemon = subject.daemon_cpu_seconds()
        _, usage = subject.run(["virsh", "-q", "snapshot-create-as", NAME, "bench", "--no-metadata", "--atomic", "--memspec",
                                f"file={place}/image,snapshot=external", *self.options])
        return Taken([usage], {"libvirtd_cpu_s": subject.daemon_cpu_seconds() - daemon})


def configure(libvirt, image_format):
    """A new libvirtd where the format is another one than before; the domain lives on."""
    line = f'save_image_format = "{image_format}"\n'
    path = libvirt.folder / "qemu.conf"
    text = path.read_text(encoding="ascii")
    own = text.partition("save_image_format")[0]
    if own + line == text or (own == text and image_format == "raw"):
        return
    path.write_text(own + line, encoding="ascii")
    host.run(libvirt.folder, [*libvirt.inside, "cp", path, "/etc/libvirt/qemu.conf"])
    libvirt.kill_daemon()
    libvirt.start_daemon()


SAVE = VirshSave("virsh-save", "virsh save")
SAVE_ZSTD = VirshSave("virsh-save-zstd", "virsh save, save_image_format zstd", image_format="zstd")


def libvirt_ways():
    return [
        SAVE, VirshSave("virsh-save-direct", "virsh save --bypass-cache", "--bypass-cache"), SAVE_ZSTD,
        VirshSnapshot("virsh-snapshot-live", "virsh snapshot-create-as, memory alone, --live", "--live"),
    ]


def newer_ways():
    """Sparse ones are of libvirt 11.2 and later."""
    sparse = {"image_format": "sparse"}
    return [
        SAVE, SAVE_ZSTD, VirshSave("virsh-save-sparse", "virsh save, save_image_format sparse (mapped-ram)", **sparse),
        VirshSave("virsh-save-parallel", "virsh save, sparse, --parallel-channels 2", "--parallel-channels", "2", **sparse),
    ]
