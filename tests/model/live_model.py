# SPDX-License-Identifier: Apache-2.0
"""A model of live saves (docs/live.md), small enough to try every interleaving.

Two units of memory, each a number that a write makes larger; a vCPU and QEMU's main thread, which both write;
the answering thread; this program's main thread; one more that copies. Each does one step at a time, in any
order. What a step is, is one access that others can see: a system call, an atomic operation, a lock taken or let
go. The names are those of src/capture/live_capture.cc.
"""

import dataclasses
from typing import Optional

UNITS = (0, 1)
PENDING, COPYING, DONE = range(3)
TRACKING, FREEZING, FROZEN, COPY = range(4)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Somebody who writes to the guest's memory."""
    writes_left: int
    waits_for: Optional[int] = None  # a unit


@dataclasses.dataclass(frozen=True)
class State:
    """All that can be seen at one moment."""
    memory: tuple = (0, 0)
    protected: tuple = (False, False)
    messages: tuple = ()  # units whose writers wait, as the userfaultfd tells
    running: bool = True  # the vCPU runs
    vcpu: Writer = Writer(1)
    qemu: Writer = Writer(1)

    phase: int = TRACKING
    lock: Optional[str] = None
    noted: tuple = (False, False)
    held: tuple = ()
    states: tuple = (PENDING, PENDING)
    copies: tuple = (None, None)  # what was copied of each unit
    truth: Optional[tuple] = None  # the memory at the instant
    rehearsed: tuple = (None, None)  # what was read of each unit since it was protected last

    main: tuple = ("protect", 0)
    answering: tuple = ("read",)
    helper: tuple = ("wait",)

    def but(self, **changes):
        return dataclasses.replace(self, **changes)


def put(items, index, value):
    return items[:index] + (value,) + items[index + 1:]


def release(state, unit):
    """The kernel: the unit's writers go on."""
    changes = {"protected": put(state.protected, unit, False)}
    for name in ("vcpu", "qemu"):
        writer = getattr(state, name)
        if writer.waits_for == unit:
            changes[name] = dataclasses.replace(writer, waits_for=None)
    return state.but(**changes)


