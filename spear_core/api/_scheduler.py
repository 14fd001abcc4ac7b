"""Schedulers: which node runs a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

__all__ = ["NodeSnapshot", "Scheduler", "SchedulerSpec", "TaskRequirements"]

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class TaskRequirements:
    """What a task needs of a node."""

    runtime: str
    artifact_digest: str = ""
    memory_bytes: int = 0
    """To be free on the node; 0: not declared."""


@attrs.frozen(kw_only=True)
class NodeSnapshot:
    """What is known about a node at one moment."""

    node_id: str
    runtimes: frozenset[str]
    """Those that are healthy."""
    is_local: bool = False
    running: int = 0
    queued: int = 0
    max_concurrent: int = 1
    free_memory_bytes: int = 0
    warm_artifacts: frozenset[str] = frozenset()
    """Digests for which an idle instance exists."""


class Scheduler(ABC):
    """Ranks nodes for a task. Pure: same input, same answer, no I/O, no waiting."""

    @abstractmethod
    def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
        """The ids of the nodes that can run ``task``, best first; empty when none can.

        Only ids from ``nodes``, each at most once, none whose ``runtimes`` lacks the task's. Must
        not depend on the order of ``nodes``, except between nodes that are otherwise equal.
        """


@attrs.frozen(kw_only=True)
class SchedulerSpec(Generic[C]):
    """Declares a scheduler; returned by the hook ``spear_schedulers``."""

    name: str
    make: Callable[[C], Scheduler]
    config_cls: type[C]
    priority: int = 0
    """The installed scheduler with the highest number is used; ``local-first`` has 0."""
    api: int = 1
