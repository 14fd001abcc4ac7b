"""How tasks end: their results, within limits and without secrets."""

from __future__ import annotations

from spear_core.api import (
    ErrorInfo,
    ExecutionResponse,
    ExecutionStatus,
    ObjectStat,
    TaskResult,
    TaskState,
)
from spear_core.errors import SpearError
from spear_core.node._secrets import Secrets
from spear_core.node._task import Task

__all__ = ["Results"]

_WHERE = {
    TaskState.RUNNING: "running",
    TaskState.RETRYING: "waiting for another attempt",
}


class Results:
    """Makes the results of one node's tasks."""

    def __init__(self, node_id: str, secrets: Secrets, *, max_output_bytes: int) -> None:
        self._node_id = node_id
        self._secrets = secrets
        self.max_output_bytes = max_output_bytes
        """Of an artifact that has no limit of its own."""

    def error_info(self, task: Task, error: SpearError) -> ErrorInfo:
        """An error that ended an attempt, for the caller."""
        info = ErrorInfo(code=error.code, message=error.message, kind=type(error).__name__)
        return self._secrets.strike_error(task.artifact, info)

    def _unanswered(self, task: Task, *, error: ErrorInfo) -> TaskResult:
        """The result of a task whose guest gave no answer."""
        return TaskResult(
            error=error,
            node_id=self._node_id,
            execution_time_ms=(task.execution_s or 0.0) * 1000,
            queue_time_ms=task.queue_s * 1000,
            cold=task.cold,
            instance_id=task.instance_id,
            attempt=task.attempt,
        )

    def finish_stopped(self, task: Task) -> None:
        """The task's scope or its caller's was cancelled: on request, or by the deadline."""
        if task.cancel_reason is not None:
            info = ErrorInfo(
                code="cancelled", message=f"the task was cancelled: {task.cancel_reason}"
            )
            state = TaskState.CANCELLED
        else:
            where = _WHERE.get(task.state, "waiting for its turn")
            info = ErrorInfo(
                code="deadline_exceeded",
                message=f"the task's deadline passed while it was {where}",
            )
            state = TaskState.TIMEOUT
        task.finish(state, self._unanswered(task, error=info))

    def finish_failed(self, task: Task, info: ErrorInfo) -> None:
        """The last attempt broke."""
        task.finish(TaskState.FAILED, self._unanswered(task, error=info))

    def most_output(self, task: Task) -> int:
        """Bytes that its output may have."""
        return task.artifact.limits.output_bytes or self.max_output_bytes

    def finish(
        self,
        task: Task,
        response: ExecutionResponse,
        elapsed: float,
        kept: ObjectStat | None = None,
    ) -> None:
        """The guest has answered, after ``elapsed`` seconds.

        :param kept: the object that the output is in, if it is.
        """
        output, error = response.payload, response.error
        most = self.most_output(task)
        if len(output) > most:
            error = ErrorInfo(
                code="resource_exhausted",
                message=f"the output has {len(output)} bytes; {most} are allowed "
                "(the artifact's output limit, else execution.max_output_bytes)",
            )
            output = b""
        if error is not None:
            error = self._secrets.strike_error(task.artifact, error)
        completed = response.status is ExecutionStatus.COMPLETED and error is None
        result = TaskResult(
            output=b"" if kept else output,
            content_type=response.content_type,
            object_key=kept.key if kept else "",
            object_size=kept.size if kept else 0,
            error=error,
            execution_time_ms=elapsed * 1000,
            queue_time_ms=task.queue_s * 1000,
            cold=task.cold,
            instance_id=task.instance_id,
            node_id=self._node_id,
            attempt=task.attempt,
            usage=response.usage,
        )
        task.finish(TaskState.COMPLETED if completed else TaskState.FAILED, result)
