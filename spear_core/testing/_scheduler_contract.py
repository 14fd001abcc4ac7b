"""The contract suite for schedulers."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from spear_core.api import NodeSnapshot, Scheduler, SchedulerSpec, TaskRequirements

__all__ = ["SchedulerContract"]


def _cluster(chance: random.Random, size: int) -> list[NodeSnapshot]:
    """Nodes of which no two are equal."""
    runtimes = ("wasm", "process", "other")
    return [
        NodeSnapshot(
            node_id=f"node-{number}",
            runtimes=frozenset(chance.sample(runtimes, chance.randint(0, 3))),
            is_local=number == 0,
            running=chance.randint(0, 8),
            queued=chance.choice((0, 0, 0, 5)),
            max_concurrent=chance.randint(1, 8),
            free_memory_bytes=chance.choice((0, 1 << 20, 1 << 30)) + number,
            warm_artifacts=frozenset(chance.sample(("d1", "d2"), chance.randint(0, 2))),
        )
        for number in range(size)
    ]


_TASKS = (
    TaskRequirements(runtime="wasm"),
    TaskRequirements(runtime="process", artifact_digest="d1"),
    TaskRequirements(runtime="wasm", memory_bytes=1 << 21),
)


class SchedulerContract:
    """What every scheduler promises. Subclass it and set :attr:`spec`::

    class TestSpread(SchedulerContract):
        spec = SPEC
    """

    spec: ClassVar[SchedulerSpec[Any]]
    """The scheduler under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults."""

    def make_scheduler(self) -> Scheduler:
        """The scheduler, as a node makes it. Override it to make yours in another way."""
        return self.spec.make(self.spec.config_cls() if self.config is None else self.config)

    def _cases(self) -> list[tuple[TaskRequirements, list[NodeSnapshot]]]:
        chance = random.Random(3)
        return [(task, _cluster(chance, size)) for task in _TASKS for size in range(12)]

    def test_ranks_nodes_it_was_given(self) -> None:
        """``rank``: only ids from ``nodes``."""
        scheduler = self.make_scheduler()
        for task, nodes in self._cases():
            assert set(scheduler.rank(task, nodes)) <= {node.node_id for node in nodes}

    def test_ranks_each_node_once(self) -> None:
        """``rank``: each at most once."""
        scheduler = self.make_scheduler()
        for task, nodes in self._cases():
            ranked = list(scheduler.rank(task, nodes))
            assert len(ranked) == len(set(ranked))

    def test_ranks_only_nodes_with_the_runtime(self) -> None:
        """``rank``: none whose ``runtimes`` lacks the task's."""
        scheduler = self.make_scheduler()
        for task, nodes in self._cases():
            able = {node.node_id for node in nodes if task.runtime in node.runtimes}
            assert set(scheduler.rank(task, nodes)) <= able

    def test_ranks_only_nodes_with_the_memory(self) -> None:
        """``rank``: nodes that can run the task, so none with less free memory than it declares."""
        scheduler = self.make_scheduler()
        for task, nodes in self._cases():
            able = {n.node_id for n in nodes if n.free_memory_bytes >= task.memory_bytes}
            assert set(scheduler.rank(task, nodes)) <= able

    def test_finds_the_only_node(self) -> None:
        """``rank``: a node that can run the task is in the answer; empty when none can."""
        scheduler = self.make_scheduler()
        able = NodeSnapshot(node_id="able", runtimes=frozenset({"wasm"}), free_memory_bytes=1 << 30)
        unable = NodeSnapshot(node_id="unable", runtimes=frozenset({"process"}))
        task = TaskRequirements(runtime="wasm")
        assert list(scheduler.rank(task, [unable, able])) == ["able"]
        assert list(scheduler.rank(task, [unable])) == []
        assert list(scheduler.rank(task, [])) == []

    def test_order_of_nodes_does_not_matter(self) -> None:
        """``rank`` does not depend on the order of ``nodes``."""
        scheduler = self.make_scheduler()
        chance = random.Random(4)
        for task, nodes in self._cases():
            expected = list(scheduler.rank(task, nodes))
            for _ in range(3):
                shuffled = chance.sample(nodes, len(nodes))
                assert list(scheduler.rank(task, shuffled)) == expected

    def test_is_pure(self) -> None:
        """``rank``: same input, same answer, whatever was asked before; changes nothing."""
        scheduler, cases = self.make_scheduler(), self._cases()
        untouched = copy.deepcopy(cases)
        first = [_ranked(scheduler, task, nodes) for task, nodes in cases]
        again = [_ranked(scheduler, task, nodes) for task, nodes in reversed(cases)]
        assert first == again[::-1]
        assert first == [_ranked(self.make_scheduler(), task, nodes) for task, nodes in cases]
        assert cases == untouched


def _ranked(
    scheduler: Scheduler, task: TaskRequirements, nodes: Sequence[NodeSnapshot]
) -> list[str]:
    return list(scheduler.rank(task, nodes))
