"""The run queue, one promise at a time."""

from __future__ import annotations

import math
from pathlib import Path

from spear_core.api import Artifact, ExecutionConfig, Priority
from spear_core.node._capacity import Capacity
from spear_core.node._run_queue import RunQueue
from spear_core.node._turns import Turn

ARTIFACT = Artifact(
    name="f", version=1, digest="0" * 64, runtime="r", shape="s", path=Path("f"), filename="f"
)


def test_one_that_goes_before_its_turn_leaves_it_to_the_next_of_its_caller() -> None:
    config = ExecutionConfig(max_concurrent_tasks=2, max_concurrent_per_caller=1)
    queue = RunQueue(config, Capacity(), instances_of=lambda _: math.inf, clock=lambda: 0.0)
    ran: list[str] = []

    def come(name: str, priority: Priority = Priority.NORMAL) -> Turn:
        turn = queue.admit(ARTIFACT, name[0], priority)
        turn.wake, turn.waker = ran.append, name
        if queue.take(turn):
            ran.append(name)
        return turn

    a1, b1, a2, _a3 = [come(name) for name in ("a1", "b1", "a2", "a3")]
    queue.done(b1)  # caller a has what it may have: its others are set aside
    c1 = come("c1")
    come("d1", Priority.URGENT)
    queue.done(a1)  # which lets one of them back, behind what is urgent
    assert ran == ["a1", "b1", "c1", "d1"]
    queue.done(a2)
    queue.done(c1)
    assert ran[-1] == "a3"
