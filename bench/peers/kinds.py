# SPDX-License-Identifier: Apache-2.0
"""What the guests do and hold."""

import dataclasses
import typing

from tests.lab import workload

# Answers on the second serial port.
ANSWER = "(while read word; do echo answer $word; done </dev/ttyS1 >/dev/ttyS1) &\n"

# Where the load tells no speed that other work can be seen in: computes, and writes 10 MiB/s all over 16 MiB.
METER = "/bin/hazard speed 16 10 &\n"


@dataclasses.dataclass(frozen=True)
class Kind:
    """`load`: for the guest program `workload`, by the guest's MiB; `churn`: the part of memory that is used and
    freed before; `own_meter`: the load's own speed tells how fast the guest works; `disk`: it wants a file system."""

    title: str
    load: typing.Callable = None
    churn: float = 0
    own_meter: bool = False
    disk: bool = False

    def selfcheck(self, mem_mib):
        small = {"churn_mib": max(16, int(self.churn * mem_mib))}
        return {**small, "anon_mib": 16, "tmpfs_mib": 8, "cache_mib": 4} if self.load else small

    @property
    def speed(self):
        """The meter's lines on the console."""
        return rb"workload: load speed (\d+)" if self.own_meter else rb"hazard: speed (\d+)"

    def hook(self, mem_mib, disks=()):
        """The shell script that starts it all; `disks` as the guest calls them."""
        script = ANSWER + ("" if self.own_meter else METER)
        if self.load:
            script += workload.hook({"load": self.load(mem_mib)}, disks)
        return script


KINDS = {
    "idle": Kind("little was ever used", churn=1 / 64),
    "churned": Kind("half of the memory was used and is free again", churn=0.5),
    "full": Kind("nine tenths of the memory hold what does not compress", load=lambda mib: "hold random 90%"),
    "full-compressible": Kind("nine tenths of the memory hold what compresses to about a third",
                              load=lambda mib: "hold compressible 90%"),
    "cache": Kind("the page cache of files that are read at random", load=lambda mib: f"cache /vda {mib * 5 // 8}",
                  own_meter=True, disk=True),
    "numeric": Kind("computes with next to no memory", load=lambda mib: "numeric", own_meter=True),
    "stream": Kind("goes through a third of the memory as fast as it can, writing a third of that",
                   load=lambda mib: f"stream {mib // 3}", own_meter=True),
    "compile": Kind("short processes with heaps and files, as compilers'", load=lambda mib: f"compile {mib // 4}",
                    own_meter=True),
    "files": Kind("writes, fsyncs, renames, reads and unlinks files",
                  load=lambda mib: f"files /vda {mib // 8}", own_meter=True, disk=True),
}
