"""The scheduler ``local-first``: run it here if possible, else where it runs soonest."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from spear_core.api import NodeSnapshot, Scheduler, TaskRequirements

__all__ = ["LocalFirst", "LocalFirstConfig"]


@attrs.frozen(kw_only=True)
class LocalFirstConfig:
    """It has no settings."""


class LocalFirst(Scheduler):
    """Nodes with a free slot before full ones; among equals this node, then those with a warm
    instance, then the least loaded, then by id."""

    def rank(self, task: TaskRequirements, nodes: Sequence[NodeSnapshot]) -> Sequence[str]:
        able = {
            node.node_id: node
            for node in nodes
            if task.runtime in node.runtimes and task.memory_bytes <= node.free_memory_bytes
        }
        return sorted(able, key=lambda node_id: _preference(task, able[node_id]))


def _preference(task: TaskRequirements, node: NodeSnapshot) -> tuple[bool, bool, bool, float, str]:
    waiting = node.running + node.queued
    return (
        waiting >= node.max_concurrent,
        not node.is_local,
        task.artifact_digest not in node.warm_artifacts,
        waiting / max(node.max_concurrent, 1),
        node.node_id,
    )
