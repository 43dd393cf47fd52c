# SPDX-License-Identifier: Apache-2.0
"""A model of incremental saves (docs/incremental.md), small enough to try every interleaving.

Two pages, each a number that a write changes (modulo 3, so that a page can come back to what it held); a vCPU
that writes, frees, allocates without writing; a balloon in QEMU that takes a page's memory away; the saving
program, two saves one after the other. A step is one access that others can see: PAGEMAP_SCAN looks at a page
and protects it again in one step, copying a page is another. The names are those of
src/capture/tracked_capture.cc.
"""

import dataclasses
from typing import Optional

PAGES = (0, 1)
VALUES = 3
ROUNDS = 2
SAVES = 2

# What the index of a checkpoint says of a page.
FREE = "free"


@dataclasses.dataclass(frozen=True)
class State:
    """All that can be seen at one moment."""
    memory: tuple = (1, 1)
    used: tuple = (True, True)       # by the guest's kernel
    # False: not protected, which PAGEMAP_SCAN calls written; what was discarded is told of as well.
    noted: tuple = (True, True)
    running: bool = True
    writes_left: int = 2
    frees_left: int = 1
    discards_left: int = 1

    save: int = 0
    base: Optional[tuple] = None     # the index of the checkpoint before
    stale: tuple = (True, True)
    held: tuple = (False, False)
    free: tuple = (False, False)     # as it was when last looked at
    layers: tuple = ()               # of the rounds: {page: value} as a tuple of pairs, the newest last
    truth: Optional[tuple] = None    # what the checkpoint must hold: None where the page is free

    step: tuple = ("look",)

    def but(self, **changes):
        return dataclasses.replace(self, **changes)


def put(items, index, value):
    return items[:index] + (value,) + items[index + 1:]


class Model:
    """The rules. Subclasses break one, to show that the breach is found."""

    def steps(self, state):
        if state.running:
            yield from self.guest(state)
            yield from self.balloon(state)
        yield from self.program(state)

    def guest(self, state):
        for page in PAGES:
            if state.writes_left:
                yield state.but(memory=put(state.memory, page, (state.memory[page] + 1) % VALUES),
                                noted=put(state.noted, page, True), writes_left=state.writes_left - 1)
            if state.frees_left and state.used[page]:
                yield state.but(used=put(state.used, page, False), frees_left=state.frees_left - 1)
            if not state.used[page]:  # allocated, not written
                yield state.but(used=put(state.used, page, True))

    def balloon(self, state):
        """What is taken away reads as zeros. The guest gives away what is free, and it is used no more."""
        for page in PAGES:
            if state.discards_left and not state.used[page]:
                yield state.but(memory=put(state.memory, page, 0), noted=put(state.noted, page, True),
                                discards_left=state.discards_left - 1)

    # ---- the program ----

    def program(self, state):
        step, *rest = state.step
        if step == "look":
            yield state.but(free=tuple(not used for used in state.used), step=("scan", 0, 0))
        elif step == "scan":
            layer, page = rest
            after = ("scan", layer, page + 1) if page + 1 in PAGES else ("copy", layer, 0)
            yield self.scan(state, page).but(step=after)
            if state.free[page]:  # is asked about only where it lies among others
                yield state.but(step=after)
        elif step == "copy":
            yield from self.copy_next(state, *rest)
        elif step == "stop":
            # What the checkpoint must hold is what there is now.
            truth = tuple(state.memory[page] if state.used[page] else None for page in PAGES)
            yield state.but(running=False, truth=truth, step=("look again",))
        elif step == "look again":
            yield self.look_again(state).but(step=("scan", ROUNDS, 0))
        elif step == "cont":
            yield state.but(running=True, step=("commit",))
        elif step == "commit":
            yield from self.commit(state)

    def look_again(self, state):
        return state.but(free=tuple(not used for used in state.used))

    def scan(self, state, page):
        if not state.noted[page]:
            return state
        return state.but(noted=put(state.noted, page, False), stale=put(state.stale, page, True),
                         held=put(state.held, page, False))

    def copy_next(self, state, layer, page):
        if page not in PAGES:
            if layer == ROUNDS:
                yield state.but(step=("cont",))
            else:
                # Another round, or no more.
                yield state.but(step=("stop",))
                if layer + 1 < ROUNDS:
                    yield state.but(step=("scan", layer + 1, 0))
            return
        wanted = state.stale[page] and not state.held[page] and not state.free[page]
        after = state.but(step=("copy", layer, page + 1))
        if not wanted:
            yield after
            return
        yield after.but(held=put(state.held, page, True),
                        layers=state.layers + ((page, self.stored(state, page)),))

    def stored(self, state, page):
        """A page that holds what the base has of it is told of as that."""
        same = state.base is not None and state.base[page] == state.memory[page]
        return "base" if same else state.memory[page]

    def index(self, state):
        index = list(state.base if state.base is not None else (0, 0))
        for page, value in state.layers:
            index[page] = state.base[page] if value == "base" else value
        return tuple(FREE if state.free[page] else index[page] for page in PAGES)

    def commit(self, state):
        index = self.index(state)
        fault = self.fault(state, index)
        if fault:
            yield state.but(step=("wrong", fault))
        elif state.save + 1 == SAVES:
            yield state.but(step=("end",))
        else:
            yield self.next_save(state, index)

    def next_save(self, state, index):
        return state.but(save=state.save + 1, base=index, stale=tuple(value == FREE for value in index),
                         held=(False, False), layers=(), truth=None, step=("look",))

    def fault(self, state, index):
        for page in PAGES:
            if state.truth[page] is not None and index[page] != state.truth[page]:
                return f"page {page} is saved as {index[page]}, and held {state.truth[page]} at the instant"
            if state.truth[page] is None and index[page] != FREE:
                return f"page {page} was free, and is saved as {index[page]}"
        return None


def explore(model):
    """Tries everything: (number of states, the first fault found or None)."""
    first = State()
    seen, todo = {first}, [first]
    ended = False
    while todo:
        state = todo.pop()
        if state.step[0] == "wrong":
            return len(seen), state.step[1]
        ended = ended or state.step == ("end",)
        for after in model.steps(state):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return len(seen), None if ended else "no save ends"
