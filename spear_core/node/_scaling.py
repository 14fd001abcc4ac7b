"""How many instances a pool wants: pure functions of what it sees and what it may do."""

from __future__ import annotations

import math

import attrs

from spear_core.api import PoolConfig, PoolSettings

__all__ = [
    "Arrivals",
    "Load",
    "Peak",
    "Setbacks",
    "backoff_s",
    "demanded",
    "effective_config",
    "expected",
]

_HEADROOM = 1.25
"""Instances for each one that would be busy on average: arrivals are not evenly spread."""
_WINDOW_S = 10.0
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 60.0
_STABLE_S = 10.0
"""One that dies sooner after its start counts as an attempt that failed."""


@attrs.frozen(kw_only=True)
class Load:
    """What a pool has to do."""

    waiting: int
    """Tasks that wait for an instance."""
    busy: int
    """Executions on instances that will take more of them."""
    arrival_rate: float
    """Tasks that want an instance, per second."""
    execution_s: float
    """What an execution takes on average."""
    concurrency: int = 1
    """Executions that one instance may have at once."""


def demanded(load: Load) -> int:
    """Instances that what is here now would keep busy: one for each ``concurrency`` executions,
    running or waiting."""
    return -(-(load.busy + load.waiting) // load.concurrency)


def expected(load: Load) -> int:
    """Instances that arrivals at this rate will keep busy, with some headroom.

    By Little's law a rate of r per second and t seconds each keep ``r × t`` executions running on
    average. Rounded down: a function that is called now and then is not kept warm by that.
    """
    return int(load.arrival_rate * load.execution_s * _HEADROOM / load.concurrency)


def backoff_s(failures: int) -> float:
    """How long to wait before the next attempt to keep an instance warm, after so many in a row
    that did not start or died young: 0.5 s, doubled up to a minute."""
    if failures == 0:
        return 0.0
    return min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 30))


def effective_config(config: PoolConfig, wishes: PoolSettings, *, warm: bool) -> PoolConfig:
    """The node's ``[pool]`` with an artifact's own wishes in place of it where it has some.

    :param warm: ``False``: keep none, whatever is wished. ``max_instances`` wins over
        ``min_instances`` when the two come from different places.
    """
    own = attrs.asdict(wishes, filter=lambda _, value: value is not None)
    most = own.get("max_instances", config.max_instances)
    least = own.get("min_instances", config.min_instances) if warm else 0
    return attrs.evolve(config, **own | {"min_instances": min(least, most)})


@attrs.define
class Arrivals:
    """The rate of arrivals, from a counter that somebody else counts up."""

    _since: float = -math.inf
    _count: int = 0
    _rate: float = 0.0

    def rate(self, count: int, now: float) -> float:
        """Arrivals per second, over the last ten seconds or since the last call if that is longer.

        :param count: all arrivals so far.
        """
        passed = now - self._since
        if passed < _WINDOW_S:
            return self._rate
        self._rate = (count - self._count) / passed
        self._since, self._count = now, count
        return self._rate


@attrs.define
class Peak:
    """How many executions there were at once, in windows of time."""

    most: int = 0
    """In the present window; whoever begins one more keeps it up to date."""
    _before: float = math.inf
    _since: float = -math.inf

    def of_window(self, now: float, window_s: float, *, busy: int) -> float:
        """The most in this window and the one before; infinitely many until there is one before.

        :param busy: how many there are now.
        """
        if now - self._since >= window_s:
            self._before = math.inf if self._since == -math.inf else self.most
            self.most, self._since = busy, now
        return max(self._before, self.most)


@attrs.define
class Setbacks:
    """How often in a row an instance did not last, and how long to wait for the next attempt."""

    in_a_row: int = 0
    hold_until: float = -math.inf
    """Before, nothing is started only to be kept warm."""

    def learn(self, lived_s: float | None, now: float, *, died: bool) -> bool:
        """An instance has ended; returns whether that was one setback more.

        :param lived_s: since it was ready; ``None``: it never was.
        :param died: by no wish of ours. One that we ended early says nothing.
        """
        if lived_s is not None and lived_s >= _STABLE_S:
            self.in_a_row = 0
        elif died:
            self.in_a_row += 1
        else:
            return False
        self.hold_until = now + backoff_s(self.in_a_row)
        return self.in_a_row > 0
