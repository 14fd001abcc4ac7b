"""A task that did not complete, as the error to raise."""

from __future__ import annotations

from spear_core.api import TaskInfo, TaskState
from spear_core.errors import TaskCancelledError, TaskError, TaskFailedError, TaskTimeoutError

__all__ = ["task_error"]


def task_error(task: TaskInfo) -> TaskError:
    """The error for a final task that is not ``completed``; its ``task_id`` is set."""
    info = task.result.error if task.result is not None else None
    code = info.code if info is not None else None
    message = info.message if info is not None else f"the task ended as {task.state.value}"
    error: TaskError
    if task.state is TaskState.CANCELLED:
        error = TaskCancelledError(message, code=code)
    elif task.state is TaskState.TIMEOUT:
        error = TaskTimeoutError(message, code=code)
    else:
        error = TaskFailedError(
            message,
            code=code,
            kind=info.kind if info is not None else "",
            details=info.details if info is not None else None,
        )
    error.task_id = task.task_id
    return error
