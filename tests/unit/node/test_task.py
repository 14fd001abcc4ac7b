"""Which changes of a task's state are legal; whole lives are in ``test_task_histories.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spear_core.api import TaskResult, TaskState
from spear_core.node._task import Task

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
    make_task: Callable[[], Task], path: list[TaskState]
) -> None:
    task = make_task()
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
