"""Which task runs next: priorities, fairness between artifacts, limits, reservations.

Nothing here waits or knows of trio: a pending task is a :class:`Turn`, a small record whose
``wake`` is called when its turn has come.

Tasks of one artifact and one priority form a *flow*, first come, first served. Whenever there is
room, the highest priority goes next, and one that has not been served for ``ageing`` seconds
counts one more, for twice that long two more: so each comes to its turn, and none gains anything by
the length of its queue. Within a priority the artifact goes first that has had the least of the
slots' time for its weight (start-time fair queueing, https://doi.org/10.1109/90.649569; the time
of an execution is guessed when it begins and put right when it ends).

An artifact at its limit, a caller at its limit and a reservation that does not fit stand aside and
keep nobody else from running, except that a reservation which has stood at the head for
``ageing`` seconds gets what others give back before any other reservation does.

Who leaves its slot to wait for something else comes back before those who never had one.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

from spear_core.api import Artifact, ExecutionConfig, Priority
from spear_core.node._admission import Admission
from spear_core.node._capacity import Capacity
from spear_core.node._turns import Caller, Flow, Line, Turn, TurnState

__all__ = ["RunQueue"]

_LEAST_COST_S = 1e-4
"""What an execution counts at least: the node's own work for it."""
_LEARNING = 0.1
"""How much the latest execution changes the guess for the next."""
_MOST_LINES = 1_000
"""Artifacts remembered that have nothing here now."""

_LOW, _NORMAL, _HIGH, _URGENT = Priority
_FROM_TOP = (_URGENT, _HIGH, _NORMAL, _LOW)

_Entry = tuple[float, int, int, Flow]
"""The artifact's time, the head's number, a stamp: see :meth:`RunQueue._push`."""


