"""Tasks and answers as messages: what the public contract says beside SPEAR's own values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spear_core.api import InvokeResponse, TaskInfo, TaskResult, TaskState
from spear_transport_grpc._convert import converter
from spear_transport_grpc._protos.spear.v1 import common_pb2, function_pb2

__all__ = ["response_from_message", "response_to_message", "task_from_message", "task_to_message"]

_NUMBERS: Mapping[TaskState, Any] = {
    state: common_pb2.TaskState.Value(f"TASK_STATE_{state.name}") for state in TaskState
}
_FINAL = frozenset(number for state, number in _NUMBERS.items() if state.is_final)


def task_to_message(task: TaskInfo) -> common_pb2.Task:
    """A task with its result, if it has one."""
    message: common_pb2.Task = converter(TaskInfo).encode(task)
    if task.result is not None:
        _fill_result(message.result, task)
    return message


def task_from_message(message: common_pb2.Task) -> TaskInfo:
    """The inverse of :func:`task_to_message`."""
    return _task(message, message.result if message.HasField("result") else None)


def response_to_message(response: InvokeResponse) -> function_pb2.InvokeFunctionResponse:
    """The answer to a call: the result once, beside its task."""
    task = response.task
    message = function_pb2.InvokeFunctionResponse(
        success=response.success,
        message=response.message,
        execution_id=task.execution_id,
        task_id=task.task_id,
        status_endpoint=response.status_endpoint,
        estimated_completion_ms=response.estimated_completion_ms,
    )
    _fill_result(message.result, task)
    converter(TaskInfo).fill(message.task, task)
    return message


def response_from_message(message: function_pb2.InvokeFunctionResponse) -> InvokeResponse:
    """The inverse of :func:`response_to_message`."""
    return InvokeResponse(
        success=message.success,
        message=message.message,
        task=_task(message.task, message.result if message.task.state in _FINAL else None),
        status_endpoint=message.status_endpoint,
        estimated_completion_ms=message.estimated_completion_ms,
    )


def _task(message: common_pb2.Task, result: common_pb2.ExecutionResult | None) -> TaskInfo:
    decoded = None if result is None else converter(TaskResult).decode(result)
    return converter(TaskInfo).decode(message, result=decoded)


def _fill_result(message: common_pb2.ExecutionResult, task: TaskInfo) -> None:
    message.status = _NUMBERS[task.state]
    message.started_at = task.started_at or 0.0
    message.completed_at = task.completed_at or 0.0
    converter(TaskResult).fill(message, task.result or _NOTHING_YET)


_NOTHING_YET = TaskResult(attempt=0)
