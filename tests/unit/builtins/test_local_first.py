"""In what order ``local-first`` ranks nodes."""

from __future__ import annotations

from typing import Any

import attrs

from spear_core.api import NodeSnapshot, TaskRequirements
from spear_core.builtins.local_first import LocalFirst

TASK = TaskRequirements(runtime="wasm", artifact_digest="d1", memory_bytes=10)
NODE = NodeSnapshot(
    node_id="", runtimes=frozenset({"wasm"}), max_concurrent=4, free_memory_bytes=100
)


def rank(**nodes: NodeSnapshot) -> list[str]:
    named = [attrs.evolve(node, node_id=name) for name, node in nodes.items()]
    return list(LocalFirst().rank(TASK, named))


def node(**changes: Any) -> NodeSnapshot:
    return attrs.evolve(NODE, **changes)


def test_local_comes_first_even_when_others_are_warm() -> None:
    warm = node(warm_artifacts=frozenset({"d1"}))
    assert rank(a=warm, b=node(is_local=True, running=3)) == ["b", "a"]


def test_a_full_local_node_comes_after_free_ones() -> None:
    assert rank(a=node(is_local=True, running=3, queued=1), b=node(running=3)) == ["b", "a"]


def test_among_full_ones_local_is_first() -> None:
    assert rank(a=node(running=4), b=node(is_local=True, running=9)) == ["b", "a"]


def test_warm_before_idle_before_busy_before_name() -> None:
    warm = node(warm_artifacts=frozenset({"d1"}), running=3)
    assert rank(a=node(running=1), d=node(), c=node(), b=warm) == ["b", "c", "d", "a"]
