"""The run queue against a model, with moves at random: limits, order, nobody forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spear_core.api import Artifact, ExecutionConfig, Priority, Resources
from spear_core.errors import ResourceExhaustedError
from spear_core.node._capacity import Capacity
from spear_core.node._run_queue import RunQueue
from spear_core.node._turns import Turn

CAPACITY = Capacity(millicores=4000, memory_bytes=1000)


def make_artifact(name: str, **settings: Any) -> Artifact:
    return Artifact(
        name=name,
        version=1,
        digest="0" * 64,
        runtime="r",
        shape="s",
        path=Path("f"),
        filename="f",
        **settings,
    )


ARTIFACTS = [
    make_artifact("plain"),
    make_artifact("heavy", weight=3.0),
    make_artifact("capped", max_concurrent=2),
    make_artifact("pooled"),
    make_artifact("half", resources=Resources(cpu=1.5, memory_bytes=300)),
    make_artifact("whole", resources=Resources(cpu=4)),
    make_artifact("narrow", max_concurrent=1, resources=Resources(memory_bytes=600)),
]
INSTANCES = {"pooled": 2}


@attrs.define(eq=False)
class Ticket:
    """What the model knows of one task."""

    turn: Turn
    artifact: Artifact
    caller: str
    where: str = "idle"
    """``idle``, ``waiting``, ``held``, ``away`` or ``returning``."""
    begun: bool = False
    """It may have an instance."""


class QueueMachine(RuleBasedStateMachine):
    now = 0.0

    @initialize(
        slots=st.integers(1, 6),
        per_caller=st.sampled_from([0, 1, 2, 3]),
        ageing=st.sampled_from([0, 1000]),
        artifacts=st.lists(
            st.sampled_from(ARTIFACTS), min_size=1, max_size=4, unique_by=lambda a: a.name
        ),
    )
    def open(self, slots: int, per_caller: int, ageing: int, artifacts: list[Artifact]) -> None:
        self.artifacts = artifacts
        self.per_caller = per_caller
        self.slots = slots
        self.queue = RunQueue(
            self.config(),
            CAPACITY,
            instances_of=lambda artifact: INSTANCES.get(artifact.name, 1000),
            clock=lambda: self.now,
        )
        self.ageing = ageing
        self.queue.reconfigure(self.config())
        self.tickets: list[Ticket] = []
        self.granted: list[Ticket] = []

    def config(self) -> ExecutionConfig:
        return ExecutionConfig(
            max_concurrent_tasks=self.slots,
            max_queued_tasks=40,
            max_concurrent_per_caller=self.per_caller,
            ageing_ms=getattr(self, "ageing", 0),
        )

    def among(self, *where: str) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.where in where]

    def pick(self, data: Any, *where: str) -> Ticket | None:
        found = self.among(*where)
        return data.draw(st.sampled_from(found)) if found else None

    def wake(self, ticket: Ticket) -> None:
        assert ticket.where in ("waiting", "returning"), "woken twice, or after it was withdrawn"
        self.granted.append(ticket)
        self.check_order(ticket)
        self.hold(ticket)

    def hold(self, ticket: Ticket) -> None:
        assert self.queue.holds(ticket.turn)
        ticket.where, ticket.begun = "held", True

    def check_order(self, ticket: Ticket) -> None:
        """Nobody of the same artifact, priority and caller came before it and still waits."""
        if ticket.where == "waiting":
            assert not [
                other
                for other in self.among("waiting")
                if other.artifact is ticket.artifact
                and other.turn.priority == ticket.turn.priority
                and other.caller == ticket.caller
                and other.turn.seq < ticket.turn.seq
            ]

    def settle(self, ticket: Ticket, *, held: bool) -> None:
        if held:
            self.hold(ticket)
        else:
            ticket.turn.wake, ticket.turn.waker = self.wake, ticket

    @rule(data=st.data(), caller=st.sampled_from("ab"), priority=st.sampled_from(Priority))
    def submit(self, data: Any, caller: str, priority: Priority) -> None:
        artifact = data.draw(st.sampled_from(self.artifacts))
        try:
            turn = self.queue.admit(artifact, caller, priority)
        except ResourceExhaustedError:
            assert len(self.tickets) >= min(self.slots, artifact.max_concurrent or 9) + 36
            return
        ticket = Ticket(turn, artifact, caller)
        self.tickets.append(ticket)
        ticket.where = "waiting"
        self.settle(ticket, held=self.queue.take(turn))

    @rule(data=st.data())
    def end(self, data: Any) -> None:
        if ticket := self.pick(data, "held", "waiting", "away", "returning"):
            ticket.where = "ended"
            self.tickets.remove(ticket)
            self.queue.done(ticket.turn)

    @rule(data=st.data())
    def try_again(self, data: Any) -> None:
        if ticket := self.pick(data, "held", "away"):
            ticket.where, ticket.begun = "idle", False
            self.queue.release(ticket.turn)

    @rule(data=st.data())
    def take_again(self, data: Any) -> None:
        if ticket := self.pick(data, "idle"):
            ticket.where = "waiting"
            self.settle(ticket, held=self.queue.take(ticket.turn))

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        if ticket := self.pick(data, "held"):
            ticket.where = "away"
            self.queue.leave(ticket.turn)

    @rule(data=st.data())
    def come_back(self, data: Any) -> None:
        if ticket := self.pick(data, "away"):
            ticket.where = "returning"
            self.settle(ticket, held=self.queue.come_back(ticket.turn))

    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        if ticket := self.pick(data, "returning"):
            ticket.where = "away"
            self.queue.give_up(ticket.turn)

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(slots=st.integers(1, 6), per_caller=st.sampled_from([0, 1, 2, 3]))
    def reconfigure(self, slots: int, per_caller: int) -> None:
        self.slots, self.per_caller = slots, per_caller
        self.queue.reconfigure(self.config())

    # What must always be so -----------------------------------------------------------------------

    def used(self, artifacts: list[Artifact]) -> tuple[int, int]:
        needs = [Capacity.of(artifact.resources) for artifact in artifacts]
        return sum(n.millicores for n in needs), sum(n.memory_bytes for n in needs)

    def room_for(self, ticket: Ticket) -> bool:
        held = self.among("held")
        same = [each for each in held if each.artifact is ticket.artifact]
        begun = [each for each in self.tickets if each.begun and each.artifact is ticket.artifact]
        cpu, memory = self.used([each.artifact for each in (*held, ticket)])
        return (
            len(held) < self.slots
            and len(same) < (ticket.artifact.max_concurrent or 1000)
            and (ticket.begun or len(begun) < INSTANCES.get(ticket.artifact.name, 1000))
            and len([each for each in held if each.caller == ticket.caller])
            < (self.per_caller or 1000)
            and cpu <= CAPACITY.millicores
            and memory <= CAPACITY.memory_bytes
        )

    @invariant()
    def counts_agree(self) -> None:
        held = self.among("held")
        assert self.queue.running == len(held)
        assert self.queue.queued == len(self.tickets) - len(held)
        cpu, memory = self.used([each.artifact for each in held])
        assert (cpu, memory) <= (CAPACITY.millicores, CAPACITY.memory_bytes)
        assert memory <= CAPACITY.memory_bytes
        for artifact in ARTIFACTS:
            same = [each for each in held if each.artifact is artifact]
            assert len(same) <= (artifact.max_concurrent or 1000)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        returning = self.among("returning")
        assert not [each for each in returning if self.room_for(each)]
        reserved_first = any(each.turn.line.needs for each in returning) or self.queue._claim
        for ticket in self.among("waiting"):
            if self.room_for(ticket):
                assert ticket.turn.line.needs, f"{ticket} could run"
                assert reserved_first, f"{ticket} could run"

    @precondition(lambda self: len(self.tickets) > 3)
    @rule()
    def end_all(self) -> None:
        while self.tickets:
            ticket = self.tickets.pop(0)
            ticket.where = "ended"
            self.queue.done(ticket.turn)
            self.nobody_is_forgotten()
        assert (self.queue.running, self.queue.queued) == (0, 0)
        assert self.queue._free_millicores == CAPACITY.millicores
        assert self.queue._free_memory == CAPACITY.memory_bytes
        assert not self.queue._admission.callers


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
