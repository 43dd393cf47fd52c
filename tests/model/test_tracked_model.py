# SPDX-License-Identifier: Apache-2.0
"""Every interleaving of two incremental saves in the small: docs/incremental.md."""

import pytest

from .tracked_model import FREE, PAGES, ROUNDS, Model, explore, put


def test_no_interleaving_misses_a_write():
    states, fault = explore(Model())
    print(f"{states} states")
    assert fault is None
    assert states > 10000


class KeepsWhatWasWrittenAgain(Model):
    def scan(self, state, page):
        return super().scan(state, page).but(held=state.held)


class ProtectsBeforeItLooks(Model):
    """Two system calls instead of one that does both."""

    def program(self, state):
        step, *rest = state.step
        if step == "scan":
            page = rest[1]
            yield state.but(noted=put(state.noted, page, False), step=("see", *rest, state.noted[page]))
        elif step == "see":
            layer, page, _ = rest
            after = ("scan", layer, page + 1) if page + 1 in PAGES else ("copy", layer, 0)
            # What was written between the two is seen; it is not noted that it was.
            yield (super().scan(state, page).but(noted=put(state.noted, page, False), step=after)
                   if rest[2] else state.but(noted=put(state.noted, page, False), step=after))
        else:
            yield from super().program(state)


class BelievesTheLookBeforeTheStop(Model):
    def look_again(self, state):
        return state


class AsksBeforeItLooksAgain(Model):
    """What is not asked about inside the pause is what was free before it."""

    def program(self, state):
        if state.step == ("look again",):
            yield state.but(step=("scan", ROUNDS, 0))
        elif state.step == ("copy", ROUNDS, 0):
            yield from super().program(self.look_again(state))
        else:
            yield from super().program(state)


class TakesFreeForUnchanged(Model):
    """A page that was free and is used without having been written holds what it held, not zeros."""

    def next_save(self, state, index):
        base = tuple(0 if value == FREE else value for value in index)
        return super().next_save(state, base)


class ForgetsARoundThatCameBack(Model):
    """A page that holds again what the base has shows what an earlier round had of it."""

    def index(self, state):
        kept = tuple((page, value) for page, value in state.layers if value != "base")
        return super().index(state.but(layers=kept))


class DoesNotSeeWhatWasDiscarded(Model):
    def balloon(self, state):
        for after in super().balloon(state):
            yield after.but(noted=state.noted)


class NotesAnewAfterTheSave(Model):
    """Writes between the instant and the end of the save are lost for the next one."""

    def next_save(self, state, index):
        return super().next_save(state, index).but(noted=(False, False))


@pytest.mark.parametrize("broken", [KeepsWhatWasWrittenAgain, ProtectsBeforeItLooks, BelievesTheLookBeforeTheStop,
                                    AsksBeforeItLooksAgain, TakesFreeForUnchanged, ForgetsARoundThatCameBack,
                                    DoesNotSeeWhatWasDiscarded, NotesAnewAfterTheSave])
def test_a_broken_rule_is_found(broken):
    assert explore(broken())[1] is not None
