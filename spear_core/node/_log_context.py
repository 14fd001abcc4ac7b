"""Which task the code is working on, so that a line in the node's log can say so."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from spear_core.node._tracing import trace_id

if TYPE_CHECKING:
    from spear_core.node._task import Task

__all__ = ["task_ids", "working_on"]

working_on: ContextVar[Task | None] = ContextVar("working_on", default=None)
"""Set while a task runs, for plugins that log in the middle of it, too. A background service that
is started on a task's behalf outlives it, and begins without."""


def task_ids() -> Mapping[str, str]:
    """What identifies the task at work, if there is one."""
    task = working_on.get()
    if task is None:
        return {}
    ids = {"task_id": task.id, "execution_id": task.execution_id}
    if trace := trace_id(task.trace):
        ids["trace_id"] = trace
    return ids
