"""Which instance takes the next execution."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from spear_core.api._artifact import SELECTION_POLICIES
from spear_core.node._selection import (
    POLICIES,
    Policy,
    least_outstanding,
    round_robin,
    weighted,
)


@attrs.define(eq=False)
class One:
    name: str
    outstanding: int = 0
    last_lent: int = 0
    work_s: float = 0.0
    execution_s: float = 1.0


def lend(policy: Policy, candidates: list[One], times: int) -> Counter[str]:
    """Lend and take back so often, one after the other."""
    given: Counter[str] = Counter()
    for number in range(1, times + 1):
        chosen = policy(candidates)
        chosen.last_lent = number
        chosen.work_s += chosen.execution_s
        given[chosen.name] += 1
        candidates.remove(chosen)
        candidates.append(chosen)
    return given


def test_every_name_that_the_configuration_takes_has_a_policy() -> None:
    assert set(POLICIES) == set(SELECTION_POLICIES)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_only_one_is_chosen_and_nothing_is_changed(policy: Policy) -> None:
    only = One("only", outstanding=3, last_lent=7, work_s=2.5)
    before = attrs.asdict(only)
    assert policy([only]) is only
    assert attrs.asdict(only) == before


def test_least_outstanding_spreads_what_runs() -> None:
    assert least_outstanding([One("a", 2), One("b", 1), One("c", 3)]).name == "b"


def test_least_outstanding_uses_again_what_came_free_last() -> None:
    instances = [One("a"), One("b"), One("c", 1)]
    assert lend(least_outstanding, instances, 10) == {"b": 10}


def test_round_robin_gives_everyone_a_turn() -> None:
    instances = [One("a"), One("b", 5), One("c")]
    assert lend(round_robin, instances, 9) == {"a": 3, "b": 3, "c": 3}


def test_weighted_gives_a_slow_one_less() -> None:
    instances = [One("fast", execution_s=1), One("slow", execution_s=4)]
    assert lend(weighted, instances, 50) == {"fast": 40, "slow": 10}


def test_weighted_takes_turns_while_nothing_is_known() -> None:
    instances = [One("a", execution_s=0), One("b", execution_s=0)]
    assert lend(weighted, instances, 6) == {"a": 3, "b": 3}
