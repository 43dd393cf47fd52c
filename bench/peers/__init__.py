# SPDX-License-Identifier: Apache-2.0
"""Every way of checkpointing that a user could pick, on the same guest, in turns: ./bench.sh

    plan.py        which ways are taken of which guests
    kinds.py       the guests' loads
    settings.py    how a guest is booted: QEMU's version, what backs its memory
    domains.py     guests that are domains of libvirt's
    subject.py     a running guest as the ways and the meters see it
    *_ways.py      the ways, each with how it is restored
    measure.py     one turn of one way: its figures
    rounds.py      all turns of all ways of one guest, then the restores
    page.py, plot.py    what is made of the figures

`./bench.sh` is the way in; bench/README.md tells what the figures mean.
"""
