"""Which changes of a task's state are legal; whole lives are in ``test_task_histories.py``."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spear_core.api import (
    Artifact,
    ExecutionConfig,
    InvokeRequest,
    TaskResult,
    TaskState,
)
from spear_core.node._capacity import Capacity
from spear_core.node._run_queue import RunQueue
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._tasks import Task, TaskTable

UNFINISHED = ("pending", "running", "retrying")
LEGAL = {
    ("running", "completed"),
    *((state, "running") for state in ("pending", "retrying")),
    *((state, "retrying") for state in UNFINISHED),
    *((state, end) for state in UNFINISHED for end in ("failed", "cancelled", "timeout")),
}


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(st.sampled_from(TaskState), max_size=12))
def test_an_illegal_change_of_state_is_refused_and_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, path: list[TaskState]
) -> None:
    task = make_task(tmp_path_factory.getbasetemp())
    for state in path:
        before = task.state
        move = functools.partial(task.finish, result=TaskResult()) if state.is_final else task.move
        if (before.value, state.value) in LEGAL:
            move(state)
            assert task.state is state
        else:
            with pytest.raises(AssertionError, match="→"):
                move(state)
            assert task.state is before


def make_task(folder: Path) -> Task:
    artifact = Artifact(
        name="f", version=1, digest="0", runtime="r", shape="s", path=folder / "f", filename="f"
    )
    queue = RunQueue(
        ExecutionConfig(), Capacity(), instances_of=lambda artifact: 9, clock=lambda: 0.0
    )
    request = InvokeRequest(function="f")
    turn = queue.admit(artifact, "", request.priority)
    logs = TaskLogDirectory(folder, max_bytes=1000, warn=logging.warning)
    table = TaskTable(logs, keep_finished=1, keep_finished_bytes=1)
    return table.add(artifact, request, turn, entry="", deadline=1.0)