class RunQueue:
    """A fixed number of slots, and the tasks that wait for one.

    :param instances_of: how many executions of an artifact could have an instance at once.
    :param clock: seconds, as deadlines have them.
    """

    def __init__(
        self,
        config: ExecutionConfig,
        capacity: Capacity,
        *,
        instances_of: Callable[[Artifact], float],
        clock: Callable[[], float],
    ) -> None:
        self.capacity = capacity
        self._instances_of = instances_of
        self.running = 0
        """Slots that are held."""
        self._free_millicores = capacity.millicores
        self._free_memory = capacity.memory_bytes
        self._clock = clock
        self._admission = Admission(config, clock)
        self._lines: dict[tuple[str, int], Line] = {}
        self._numbers = itertools.count(1)
        self._stamps = itertools.count(1)
        self._ready: dict[Priority, list[_Entry]] = {priority: [] for priority in Priority}
        self._flows: dict[Priority, int] = dict.fromkeys(Priority, 0)
        """How many entries of ``_ready`` are valid."""
        self._served: dict[Priority, float] = dict.fromkeys(Priority, 0.0)
        """When one of this priority last got a slot, or began to wait for one."""
        self._short: dict[Flow, None] = {}
        """Flows whose head's reservation does not fit now."""
        self._claim: Flow | None = None
        """The flow that gets reserved capacity first."""
        self._returning: dict[Turn, None] = {}
        self._virtual = 0.0
        self.reconfigure(config)

    def reconfigure(self, config: ExecutionConfig) -> None:
        """Take other limits, also for what waits already."""
        self.limit = config.max_concurrent_tasks
        self._ageing = config.ageing_ms / 1000
        self._admission.config = config
        for caller in self._admission.callers.values():
            caller.limit = config.max_concurrent_per_caller or math.inf
            while caller.aside:
                self._take_back(caller)
        for line in self._lines.values():
            line.max_in_flight = self._instances_of(line.artifact)
            self._reopen(line)
        self._dispatch()

    @property
    def queued(self) -> int:
        """Admitted, and without a slot."""
        return self._admission.admitted - self.running

    def queued_of(self, key: tuple[str, int]) -> int:
        """The same for one artifact."""
        line = self._lines.get(key)
        return line.admitted - line.active if line is not None else 0

    # Coming in and going out ---------------------------------------------------------------------

    def admit(
        self, artifact: Artifact, caller: str, priority: Priority, *, again: bool = False
    ) -> Turn:
        """A place for one task, until :meth:`done`.

        :param again: it was admitted before the node's start: no queue is too full for it.
        :raises ResourceExhaustedError: a queue or a quota is full (with ``retry_after``), or its
            reservation is more than this node has (not retryable).
        """
        line = self._line(artifact)
        if line.needs is not None:
            self.capacity.check_room_for(line.needs, artifact.ref)
        entered = self._admission.enter(line, caller, checked=not again)
        return Turn(line, entered, priority, next(self._numbers))

    def done(self, turn: Turn) -> None:
        """Give everything back; twice is fine."""
        if turn.state is not TurnState.DONE:
            now = self._clock()
            self._release(turn, now)
            turn.state = TurnState.DONE
            turn.waker = turn.wake = None
            self._admission.leave(turn.line, turn.caller, now)

    def _line(self, artifact: Artifact) -> Line:
        key = (artifact.name, artifact.version)
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= _MOST_LINES:
                self._lines = {k: each for k, each in self._lines.items() if each.admitted}
            line = self._lines[key] = Line(artifact)
            line.max_in_flight = self._instances_of(artifact)
        return line

    # One turn ------------------------------------------------------------------------------------

    def take(self, turn: Turn) -> bool:
        """Take a slot, or stand in the queue (``False``) until :attr:`Turn.wake` is called."""
        line = turn.line
        # Whatever waits while a slot is free waits for something else (see _dispatch), so this
        # overtakes nobody.
        if (
            self.running < self.limit
            and line.open
            and not turn.caller.full
            and (line.needs is None or (self._claim is None and self._reservable(line.needs)))
        ):
            self._grant(turn, self._clock())
            if self._claim is not None:
                self._dispatch()  # its caller may have no more room now for the claim
            return True
        turn.state = TurnState.QUEUED
        if not line.waiting:
            line.virtual = max(line.virtual, self._virtual)
        line.waiting += 1
        flow = line.flows.get(turn.priority)
        if flow is None:
            flow = line.flows[turn.priority] = Flow(line, turn.priority)
        self._insert(flow, turn)
        if self.running < self.limit:
            self._dispatch()
        return self.holds(turn)

    def holds(self, turn: Turn) -> bool:
        """Whether the turn has a slot now."""
        return turn.state is TurnState.HELD

    def leave(self, turn: Turn) -> None:
        """Give the slot to others for a while; the turn keeps its instance, and goes before those
        who never ran when it comes back."""
        self._give_back(turn, self._clock())
        turn.state = TurnState.AWAY
        self._dispatch()

    def come_back(self, turn: Turn) -> bool:
        """Take a slot again, or wait for one, as :meth:`take`."""
        turn.state = TurnState.RETURNING
        self._returning[turn] = None
        self._dispatch()
        return self.holds(turn)

    def give_up(self, turn: Turn) -> None:
        """Do not come back after all (a cancelled wait): the turn is away again."""
        self._end_return(turn)
        turn.state = TurnState.AWAY
        turn.waker = turn.wake = None
        self._dispatch()

    def release(self, turn: Turn) -> None:
        """Hold nothing and wait for nothing; the place stays."""
        self._release(turn, self._clock())

    def _release(self, turn: Turn, now: float) -> None:
        state = turn.state
        if state is TurnState.IDLE:
            return
        line = turn.line
        if state is TurnState.HELD:
            self._give_back(turn, now)
            line.in_flight -= 1
        elif state is TurnState.QUEUED or state is TurnState.ASIDE:
            line.waiting -= 1
            turn.state = TurnState.IDLE
            if state is TurnState.QUEUED:
                self._bury(line.flows[turn.priority])
                if turn.caller.aside:  # it may have been let back in place of the next of them
                    self._take_back(turn.caller)
            else:
                turn.caller.bury()
        else:
            if state is TurnState.RETURNING:
                self._end_return(turn)
            line.in_flight -= 1
        turn.state = TurnState.IDLE
        turn.waker = turn.wake = None
        if line.waiting:
            self._reopen(line)
        self._dispatch()

    # The order -----------------------------------------------------------------------------------

    def _insert(self, flow: Flow, turn: Turn) -> None:
        heap = flow.heap
        first = not heap or turn.seq < heap[0][0]
        if not heap:
            flow.head_since = self._clock()
            if not self._flows[flow.priority]:
                self._served[flow.priority] = flow.head_since
        heapq.heappush(heap, (turn.seq, turn))
        if first or not flow.stamp:
            self._push(flow)

    def _bury(self, flow: Flow) -> None:
        flow.bury()
        if not flow.any_left():
            self._unready(flow)

    def _push(self, flow: Flow) -> None:
        """Give a flow its entry among the ready ones, in place of an older one."""
        if not flow.any_left():
            self._unready(flow)
            return
        priority = flow.priority
        ready = self._ready[priority]
        if not flow.stamp:
            self._flows[priority] += 1
        flow.stamp = next(self._stamps)
        heapq.heappush(ready, (flow.line.virtual, flow.heap[0][0], flow.stamp, flow))
        if len(ready) > 64 + 4 * self._flows[priority]:
            ready[:] = [entry for entry in ready if entry[2] == entry[3].stamp]
            heapq.heapify(ready)

    def _unready(self, flow: Flow) -> None:
        if flow.stamp:
            flow.stamp = 0
            self._flows[flow.priority] -= 1

    def _reopen(self, line: Line) -> None:
        """Something has changed for a line: its flows may be ready again, at another place."""
        if not line.open:
            return
        back = [flow for flow in line.flows.values() if flow.heap and not flow.stamp]
        if back and line.virtual < self._virtual:
            # Time at the limit earns no claim to more than its share afterwards.
            line.virtual = self._virtual
            back = [flow for flow in line.flows.values() if flow.heap]  # all of them stand by it
        for flow in back:
            self._push(flow)

    def _dispatch(self) -> None:
        """Grant slots as long as there is one and somebody who may have it.

        Every change that could let somebody run ends here: so whatever waits while a slot is free
        waits for its artifact, its caller or its reservation.
        """
        while self.running < self.limit and (self._returning or self._short or self._any_ready()):
            now = self._clock()
            turn = self._next_returning() or self._next_ready(now)
            if turn is None:
                return
            wake, waker = turn.wake, turn.waker
            self._grant(turn, now)
            if wake is not None:
                wake(waker)

    def _next_returning(self) -> Turn | None:
        for turn in self._returning:
            line = turn.line
            if (
                line.active < line.max_concurrent
                and not turn.caller.full
                and (line.needs is None or self._fits(line.needs))
            ):
                self._end_return(turn)
                return turn
        return None

    def _end_return(self, turn: Turn) -> None:
        del self._returning[turn]
        if turn.line.needs is not None:
            self._retry_short()

    def _any_ready(self) -> bool:
        flows = self._flows
        return bool(flows[_NORMAL] or flows[_HIGH] or flows[_URGENT] or flows[_LOW])

    def _next_ready(self, now: float) -> Turn | None:
        self._check_claim()
        waiting = [priority for priority in _FROM_TOP if self._flows[priority]]
        if len(waiting) > 1 and self._ageing:
            waiting.sort(key=lambda each: self._rank(each, now))
        for priority in waiting:
            turn = self._next_of(priority, now)
            if turn is not None:
                self._served[priority] = now
                return turn
        return None

    def _rank(self, priority: Priority, now: float) -> tuple[int, float]:
        """By which priorities are served, the least first; of equals, the one not served for
        longest."""
        served = self._served[priority]
        return -min(_URGENT, priority + int((now - served) / self._ageing)), served

    def _next_of(self, priority: Priority, now: float) -> Turn | None:
        ready = self._ready[priority]
        while ready:
            _, seq, stamp, flow = ready[0]
            if stamp != flow.stamp:
                heapq.heappop(ready)
                continue
            head = flow.head()
            if head is None or not flow.line.open:
                self._unready(flow)
            elif head.seq != seq:
                self._new_head(flow, now)
            elif flow.line.needs is not None and not self._may_reserve(flow, now):
                self._unready(flow)
                self._short[flow] = None
            else:
                heapq.heappop(flow.heap)
                flow.line.waiting -= 1
                self._unready(flow)
                self._new_head(flow, now)
                return head
        return None

    def _new_head(self, flow: Flow, now: float) -> None:
        flow.head_since = now
        self._push(flow)

    # Reservations --------------------------------------------------------------------------------

    def _fits(self, needs: Capacity) -> bool:
        return needs.millicores <= self._free_millicores and needs.memory_bytes <= self._free_memory

    def _reservable(self, needs: Capacity) -> bool:
        """It fits, and nobody who comes back waits for capacity."""
        return self._fits(needs) and not any(turn.line.needs for turn in self._returning)

    def _may_reserve(self, flow: Flow, now: float) -> bool:
        needs = flow.line.needs
        assert needs is not None
        if self._claim not in (None, flow):
            return False
        if self._reservable(needs):
            if self._claim is not None:
                self._claim = None
                self._retry_short()
            return True
        if self._claim is None and now - flow.head_since >= self._ageing:
            self._claim = flow
        return False

    def _check_claim(self) -> None:
        """Let go of a claim whose flow could not use it any more."""
        claim = self._claim
        if claim is not None and (claim.head() is None or not claim.line.open):
            self._claim = None
            self._retry_short()

    def _retry_short(self) -> None:
        short, self._short = self._short, {}
        for flow in short:
            if flow.heap and not flow.stamp:
                self._push(flow)

    # Keeping count -------------------------------------------------------------------------------

    def _grant(self, turn: Turn, now: float) -> None:
        line = turn.line
        if turn.state is not TurnState.RETURNING:
            line.in_flight += 1
        turn.state = TurnState.HELD
        turn.since = now
        turn.waker = turn.wake = None
        self.running += 1
        line.active += 1
        turn.caller.active += 1
        if (needs := line.needs) is not None:
            self._free_millicores -= needs.millicores
            self._free_memory -= needs.memory_bytes
        if line.virtual > self._virtual:
            self._virtual = line.virtual
        elif not line.waiting:
            line.virtual = self._virtual
        turn.charged = max(_LEAST_COST_S, line.typical_s)
        self._charge(line, turn.charged)

    def _give_back(self, turn: Turn, now: float) -> None:
        line, caller = turn.line, turn.caller
        held = now - turn.since
        self.running -= 1
        line.active -= 1
        caller.active -= 1
        line.typical_s += (held - line.typical_s) * _LEARNING
        self._charge(line, max(_LEAST_COST_S, held) - turn.charged)
        if (needs := line.needs) is not None:
            self._free_millicores += needs.millicores
            self._free_memory += needs.memory_bytes
        if line.waiting:
            self._reopen(line)
        if self._short:
            self._retry_short()
        if caller.aside:
            self._take_back(caller)

    def _take_back(self, caller: Caller) -> None:
        for flow, turn in caller.take_back():
            turn.state = TurnState.QUEUED
            self._insert(flow, turn)

    def _charge(self, line: Line, seconds: float) -> None:
        """Count time that a line's slots were held; its flows move in the order."""
        line.virtual += seconds / line.weight
        if line.waiting:
            for flow in line.flows.values():
                if flow.stamp:
                    self._push(flow)
