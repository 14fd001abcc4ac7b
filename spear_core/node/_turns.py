"""What stands in the run queue: turns, in flows, of lines; and the callers they are for."""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Callable
from typing import Any

import attrs

from spear_core.api import Artifact, Priority
from spear_core.node._capacity import Capacity

__all__ = ["Caller", "Flow", "Line", "Turn", "TurnState"]

_COMPACT_FROM = 32
"""Entries of withdrawn turns that are left lying at least."""


class TurnState(enum.IntEnum):
    """Where a turn is; an ``IntEnum`` because it is compared for every execution."""

    IDLE = 0
    """Admitted, but it stands nowhere: not yet, or between two attempts."""
    QUEUED = 1
    ASIDE = 2
    """Waits until its caller may have one more."""
    HELD = 3
    """It has a slot."""
    AWAY = 4
    """It has left its slot, and will come back."""
    RETURNING = 5
    DONE = 6


class Turn:
    """One task's place, from its admission to its end."""

    __slots__ = (
        "caller",
        "charged",
        "line",
        "priority",
        "seq",
        "since",
        "state",
        "wake",
        "waker",
    )

    def __init__(self, line: Line, caller: Caller, priority: Priority, seq: int) -> None:
        self.line = line
        self.caller = caller
        self.priority = priority
        self.seq = seq
        """The order of admission."""
        self.state = TurnState.IDLE
        self.since = 0.0
        self.charged = 0.0
        self.wake: Callable[[Any], None] | None = None
        """Called with ``waker`` when the turn gets its slot after a wait; two fields and no
        closure, for there may be 100,000 of them."""
        self.waker: Any = None


class Flow:
    """The waiting turns of one artifact and one priority."""

    __slots__ = ("dead", "head_since", "heap", "line", "priority", "stamp")

    def __init__(self, line: Line, priority: Priority) -> None:
        self.line = line
        self.priority = priority
        self.heap: list[tuple[int, Turn]] = []
        """By ``seq``: a turn that comes back for another attempt stands where it stood."""
        self.dead = 0
        """Entries whose turn was withdrawn."""
        self.head_since = 0.0
        self.stamp = 0
        """Of its one valid entry in the queue's heap; 0: it has none."""

    def head(self) -> Turn | None:
        """The first that still waits and whose caller may have one more."""
        heap = self.heap
        while heap:
            turn = heap[0][1]
            if turn.state is not TurnState.QUEUED:
                heapq.heappop(heap)
                self.dead -= 1
            elif turn.caller.full:
                heapq.heappop(heap)
                turn.caller.set_aside(self, turn)
            else:
                return turn
        return None

    def any_left(self) -> bool:
        """Whether any entry's turn still waits here; without one, there are no entries either."""
        if self.dead < len(self.heap):
            return True
        self.heap.clear()
        self.dead = 0
        return False

    def bury(self) -> None:
        """One entry's turn was withdrawn; clear up now and then."""
        self.dead += 1
        if self.dead > _COMPACT_FROM and self.dead * 2 > len(self.heap):
            self.heap = [entry for entry in self.heap if entry[1].state is TurnState.QUEUED]
            heapq.heapify(self.heap)
            self.dead = 0


class Line:
    """Everything the queue knows of one artifact."""

    __slots__ = (
        "active",
        "admitted",
        "artifact",
        "flows",
        "in_flight",
        "max_concurrent",
        "max_in_flight",
        "needs",
        "typical_s",
        "virtual",
        "waiting",
        "weight",
    )

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.weight = artifact.weight
        needs = Capacity.of(artifact.resources)
        self.needs = needs if needs != Capacity() else None
        """What each of its executions reserves."""
        self.max_concurrent = artifact.max_concurrent or math.inf
        """Slots it may hold."""
        self.max_in_flight = math.inf
        """Tasks that may have or await one of its instances."""
        self.admitted = 0
        self.active = 0
        self.in_flight = 0
        self.waiting = 0
        self.virtual = 0.0
        """The time its slots were held, over its weight."""
        self.typical_s = 0.0
        self.flows: dict[Priority, Flow] = {}

    @property
    def open(self) -> bool:
        """Whether one more of its turns may begin."""
        return self.active < self.max_concurrent and self.in_flight < self.max_in_flight


@attrs.define(eq=False)
class Caller:
    """Everything the queue knows of one caller."""

    name: str
    limit: float
    """Slots it may hold."""
    active: int = 0
    admitted: int = 0
    tokens: float = 0.0
    tokens_at: float = 0.0
    dead: int = 0
    aside: dict[Flow, list[tuple[int, Turn]]] = attrs.field(factory=dict)

    @property
    def full(self) -> bool:
        """Whether it has as many slots as it may."""
        return self.active >= self.limit

    def set_aside(self, flow: Flow, turn: Turn) -> None:
        """Let a turn wait here until the caller may have one more."""
        turn.state = TurnState.ASIDE
        heapq.heappush(self.aside.setdefault(flow, []), (turn.seq, turn))

    def bury(self) -> None:
        """One of those set aside was withdrawn; clear up now and then."""
        self.dead += 1
        if self.dead > _COMPACT_FROM and self.dead * 2 > sum(map(len, self.aside.values())):
            self.dead = 0
            for flow, heap in list(self.aside.items()):
                heap[:] = [entry for entry in heap if entry[1].state is TurnState.ASIDE]
                heapq.heapify(heap)
                if not heap:
                    del self.aside[flow]

    def take_back(self) -> list[tuple[Flow, Turn]]:
        """The first turn for each flow: one of them may go, and only the queue knows which."""
        found = []
        for flow, heap in list(self.aside.items()):
            while heap:
                _, turn = heapq.heappop(heap)
                if turn.state is not TurnState.ASIDE:
                    self.dead -= 1
                else:
                    found.append((flow, turn))
                    break
            if not heap:
                del self.aside[flow]
        return found
