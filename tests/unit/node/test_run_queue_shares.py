"""Shares of the slots over a longer time: days of work in the run queue, played through at once.

Artifacts that always have something waiting get the slots' time in proportion to their weights,
however long their executions take and however many of them come; and nobody waits for ever. Seen
to fail when the weight is left out, when the time an execution took is not put right at its end,
when one that has been away begins where it left off, when the length of a queue counts, and when a
large reservation has no claim.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_core.api import Artifact, ExecutionConfig, Priority, Resources
from spear_core.node._capacity import Capacity
from spear_core.node._run_queue import RunQueue
from spear_core.node._turns import Turn


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


@attrs.frozen
class Work:
    """What keeps coming of one artifact."""

    artifact: Artifact
    takes: float
    """Seconds that one of its executions lasts."""
    queue: int
    """Tasks of it that are here at any time."""
    priority: Priority = Priority.NORMAL


class Day:
    """A queue whose slots are always wanted; each task that ends is followed by another."""

    def __init__(self, slots: int, *, ageing_ms: int = 0) -> None:
        self.now = 0.0
        self.queue = RunQueue(
            ExecutionConfig(
                max_concurrent_tasks=slots,
                max_queued_tasks=100_000,
                max_queued_per_artifact=50_000,
                ageing_ms=ageing_ms,
            ),
            Capacity(millicores=4000, memory_bytes=1000),
            instances_of=lambda _: math.inf,
            clock=lambda: self.now,
        )
        self.ends: list[tuple[float, int, Turn, Work]] = []
        self.numbers = itertools.count()
        self.time: Counter[str] = Counter()
        """Seconds of slots that each artifact has had."""
        self.granted: list[tuple[float, str]] = []

    def come(self, work: Work) -> None:
        turn = self.queue.admit(work.artifact, "", work.priority)
        turn.wake, turn.waker = self.begin, (turn, work)
        if self.queue.take(turn):
            self.begin((turn, work))

    def begin(self, of: tuple[Turn, Work]) -> None:
        turn, work = of
        self.granted.append((self.now, work.artifact.name))
        heapq.heappush(self.ends, (self.now + work.takes, next(self.numbers), turn, work))

    def play(self, until: float, *, follow: Callable[[Work], bool] = lambda _: True) -> None:
        while self.ends and self.ends[0][0] <= until:
            self.now, _, turn, work = heapq.heappop(self.ends)
            self.time[work.artifact.name] += work.takes
            if follow(work):
                self.come(work)
            self.queue.done(turn)


def works(weights: list[int], takes: list[float], queues: list[int]) -> list[Work]:
    return [
        Work(make_artifact(f"a{n}", weight=float(weight)), seconds, queue)
        for n, (weight, seconds, queue) in enumerate(zip(weights, takes, queues, strict=False))
    ]


SEVERAL = st.builds(
    works,
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.lists(st.sampled_from([0.3, 1.0, 4.0]), min_size=4, max_size=4),
    st.lists(st.sampled_from([8, 12, 100]), min_size=4, max_size=4),
)


def most_apart(several: list[Work], slots: int) -> float:
    """Seconds for its weight that one may be ahead of another: all slots, guessed wrong once."""
    return (slots + 2) * max(work.takes / work.artifact.weight for work in several) * 2


def assert_shared(time: Counter[str], several: list[Work], slots: int) -> None:
    shares = {
        work.artifact.name: time[work.artifact.name] / work.artifact.weight for work in several
    }
    assert max(shares.values()) - min(shares.values()) <= most_apart(several, slots), shares


@settings(max_examples=25, deadline=None)
@given(SEVERAL, st.integers(1, 6))
def test_the_slots_are_shared_by_weight(several: list[Work], slots: int) -> None:
    day = Day(slots)
    for work in several:
        for _ in range(work.queue):
            day.come(work)
    day.play(200)
    assert_shared(day.time, several, slots)


@settings(max_examples=25, deadline=None)
@given(SEVERAL, st.integers(1, 4))
def test_who_was_away_has_no_claim_to_what_others_got_meanwhile(
    several: list[Work], slots: int
) -> None:
    day = Day(slots)
    late = several[0]
    for work in several[1:]:
        for _ in range(work.queue):
            day.come(work)
    day.play(200)
    day.time.clear()
    for _ in range(late.queue):
        day.come(late)
    day.play(400)
    assert_shared(day.time, several, slots)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([Priority.LOW, Priority.NORMAL]),
    st.integers(2, 4),
)
def test_a_large_reservation_comes_to_its_turn_among_small_ones(
    takes: float, priority: Priority, slots: int
) -> None:
    small = Work(make_artifact("small", resources=Resources(cpu=1.5)), takes, 20)
    other = Work(make_artifact("other", resources=Resources(cpu=0.5)), takes * 1.4, 20)
    whole = Work(make_artifact("whole", resources=Resources(cpu=4)), 1.0, 1, priority)
    day = Day(slots, ageing_ms=1000)
    for work in (small, other):
        for _ in range(work.queue):
            day.come(work)
    day.play(20)
    day.come(whole)
    began = day.now
    day.play(began + 60, follow=lambda work: work is not whole)
    waited = [at - began for at, name in day.granted if name == "whole"]
    # It ages to the top, waits out its second at the head, and then for what runs.
    assert waited
    assert waited[0] <= 3 + 1 + 4 * other.takes + 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(Priority), min_size=2, max_size=4, unique=True), st.integers(1, 3))
def test_no_priority_waits_for_ever(priorities: list[Priority], slots: int) -> None:
    day = Day(slots, ageing_ms=1000)
    several = [Work(make_artifact(each.name), 0.5, 30, each) for each in priorities]
    for work in several:
        for _ in range(work.queue):
            day.come(work)
    day.play(100)
    for work in several:
        times = [0.0, *(at for at, name in day.granted if name == work.artifact.name)]
        longest = max(later - at for at, later in itertools.pairwise([*times, 100.0]))
        # Three steps to the top; there are at most three others that are served in turns.
        assert longest <= 3 + len(priorities) + 2 * work.takes
