"""How many instances a pool wants."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_core.api import PoolConfig, PoolSettings
from spear_core.node._scaling import (
    Arrivals,
    Load,
    backoff_s,
    demanded,
    effective_config,
    expected,
)

CALM = Load(waiting=0, busy=0, arrival_rate=0.0, execution_s=0.0)


@pytest.mark.parametrize(
    ("waiting", "busy", "concurrency", "wanted"),
    [(0, 0, 1, 0), (3, 2, 1, 5), (0, 5, 4, 2), (4, 4, 4, 2), (1, 4, 4, 2), (1, 0, 100, 1)],
)
def test_what_is_here_demands_an_instance_for_each_so_many(
    waiting: int, busy: int, concurrency: int, wanted: int
) -> None:
    load = attrs.evolve(CALM, waiting=waiting, busy=busy, concurrency=concurrency)
    assert demanded(load) == wanted


@pytest.mark.parametrize(
    ("rate", "execution_s", "concurrency", "wanted"),
    [(10.0, 0.4, 1, 5), (10.0, 0.4, 5, 1), (0.1, 1.0, 1, 0), (0.0, 100.0, 1, 0)],
)
def test_what_comes_is_expected_to_keep_so_many_busy(
    rate: float, execution_s: float, concurrency: int, wanted: int
) -> None:
    load = attrs.evolve(CALM, arrival_rate=rate, execution_s=execution_s, concurrency=concurrency)
    assert expected(load) == wanted


@given(st.integers(0, 1000))
def test_attempts_become_rarer_but_never_end(failures: int) -> None:
    assert 0 <= backoff_s(failures) <= backoff_s(failures + 1) <= 60


def test_the_first_attempt_comes_at_once() -> None:
    assert [backoff_s(n) for n in range(5)] == [0, 0.5, 1, 2, 4]


def test_an_artifacts_wishes_come_before_the_nodes() -> None:
    node = PoolConfig(max_instances=8, idle_timeout_ms=7, selection="weighted")
    wishes = PoolSettings(max_instances=2, min_instances=1, max_executions_per_instance=0)
    assert effective_config(node, wishes, warm=True) == attrs.evolve(
        node, max_instances=2, min_instances=1
    )


def test_nothing_is_kept_of_a_version_that_is_not_to_be_warm() -> None:
    config = effective_config(PoolConfig(min_instances=3), PoolSettings(), warm=False)
    assert config == PoolConfig()


def test_the_most_wins_over_the_least() -> None:
    config = effective_config(PoolConfig(max_instances=2), PoolSettings(min_instances=5), warm=True)
    assert (config.min_instances, config.max_instances) == (2, 2)


@pytest.mark.parametrize("kind", [PoolConfig, PoolSettings])
def test_more_at_least_than_at_most_is_refused(kind: type[PoolConfig | PoolSettings]) -> None:
    with pytest.raises(ValueError, match="min_instances: 3 are more than max_instances"):
        kind(min_instances=3, max_instances=2)


def test_the_rate_of_arrivals_is_that_of_the_last_while() -> None:
    arrivals = Arrivals()
    assert arrivals.rate(5, 100.0) == 0  # since for ever
    assert arrivals.rate(50, 105.0) == 0  # too short a while to tell
    assert arrivals.rate(205, 120.0) == 10
    assert arrivals.rate(1000, 121.0) == 10
    assert arrivals.rate(205, 220.0) == 0
