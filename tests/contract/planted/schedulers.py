"""Schedulers with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs

from spear_core.api import (
    NodeSnapshot,
    Scheduler,
    SchedulerSpec,
    TaskRequirements,
)
from spear_core.builtins.local_first import LocalFirst, LocalFirstConfig
from spear_core.testing import (
    SchedulerContract,
)


def scheduler_spec(make: Callable[[], Scheduler]) -> SchedulerSpec[LocalFirstConfig]:
    return SchedulerSpec(name="toy", make=lambda config: make(), config_cls=LocalFirstConfig)


class TestSoundScheduler(SchedulerContract):
    spec = scheduler_spec(LocalFirst)


class TestRanksTwice(SchedulerContract):
    """A scheduler that names its favourite twice."""

    caught_by = "test_ranks_each_node_once"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            ranked = super().rank(task, nodes)
            return [*ranked[:1], *ranked]

    spec = scheduler_spec(Planted)


class TestInventsNodes(SchedulerContract):
    """A scheduler that always names ``localhost``."""

    caught_by = "test_ranks_nodes_it_was_given"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            return [*super().rank(task, nodes), "localhost"]

    spec = scheduler_spec(Planted)


class TestIgnoresRuntimes(SchedulerContract):
    """A scheduler that ranks nodes without the runtime last, instead of not at all."""

    caught_by = "test_ranks_only_nodes_with_the_runtime"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            ranked = super().rank(task, nodes)
            return [*ranked, *(n.node_id for n in nodes if n.node_id not in ranked)]

    spec = scheduler_spec(Planted)


class TestIgnoresMemory(SchedulerContract):
    """A scheduler that does not look at memory."""

    caught_by = "test_ranks_only_nodes_with_the_memory"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            return super().rank(attrs.evolve(task, memory_bytes=0), nodes)

    spec = scheduler_spec(Planted)


class TestLocalOnly(SchedulerContract):
    """A scheduler that never leaves this node."""

    caught_by = "test_finds_the_only_node"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            return super().rank(task, [node for node in nodes if node.is_local])

    spec = scheduler_spec(Planted)


class TestInOrderOfTheList(SchedulerContract):
    """A scheduler that keeps the order it was given."""

    caught_by = "test_order_of_nodes_does_not_matter"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            able = set(super().rank(task, nodes))
            return [node.node_id for node in nodes if node.node_id in able]

    spec = scheduler_spec(Planted)


class TestRoundRobin(SchedulerContract):
    """A scheduler that remembers what it answered."""

    caught_by = "test_is_pure"

    class Planted(LocalFirst):
        turn = 0

        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            ranked = list(super().rank(task, nodes))
            self.turn += 1
            cut = self.turn % len(ranked) if ranked else 0
            return ranked[cut:] + ranked[:cut]

    spec = scheduler_spec(Planted)


class TestDice(SchedulerContract):
    """A scheduler that rolls dice."""

    caught_by = "test_is_pure"

    class Planted(LocalFirst):
        def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
            ranked = list(super().rank(task, nodes))
            random.SystemRandom().shuffle(ranked)
            return ranked

    spec = scheduler_spec(Planted)
