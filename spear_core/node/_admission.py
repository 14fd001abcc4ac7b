"""Who may come in at all: queue limits and quotas, and when to come again."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from spear_core.api import ExecutionConfig
from spear_core.errors import ResourceExhaustedError
from spear_core.node._turns import Caller, Line

__all__ = ["Admission", "DrainRate"]

_MEMORY_S = 5.0
"""How long the drain rate remembers: about the patience of a caller that comes again."""
_SHARE = 0.9
"""Of the queue, that one artifact may have: so it can never keep all others out."""
_DRAINED = 0.1
"""Of what waits, that should be gone when the refused come again."""
_SOONEST_S, _LATEST_S = 0.01, 60.0
_MOST_CALLERS = 4_096
"""Callers remembered for their rate that have nothing here now."""


class DrainRate:
    """How many tasks end per second, of late."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = -math.inf

    def count(self, now: float) -> None:
        """One task has ended."""
        self._rate = self._rate * math.exp((self._at - now) / _MEMORY_S) + 1 / _MEMORY_S
        self._at = now

    def per_second(self, now: float) -> float:
        """The rate; what was long ago counts little."""
        return self._rate * math.exp((self._at - now) / _MEMORY_S) if self._rate else 0.0

    def seconds_for(self, tasks: float, now: float) -> float:
        """When so many will have ended: a hint, never 0 and never more than a minute."""
        rate = self.per_second(now)
        return min(_LATEST_S, max(_SOONEST_S, tasks / rate)) if rate else 1.0


@attrs.define(eq=False)
class Admission:
    """Counts who is in, and refuses who would be too many.

    :param clock: seconds; read only where a rate matters.
    """

    config: ExecutionConfig
    clock: Callable[[], float]
    drain: DrainRate = attrs.field(factory=DrainRate)
    admitted: int = 0
    callers: dict[str, Caller] = attrs.field(factory=dict)

    def enter(self, line: Line, name: str, *, checked: bool = True) -> Caller:
        """Take a place for one task. :raises ResourceExhaustedError: there is none (only if that is
        ``checked``)."""
        caller = self.callers.get(name)
        if caller is None:
            caller = self._new_caller(name)
        try:
            if checked:
                self._check(line, caller)
        except ResourceExhaustedError:
            self._forget_idle(caller)
            raise
        self.admitted += 1
        line.admitted += 1
        caller.admitted += 1
        return caller

    def leave(self, line: Line, caller: Caller, now: float) -> None:
        """Give the place back."""
        self.admitted -= 1
        line.admitted -= 1
        caller.admitted -= 1
        self.drain.count(now)
        if not caller.admitted:
            self._forget_idle(caller)

    def _new_caller(self, name: str) -> Caller:
        if len(self.callers) > _MOST_CALLERS:
            for old in [c for c in self.callers.values() if not c.admitted]:
                del self.callers[old.name]
        limit = self.config.max_concurrent_per_caller or math.inf
        caller = Caller(name=name, limit=limit, tokens=self._burst)
        self.callers[name] = caller
        return caller

    @property
    def _burst(self) -> float:
        """Tasks that a caller may submit at once: what it may in one second."""
        return max(1.0, self.config.max_rate_per_caller)

    def _forget_idle(self, caller: Caller) -> None:
        if not caller.admitted and not self.config.max_rate_per_caller:
            self.callers.pop(caller.name, None)

    def _check(self, line: Line, caller: Caller) -> None:
        config = self.config
        slots, queue = config.max_concurrent_tasks, config.max_queued_tasks
        if self.admitted >= slots + queue:
            self._refuse("the node", self.admitted, "execution.max_queued_tasks")
        per_artifact = config.max_queued_per_artifact or math.ceil(queue * _SHARE)
        if line.admitted >= min(slots, line.max_concurrent) + per_artifact:
            key = "execution.max_queued_per_artifact"
            self._refuse(f"the queue of {line.artifact.ref}", line.admitted, key)
        if (most := config.max_queued_per_caller) and (
            caller.admitted >= min(slots, caller.limit) + most
        ):
            what = f"the queue of caller {caller.name!r}"
            self._refuse(what, caller.admitted, "execution.max_queued_per_caller")
        if config.max_rate_per_caller:
            self._take_token(caller)

    def _refuse(self, what: str, admitted: int, key: str) -> None:
        retry_after = self.drain.seconds_for(max(1, admitted * _DRAINED), self.clock())
        raise ResourceExhaustedError(
            f"{what} is full: {admitted} tasks run or wait ({key}); "
            f"try again in {retry_after:.2g} s",
            retry_after=retry_after,
        )

    def _take_token(self, caller: Caller) -> None:
        rate = self.config.max_rate_per_caller
        now = self.clock()
        caller.tokens = min(self._burst, caller.tokens + (now - caller.tokens_at) * rate)
        caller.tokens_at = now
        if caller.tokens < 1:
            retry_after = (1 - caller.tokens) / rate
            raise ResourceExhaustedError(
                f"caller {caller.name!r} submits more than {rate:g} tasks a second "
                f"(execution.max_rate_per_caller); try again in {retry_after:.2g} s",
                retry_after=retry_after,
            )
        caller.tokens -= 1
