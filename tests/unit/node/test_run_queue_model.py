"""The run queue against a model, with moves at random: who comes in, who goes next, who is left.

The model keeps every task in a list and looks through all of it at every step. It was seen to find
these kinds of planted mistakes, each of them in a few seconds:

- *ageing*: priorities that do not age, age at twice the speed, or begin to age anew with each task;
- *priorities*: served from the bottom, or only the highest that waits is looked at;
- *shares*: an artifact's place in the order not put right when its time is charged, an order by
  number in place of time, time at the limit kept as a claim, also at another priority;
- *order within a class*: the newest first; one that was set aside for its caller, or that comes for
  another attempt, goes to the end;
- *limits*: of slots, of an artifact, of its instances, of a caller, each one too high; a caller's
  raised limit without effect on those that wait; one who is full holds up others;
- *reservations*: cpu or memory not counted, not given back, or given back twice; small ones that
  overtake one which has its claim; a claim kept by one that was withdrawn;
- *withdrawn entries*: woken nevertheless, counted as waiting, in the way of those behind them;
- *those who come back*: after those who never ran, or in another order than they came;
- *admission*: each limit one off, a refusal that counts as a task, tokens that are never refilled.

Shares by weight over a longer time are the matter of ``test_run_queue_shares.py``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import pytest
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
    make_artifact("other"),
    make_artifact("heavy", weight=3.0),
    make_artifact("capped", max_concurrent=2),
    make_artifact("pooled"),
    make_artifact("half", resources=Resources(cpu=1.5, memory_bytes=300)),
    make_artifact("whole", resources=Resources(cpu=4)),
    make_artifact("narrow", max_concurrent=1, resources=Resources(memory_bytes=600)),
]
RESERVING = [artifact for artifact in ARTIFACTS if artifact.resources != Resources()]


@attrs.define(eq=False, repr=False)
class Ticket:
    """What the model knows of one task."""

    turn: Turn
    artifact: Artifact
    caller: str
    number: int
    where: str = "idle"
    """``idle``, ``waiting``, ``held``, ``away`` or ``returning``."""
    begun: bool = False
    """It may have an instance."""

    def __repr__(self) -> str:
        name, caller = self.artifact.name, self.caller
        return f"<{self.number} {name} {caller} {self.priority.name} {self.where}>"

    @property
    def priority(self) -> Priority:
        return self.turn.priority

    @property
    def reserves(self) -> bool:
        return Capacity.of(self.artifact.resources) != Capacity()


class QueueMachine(RuleBasedStateMachine):
    now = 0.0

    @initialize(
        limits=st.fixed_dictionaries(
            {
                "max_concurrent_tasks": st.sampled_from([1, 1, 2, 2, 3, 4, 6]),
                "max_queued_tasks": st.sampled_from([40, 40, 40, 5]),
                "max_queued_per_artifact": st.sampled_from([0, 0, 0, 3]),
                "max_queued_per_caller": st.sampled_from([0, 0, 0, 2]),
                "max_concurrent_per_caller": st.sampled_from([0, 0, 0, 1, 2, 3]),
                "max_rate_per_caller": st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5, 3.0]),
                "ageing_ms": st.sampled_from([0, 1000, 1000]),
            }
        ),
        artifacts=st.one_of(
            st.lists(
                st.sampled_from(ARTIFACTS), min_size=1, max_size=4, unique_by=lambda a: a.name
            ),
            st.just([ARTIFACTS[0], *RESERVING]),
        ),
    )
    def open(self, limits: dict[str, Any], artifacts: list[Artifact]) -> None:
        self.artifacts = artifacts
        self.config = ExecutionConfig(**limits)
        self.instances = {"pooled": 2}
        self.queue = RunQueue(
            self.config,
            CAPACITY,
            instances_of=lambda artifact: self.instances.get(artifact.name, math.inf),
            clock=lambda: self.now,
        )
        self.tickets: list[Ticket] = []
        self.returning: list[Ticket] = []
        """In the order in which they came back."""
        self.standing: Ticket | None = None
        """The one that takes a slot, or its place in the queue, at the moment."""
        self.claimant: Ticket | None = None
        """The reservation that what others give back was for when the last move had ended."""
        self.numbers = 0
        self.tokens: dict[str, tuple[float, float]] = {}
        self.served = dict.fromkeys(Priority, (0.0, 0.0))
        """When a priority got a slot last, or began to wait: not before, not after."""

    def among(self, *where: str) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.where in where]

    def pick(self, data: Any, *where: str) -> Ticket:
        ticket: Ticket = data.draw(st.sampled_from(self.among(*where)))
        return ticket

    # Who may run ----------------------------------------------------------------------------------

    def used(self, tickets: list[Ticket]) -> tuple[int, int]:
        needs = [Capacity.of(ticket.artifact.resources) for ticket in tickets]
        return sum(n.millicores for n in needs), sum(n.memory_bytes for n in needs)

    def caller_full(self, caller: str, held: list[Ticket]) -> bool:
        most = self.config.max_concurrent_per_caller or math.inf
        return len([each for each in held if each.caller == caller]) >= most

    def line_open(self, ticket: Ticket, held: list[Ticket]) -> bool:
        artifact = ticket.artifact
        same = [each for each in held if each.artifact is artifact]
        begun = [
            each
            for each in self.tickets
            if each.begun and each.artifact is artifact and each is not ticket
        ]
        return len(same) < (artifact.max_concurrent or math.inf) and (
            ticket.where == "returning" or len(begun) < self.instances.get(artifact.name, math.inf)
        )

    def fits(self, ticket: Ticket, held: list[Ticket]) -> bool:
        cpu, memory = self.used([*held, ticket])
        return cpu <= CAPACITY.millicores and memory <= CAPACITY.memory_bytes

    def may_run(self, ticket: Ticket, held: list[Ticket]) -> bool:
        """Beside those that are held; ``ticket`` may be one that has just got its slot."""
        held = [each for each in held if each is not ticket]
        return (
            len(held) < self.config.max_concurrent_tasks
            and self.line_open(ticket, held)
            and not self.caller_full(ticket.caller, held)
            and (not ticket.reserves or self.fits(ticket, held))
        )

    # Who goes first -------------------------------------------------------------------------------

    def wake(self, ticket: Ticket) -> None:
        assert ticket.where in ("waiting", "returning"), "woken twice, or after it was withdrawn"
        standing = self.standing
        if standing is not None and standing.where == "waiting" and self.queue.holds(standing.turn):
            self.grant(standing, dispatched=False)  # it went first, and is told by what is returned
        self.grant(ticket)

    def grant(self, ticket: Ticket, *, dispatched: bool = True) -> None:
        """It has got a slot: rightly, and before the others rightly?"""
        held = self.among("held")
        begun, ticket.begun = ticket.begun, False
        assert self.queue.holds(ticket.turn)
        assert self.may_run(ticket, held)
        ticket.begun = begun
        earlier = self.returning
        if ticket in earlier:
            earlier = earlier[: earlier.index(ticket)]
        assert not [each for each in earlier if self.may_run(each, held)], "they come back first"
        if ticket.where == "waiting":
            self.check_order(ticket, held)
            now, before = self.now, self.served[ticket.priority]
            self.served[ticket.priority] = (now if dispatched else before[0], now)
        else:
            self.returning.remove(ticket)
        ticket.where, ticket.begun = "held", True

    def check_order(self, ticket: Ticket, held: list[Ticket]) -> None:
        line = ticket.turn.line
        at = line.virtual - ticket.turn.charged / line.weight
        if ticket.reserves:
            assert not [each for each in self.returning if each.reserves], "they come back first"
            self.check_claim(ticket, held)
        for other in self.among("waiting"):
            if other is ticket or not self.may_run(other, held):
                continue
            if other.artifact is ticket.artifact and other.priority == ticket.priority:
                assert other.turn.seq > ticket.turn.seq, "first come, first served"
            elif other.reserves:
                pass  # it may have to wait for a claim
            elif other.priority != ticket.priority:
                self.check_priority(ticket, other)
            elif line.waiting and other.artifact is not ticket.artifact:
                assert other.turn.line.virtual >= at - 1e-9, "it had less of the slots"

    def check_claim(self, ticket: Ticket, held: list[Ticket]) -> None:
        first = self.claimant
        if first is None or first.where != "waiting":
            return
        if first.artifact is ticket.artifact and first.priority == ticket.priority:
            self.claimant = None  # a claim is for one of those that wait alike
            return
        held = [each for each in held if each is not ticket]
        usable = self.line_open(first, held) and not self.caller_full(first.caller, held)
        assert not usable, "it was another's claim"

    def check_priority(self, ticket: Ticket, other: Ticket) -> None:
        """``other`` could have run in place of ``ticket``."""
        earliest, _ = self.served[ticket.priority]
        _, latest = self.served[other.priority]
        most, least = self.aged(ticket.priority, earliest), self.aged(other.priority, latest)
        assert least <= most, f"{other.priority!r} before {ticket.priority!r}"
        if least == most and self.config.ageing_ms:
            assert latest >= earliest, "of equals, the one that was not served for longest"

    def aged(self, priority: Priority, since: float) -> int:
        if not self.config.ageing_ms:
            return priority
        aged = int((self.now - since) / (self.config.ageing_ms / 1000))
        return min(Priority.URGENT, priority + aged)

    def stands(self, *tickets: Ticket) -> None:
        """They begin to wait: their priority does, unless one of it stands there already."""
        for ticket in tickets:
            held = self.among("held")
            same = [each for each in self.among("waiting") if each.priority == ticket.priority]
            if not same:
                self.served[ticket.priority] = (self.now, self.now)
            elif not any(
                not each.reserves
                and self.line_open(each, held)
                and not self.caller_full(each.caller, held)
                for each in same
                if each not in tickets
            ):
                self.served[ticket.priority] = (self.served[ticket.priority][0], self.now)

    def room_made(self, caller: str) -> None:
        """One of a caller's is about to go: those set aside may stand in the queue again."""
        if self.config.max_concurrent_per_caller:
            self.stands(*[each for each in self.among("waiting") if each.caller == caller])

    # Moves ----------------------------------------------------------------------------------------

    def settle(self, ticket: Ticket, *, held: bool) -> None:
        if held and ticket.where != "held":
            self.grant(ticket, dispatched=False)
        elif not held:
            ticket.turn.wake, ticket.turn.waker = self.wake, ticket

    def is_refused(self, artifact: Artifact, caller: str) -> str:
        """The key that a refusal has to name; a token is taken if there is none."""
        config, slots = self.config, self.config.max_concurrent_tasks
        if len(self.tickets) >= slots + config.max_queued_tasks:
            return "max_queued_tasks"
        same = [each for each in self.tickets if each.artifact is artifact]
        most = config.max_queued_per_artifact or math.ceil(config.max_queued_tasks * 0.9)
        if len(same) >= min(slots, artifact.max_concurrent or slots) + most:
            return "max_queued_per_artifact"
        same = [each for each in self.tickets if each.caller == caller]
        most = config.max_queued_per_caller or 1000
        if len(same) >= min(slots, config.max_concurrent_per_caller or slots) + most:
            return "max_queued_per_caller"
        if rate := config.max_rate_per_caller:
            burst = max(1.0, rate)
            tokens, at = self.tokens.get(caller, (burst, self.now))
            tokens = min(burst, tokens + (self.now - at) * rate)
            self.tokens[caller] = (tokens - (tokens >= 1), self.now)
            return "" if tokens >= 1 else "max_rate_per_caller"
        return ""

    def submit_one(self, data: Any, caller: str, priority: Priority) -> None:
        artifact = data.draw(st.sampled_from(self.artifacts))
        if refused := self.is_refused(artifact, caller):
            with pytest.raises(
                ResourceExhaustedError, match=rf"\(execution\.{refused}\)"
            ) as caught:
                self.queue.admit(artifact, caller, priority)
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= 60
            return
        turn = self.queue.admit(artifact, caller, priority)
        self.numbers += 1
        ticket = Ticket(turn, artifact, caller, self.numbers)
        self.tickets.append(ticket)
        self.stand(ticket)

    @rule(data=st.data(), count=st.integers(1, 5))
    def come(self, data: Any, count: int) -> None:
        for _ in range(count):
            caller = data.draw(st.sampled_from("ab"))
            self.submit_one(data, caller, data.draw(st.sampled_from(Priority)))

    def stand(self, ticket: Ticket) -> None:
        self.stands(ticket)
        ticket.where = "waiting"
        self.standing = ticket
        self.settle(ticket, held=self.queue.take(ticket.turn))
        self.standing = None

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        self.end_one(self.pick(data, "idle", "held", "waiting", "away", "returning"))

    @precondition(lambda self: self.among("held"))
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        self.end_one(self.pick(data, "held"))

    def end_one(self, ticket: Ticket) -> None:
        self.room_made(ticket.caller)
        if ticket in self.returning:
            self.returning.remove(ticket)
        ticket.where = "ended"
        self.tickets.remove(ticket)
        self.queue.done(ticket.turn)
        self.queue.done(ticket.turn)

    @precondition(lambda self: self.among("held", "away"))
    @rule(data=st.data())
    def try_again(self, data: Any) -> None:
        ticket = self.pick(data, "held", "away")
        self.room_made(ticket.caller)
        ticket.where, ticket.begun = "idle", False
        self.queue.release(ticket.turn)

    @precondition(lambda self: self.among("idle"))
    @rule(data=st.data())
    def take_again(self, data: Any) -> None:
        self.stand(self.pick(data, "idle"))

    @precondition(lambda self: self.among("held"))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        ticket = self.pick(data, "held")
        self.room_made(ticket.caller)
        ticket.where = "away"
        self.queue.leave(ticket.turn)

    @precondition(lambda self: self.among("away"))
    @rule(data=st.data())
    def come_back(self, data: Any) -> None:
        ticket = self.pick(data, "away")
        ticket.where = "returning"
        self.returning.append(ticket)
        self.settle(ticket, held=self.queue.come_back(ticket.turn))

    @precondition(lambda self: self.among("returning"))
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        ticket = self.pick(data, "returning")
        ticket.where = "away"
        self.returning.remove(ticket)
        self.queue.give_up(ticket.turn)

    @precondition(lambda self: self.tickets)
    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        slots=st.integers(1, 6),
        per_caller=st.sampled_from([0, 0, 1, 2, 3]),
        ageing_ms=st.sampled_from([0, 1000]),
        instances=st.integers(1, 3),
    )
    def reconfigure(self, slots: int, per_caller: int, ageing_ms: int, instances: int) -> None:
        self.stands(*self.among("waiting"))
        self.instances["pooled"] = instances
        self.config = attrs.evolve(
            self.config,
            max_concurrent_tasks=slots,
            max_concurrent_per_caller=per_caller,
            ageing_ms=ageing_ms,
        )
        self.queue.reconfigure(self.config)

    # What must always be so -----------------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        held = self.among("held")
        assert self.queue.running == len(held)
        assert self.queue.queued == len(self.tickets) - len(held)
        cpu, memory = self.used(held)
        assert cpu <= CAPACITY.millicores
        assert memory <= CAPACITY.memory_bytes
        for artifact in ARTIFACTS:
            mine = [each for each in self.tickets if each.artifact is artifact]
            without = [each for each in mine if each.where != "held"]
            assert self.queue.queued_of((artifact.name, 1)) == len(without)
        for ticket in self.tickets:
            same = [each for each in self.among("waiting") if each.artifact is ticket.artifact]
            assert ticket.turn.line.waiting == len(same)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        held = self.among("held")
        assert not [each for each in self.returning if self.may_run(each, held)]
        waiting, claim = self.among("waiting"), self.queue._claim
        claiming = [
            each
            for each in waiting
            if claim is not None
            and (each.turn.line, each.priority) == (claim.line, claim.priority)
            and not self.caller_full(each.caller, held)
        ]
        self.claimant = min(claiming, key=lambda each: each.turn.seq, default=None)
        able = [each for each in waiting if self.may_run(each, held)]
        assert not [each for each in able if not each.reserves], "they could run"
        if able and not any(each.reserves for each in self.returning):
            assert self.claimant is not None, "they could run, and no claim keeps them from it"
            assert self.claimant not in able, "it could run"
            assert self.line_open(self.claimant, held), "a claim of one that could not run anyhow"

    @precondition(lambda self: len(self.tickets) > 12)
    @rule()
    def end_all(self) -> None:
        while self.tickets:
            self.end_one(self.tickets[0])
            self.nobody_is_forgotten()
        assert (self.queue.running, self.queue.queued) == (0, 0)
        assert self.queue._free_millicores == CAPACITY.millicores
        assert self.queue._free_memory == CAPACITY.memory_bytes
        if not self.config.max_rate_per_caller:
            assert not self.queue._admission.callers


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=120,
    stateful_step_count=70,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
