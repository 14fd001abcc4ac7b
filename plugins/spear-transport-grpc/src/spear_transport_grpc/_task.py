"""Tasks and answers as messages: what the public contract says beside SPEAR's own values."""

from __future__ import annotations

from typing import Any

import attrs

from spear_core.api import InvokeResponse, TaskInfo, TaskResult, TaskState
from spear_transport_grpc._convert import converter
from spear_transport_grpc._protos.spear.v1 import common_pb2, function_pb2

__all__ = ["response_from_message", "response_to_message", "task_from_message", "task_to_message"]

_NUMBERS = {state: common_pb2.TaskState.Value(f"TASK_STATE_{state.name}") for state in TaskState}


def task_to_message(task: TaskInfo) -> common_pb2.Task:
    """A task with its result, if it has one."""
    if task.result is None:
        return _bare(task)
    return _bare(task, result=_result(task, task.result))


def task_from_message(message: common_pb2.Task) -> TaskInfo:
    """The inverse of :func:`task_to_message`."""
    result = None
    if message.HasField("result"):
        result = converter(TaskResult).decode(message.result)
    return converter(TaskInfo).decode(message, result=result)


def response_to_message(response: InvokeResponse) -> function_pb2.InvokeFunctionResponse:
    """The answer to a call: the result once, beside its task."""
    task = response.task
    return function_pb2.InvokeFunctionResponse(
        success=response.success,
        message=response.message,
        execution_id=task.execution_id,
        task_id=task.task_id,
        result=_result(task, task.result),
        status_endpoint=response.status_endpoint,
        estimated_completion_ms=response.estimated_completion_ms,
        task=_bare(task),
    )


def response_from_message(message: function_pb2.InvokeFunctionResponse) -> InvokeResponse:
    """The inverse of :func:`response_to_message`."""
    task = task_from_message(message.task)
    if task.state.is_final:
        task = attrs.evolve(task, result=converter(TaskResult).decode(message.result))
    return InvokeResponse(
        success=message.success,
        message=message.message,
        task=task,
        status_endpoint=message.status_endpoint,
        estimated_completion_ms=message.estimated_completion_ms,
    )


def _bare(task: TaskInfo, **more: Any) -> common_pb2.Task:
    message: common_pb2.Task = converter(TaskInfo).encode(task, **more)
    return message


def _result(task: TaskInfo, result: TaskResult | None) -> common_pb2.ExecutionResult:
    message: common_pb2.ExecutionResult = converter(TaskResult).encode(
        result or _NOTHING_YET,
        status=_NUMBERS[task.state],
        started_at=task.started_at or 0.0,
        completed_at=task.completed_at or 0.0,
    )
    return message


_NOTHING_YET = TaskResult(attempt=0)
