"""How many instances a pool wants."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_core.api import PoolConfig, PoolSettings
from spear_core.node._scaling import (
    Arrivals,
    Load,
    Peak,
    Setbacks,
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


def test_the_peak_is_that_of_two_windows() -> None:
    peak = Peak()
    peak.most = 5
    assert peak.of_window(100.0, 10.0, busy=2) == math.inf  # nothing is known of before
    peak.most = 7
    assert peak.of_window(109.0, 10.0, busy=1) == math.inf
    assert peak.of_window(110.0, 10.0, busy=1) == 7
    peak.most = 3
    assert peak.of_window(115.0, 10.0, busy=1) == 7
    assert peak.of_window(120.0, 10.0, busy=1) == 3


def test_the_peak_counts_what_goes_on_since_before() -> None:
    peak = Peak()
    peak.of_window(100.0, 10.0, busy=4)
    peak.of_window(110.0, 10.0, busy=4)
    assert peak.of_window(120.0, 10.0, busy=0) == 4


def test_setbacks_in_a_row_hold_longer_each_time() -> None:
    setbacks = Setbacks()
    assert setbacks.hold_until == -math.inf
    assert setbacks.learn(None, 100.0, died=True)
    assert (setbacks.in_a_row, setbacks.hold_until) == (1, 100.5)
    assert setbacks.learn(9.9, 200.0, died=True)
    assert (setbacks.in_a_row, setbacks.hold_until) == (2, 201.0)


def test_one_that_we_ended_early_says_nothing() -> None:
    setbacks = Setbacks(in_a_row=2, hold_until=7.0)
    assert not setbacks.learn(9.9, 100.0, died=False)
    assert not setbacks.learn(None, 100.0, died=False)
    assert (setbacks.in_a_row, setbacks.hold_until) == (2, 7.0)


@pytest.mark.parametrize("died", [True, False])
def test_one_that_lasted_ends_the_row(died: bool) -> None:
    setbacks = Setbacks(in_a_row=2, hold_until=107.0)
    assert not setbacks.learn(10.0, 100.0, died=died)
    assert (setbacks.in_a_row, setbacks.hold_until) == (0, 100.0)
