# SPDX-License-Identifier: Apache-2.0
"""Every interleaving of a live save in the small: docs/live.md."""

import pytest

from tests.conftest import LONG

from .live_model import COPY, FREEZING, FROZEN, TRACKING, Model, explore, put, release


def test_no_interleaving_misses_a_write_or_waits_for_ever():
    states, fault = explore(Model(), vcpu_writes=2 if LONG else 1)
    print(f"{states} states")
    assert fault is None
    assert states > 10000


class LetsThroughWhileFreezing(Model):
    def decide(self, state, unit):
        phase = TRACKING if state.phase == FREEZING else state.phase
        yield from super().decide(state.but(phase=phase), unit)


class NotesWithoutTheLock(Model):
    """freeze() may look between the note and the release."""

    def decide(self, state, unit):
        for after in super().decide(state, unit):
            yield after.but(lock=None)


class NotesAfterLettingThrough(Model):
    def decide(self, state, unit):
        if state.phase == TRACKING:
            yield release(state, unit).but(answering=("note", unit))
        else:
            yield from super().decide(state, unit)

    def step_answering(self, state):
        if state.answering[0] == "note":
            yield state.but(noted=put(state.noted, state.answering[1], True), answering=("read",))
        else:
            yield from super().step_answering(state)


class HoldsUntilThePlan(Model):
    """QEMU's main thread may be the one that waits, and then answers no `cont`."""

    def decide(self, state, unit):
        phase = FREEZING if state.phase == FROZEN else state.phase
        yield from super().decide(state.but(phase=phase), unit) if phase != FREEZING else [
            state.but(held=state.held + (unit,), answering=("read",))]

    def step_answering(self, state):
        if state.answering == ("read",) and not state.messages and state.phase != COPY:
            return
        yield from super().step_answering(state)


class ReleasesBeforeItCopies(Model):
    def copy(self, state, who):
        step, unit, after = getattr(state, who)
        if step == "take":
            yield release(state, unit).but(**{who: ("late", unit, after)})
        else:
            yield from super().copy(state, who)

    def step_copier(self, state, who):
        step, *rest = getattr(state, who)
        if step == "late":
            unit, after = rest
            yield state.but(copies=put(state.copies, unit, state.memory[unit]), **{who: ("mark", unit, after)})
        else:
            yield from super().step_copier(state, who)

    def step_answering(self, state):
        if state.answering[0] == "late":
            yield from self.step_copier(state, "answering")
        else:
            yield from super().step_answering(state)


class DoesNotProtectAgain(Model):
    def protect_again(self, state, units):
        yield state.but(main=("instant",))


class RenewsWithoutTheLock(Model):
    """A write that the answering thread notes between the protection and the forgetting is forgotten."""

    def step_main(self, state):
        if state.main[0] == "forget":
            unit, others = state.main[1:]
            yield state.but(noted=put(state.noted, unit, False), rehearsed=put(state.rehearsed, unit, None),
                            main=("renew", others))
        else:
            yield from super().step_main(state)

    def renew(self, state, units):
        if units:
            yield state.but(protected=put(state.protected, units[0], True), main=("forget", units[0], units[1:]))
        else:
            yield from super().renew(state, units)


class ReadsBeforeItProtectsAgain(Model):
    def renew(self, state, units):
        for after in super().renew(state, units):
            yield after.but(rehearsed=state.rehearsed)


@pytest.mark.parametrize("broken", [RenewsWithoutTheLock, ReadsBeforeItProtectsAgain,
                                    LetsThroughWhileFreezing, NotesAfterLettingThrough, HoldsUntilThePlan,
                                    ReleasesBeforeItCopies, DoesNotProtectAgain, NotesWithoutTheLock])
def test_a_broken_rule_is_found(broken):
    assert explore(broken())[1] is not None
