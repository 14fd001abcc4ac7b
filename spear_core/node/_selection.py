"""Which of a pool's instances takes the next execution: a policy is a pure function.

A policy is given the instances that have room, at least one, in the order in which they last came
free: the one that came free last is last. It returns one of them and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Reversible
from operator import attrgetter
from types import MappingProxyType
from typing import Protocol, TypeVar

__all__ = ["POLICIES", "Candidate", "Policy", "least_outstanding", "round_robin", "weighted"]


class Candidate(Protocol):
    """What a policy may know of an instance."""

    outstanding: int
    """Executions it has at the moment."""
    last_lent: int
    """Number of its last lending in the order of the whole pool; 0: it has not been lent yet."""
    work_s: float
    """Seconds of work it has been given; one that joins late begins with the least of the
    others."""


C = TypeVar("C", bound=Candidate)
_by_turn = attrgetter("last_lent")
_by_work = attrgetter("work_s", "last_lent")


class Policy(Protocol):
    """See the module."""

    def __call__(self, candidates: Reversible[C]) -> C:
        """One of ``candidates``."""


def least_outstanding(candidates: Reversible[C]) -> C:
    """The one with the fewest executions; of several, the one that came free last.

    So that what the machine has in its caches is used again, and an instance too many stays idle
    and goes after its idle timeout.
    """
    best: C | None = None
    for candidate in reversed(candidates):
        if candidate.outstanding == 0:
            return candidate
        if best is None or candidate.outstanding < best.outstanding:
            best = candidate
    assert best is not None, "a policy needs a candidate"
    return best


def round_robin(candidates: Reversible[C]) -> C:
    """The one whose last turn was longest ago: all get the same number of executions."""
    return min(candidates, key=_by_turn)


def weighted(candidates: Reversible[C]) -> C:
    """The one that was given the least work, in seconds: all get the same amount of it.

    An instance's weight is its own speed as observed: each execution counts for as many seconds as
    its executions take on average, so one that is half as fast gets half as many.
    """
    return min(candidates, key=_by_work)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "least_outstanding": least_outstanding,
        "round_robin": round_robin,
        "weighted": weighted,
    }
)
"""By the name that ``pool.selection`` has for them."""
