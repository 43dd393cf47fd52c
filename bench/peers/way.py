# SPDX-License-Identifier: Apache-2.0
"""What each way of checkpointing is for the benchmark."""

import dataclasses


@dataclasses.dataclass
class Taken:
    """What a way leaves for the meters: what its processes used, and figures of its own."""

    usages: list = dataclasses.field(default_factory=list)
    own: dict = dataclasses.field(default_factory=dict)


class Way:
    """One way. A turn is prepare(), take(), which alone is measured, and forget().

    name, title    in figures and on the page
    ours           it is vmsieve's
    programs       files of programs that it starts, which are to be in the page cache
    turns          taken in so many rounds at most; None: in all
    durable        its files are durable when it is done; else the benchmark syncs them, and counts that
    note           what is to be known to read its figures
    """

    programs = ()
    turns = None
    ours = False
    durable = False
    note = ""

    def __init__(self, name, title, note=""):
        self.name, self.title, self.note = name, title, note or self.note

    def prepare(self, subject, place):
        """Before the turn is measured. `place` is an empty folder for the files that it makes. May raise NotThere."""

    def take(self, subject, place):
        """The checkpoint, whole, into `place`; the guest runs afterwards. Returns what it Taken."""
        raise NotImplementedError

    def forget(self, subject, place):
        """Whatever it left in the guest's QEMU goes; also after take() has failed."""

    def restores(self, place):
        """{how: function} of what is in `place`, on a Restart: {"answer_ms", "complete_ms"}. Empty: it cannot be
        restored, or is restored as another way's file is."""
        return {}