class Model:
    """The rules. Subclasses break one, to show that the breach is found."""

    def steps(self, state):
        """Every state that can follow."""
        yield from self.write(state, "vcpu", state.running)
        yield from self.write(state, "qemu", True)
        yield from self.step_main(state)
        yield from self.step_answering(state)
        yield from self.step_helper(state)

    def write(self, state, name, may):
        writer = getattr(state, name)
        if not may or writer.writes_left == 0 or writer.waits_for is not None:
            return
        for unit in UNITS:
            if state.protected[unit]:
                waiting = dataclasses.replace(writer, waits_for=unit)
                yield state.but(**{name: waiting, "messages": state.messages + (unit,)})
            else:
                written = dataclasses.replace(writer, writes_left=writer.writes_left - 1)
                yield state.but(**{name: written, "memory": put(state.memory, unit, state.memory[unit] + 1)})

    # ---- the main thread ----

    def step_main(self, state):
        step, *rest = state.main
        if step == "protect":
            unit = rest[0]
            then = ("protect", unit + 1) if unit + 1 in UNITS else ("rehearse", 0, ("look",))
            yield state.but(protected=put(state.protected, unit, True), main=then)
        elif step == "rehearse":
            unit, after = rest
            then = ("rehearse", unit + 1, after) if unit + 1 in UNITS else after
            if state.rehearsed[unit] is None:
                yield state.but(rehearsed=put(state.rehearsed, unit, state.memory[unit]), main=then)
            else:
                yield state.but(main=then)
        elif step == "look" and state.lock is None:
            yield state.but(main=("renew", tuple(unit for unit in UNITS if state.noted[unit])))
        elif step == "renew" and (state.lock is None or state.lock == "main"):
            yield from self.renew(state, rest[0])
        elif step == "stop" and state.qemu.waits_for is None:  # QEMU answers the monitor
            yield state.but(running=False, main=("classify",))
        elif step == "classify" and state.lock is None:
            yield state.but(rehearsed=(None, None), main=("freeze",))
        elif step == "freeze" and state.lock is None:
            noted = tuple(unit for unit in UNITS if state.noted[unit])
            yield state.but(phase=FREEZING, main=("protect again", noted))
        elif step == "protect again":
            yield from self.protect_again(state, rest[0])
        elif step == "instant" and state.lock is None:
            yield state.but(phase=FROZEN, truth=state.memory, main=("cont",))
        elif step == "cont" and state.qemu.waits_for is None:
            yield state.but(running=True, main=("copy",))
        elif step == "copy" and state.lock is None:
            yield state.but(phase=COPY, main=("claim", 0), helper=("claim", 1))
        else:
            yield from self.step_copier(state, "main")

    def renew(self, state, units):
        """protect_again() of src/capture/live_capture.cc: under the lock, all of them."""
        if not units:
            yield state.but(lock=None, main=("rehearse", 0, ("stop",)))
            return
        unit, *others = units
        yield state.but(lock="main", protected=put(state.protected, unit, True), noted=put(state.noted, unit, False),
                        rehearsed=put(state.rehearsed, unit, None), main=("renew", tuple(others)))

    def protect_again(self, state, units):
        if not units:
            yield state.but(main=("instant",))
            return
        yield state.but(protected=put(state.protected, units[0], True), main=("protect again", units[1:]))

    # ---- copying: the main thread, the helper, the answering thread ----

    def step_helper(self, state):
        yield from self.step_copier(state, "helper")

    def step_copier(self, state, who):
        """From one end of memory to the other; the helper begins at the other one."""
        step, *rest = getattr(state, who)
        if step == "claim":
            unit = rest[0]
            after = ("claim", 1 - unit) if unit == (0 if who == "main" else 1) else ("end",)
            if state.states[unit] == PENDING:
                yield state.but(states=put(state.states, unit, COPYING), **{who: ("take", unit, after)})
            else:
                yield state.but(**{who: after})
        elif step in ("take", "let go", "mark"):
            yield from self.copy(state, who)

    def copy(self, state, who):
        step, unit, after = getattr(state, who)
        if step == "take":
            copied = put(state.copies, unit, state.memory[unit])
            yield state.but(copies=copied, **{who: ("let go", unit, after)})
        elif step == "let go":
            yield release(state, unit).but(**{who: ("mark", unit, after)})
        elif step == "mark":
            yield state.but(states=put(state.states, unit, DONE), **{who: after})

    # ---- the answering thread ----

    def step_answering(self, state):
        step, *rest = state.answering
        if step == "read":
            if state.messages:
                yield state.but(messages=state.messages[1:], answering=("decide", state.messages[0]))
            elif state.held and state.phase != FREEZING and state.lock is None:
                yield state.but(held=state.held[1:], answering=("hurry", state.held[0]))
        elif step == "decide" and state.lock is None:
            yield from self.decide(state, rest[0])
        elif step == "let through":
            yield release(state, rest[0]).but(lock=None, answering=("read",))
        elif step == "hurry":
            unit = rest[0]
            if state.states[unit] == PENDING:
                yield state.but(states=put(state.states, unit, COPYING), answering=("take", unit, ("read",)))
            else:
                yield state.but(answering=("read",))
        elif step in ("take", "let go", "mark"):
            yield from self.copy(state, "answering")

    def decide(self, state, unit):
        if state.phase == TRACKING:
            yield state.but(lock="answering", noted=put(state.noted, unit, True), answering=("let through", unit))
        elif state.phase == FREEZING:
            yield state.but(held=state.held + (unit,), answering=("read",))
        else:
            yield state.but(answering=("hurry", unit))


def wrong(state):
    """What must never be seen, in words; None when all is well."""
    if state.main == ("classify",) and state.lock is None:
        for unit in UNITS:
            if not state.noted[unit] and state.rehearsed[unit] != state.memory[unit]:
                return f"unit {unit} passes for unwritten; it was {state.rehearsed[unit]} and is {state.memory[unit]}"
    for unit in UNITS:
        if state.copies[unit] is not None and state.copies[unit] != state.truth[unit]:
            return f"unit {unit} was copied as {state.copies[unit]}, and held {state.truth[unit]} at the instant"
    return None


def unfinished(state):
    """What is not done in a state that nothing follows."""
    for name in ("vcpu", "qemu"):
        writer = getattr(state, name)
        if writer.waits_for is not None or writer.writes_left:
            return f"{name} waits for ever"
    if state.main != ("end",) or state.helper != ("end",) or state.states != (DONE, DONE):
        return "the save does not end"
    return None


def explore(model, vcpu_writes=1):
    """Tries everything: (number of states, the first fault found or None)."""
    first = State(vcpu=Writer(vcpu_writes))
    seen, todo = {first}, [first]
    while todo:
        state = todo.pop()
        fault = wrong(state)
        if fault:
            return len(seen), fault
        following = list(model.steps(state))
        if not following and unfinished(state):
            return len(seen), unfinished(state)
        for after in following:
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return len(seen), None
