"""What goes into a call and what comes out of it, for every face of the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import attrs

from spear_core.api import ExecutionMode, InvokeRequest, Priority, TaskInfo, TaskState
from spear_core.builtins._task_errors import task_error

__all__ = ["CallOptions", "Input", "Result", "make_request", "result_of"]

Input = object
"""Bytes go as they are, text as UTF-8, ``None`` as nothing, anything else as JSON."""

_BYTES = "application/octet-stream"
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"


class CallOptions(TypedDict, total=False):
    """How a function is called; the fields of :class:`~spear_core.api.InvokeRequest`."""

    timeout_s: float | None
    priority: Priority
    idempotency_key: str
    content_type: str
    context: Mapping[str, str]
    trace: str
    caller: str
    parent_task_id: str
    detached: bool
    input_object: str


@attrs.frozen(kw_only=True)
class Result:
    """The output of a task that completed."""

    output: bytes
    content_type: str
    task: TaskInfo
    """All that is known about the task; its output is also here."""

    @property
    def task_id(self) -> str:
        """The task."""
        return self.task.task_id

    @property
    def text(self) -> str:
        """The output as UTF-8. :raises UnicodeDecodeError: it is not."""
        return self.output.decode()

    def json(self) -> Any:
        """The output, read as JSON. :raises ValueError: it is not."""
        import json

        return json.loads(self.output)


def _encode(value: Input) -> tuple[bytes, str]:
    if value is None:
        return b"", _BYTES
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), _BYTES
    if isinstance(value, str):
        return value.encode(), _TEXT
    import msgspec

    return msgspec.json.encode(value), _JSON


def make_request(
    function: str, value: Input, options: CallOptions, *, mode: ExecutionMode = ExecutionMode.SYNC
) -> InvokeRequest:
    """A request for this call. :raises TypeError: input that is no JSON, or an unknown option."""
    payload, content_type = _encode(value)
    known: dict[str, Any] = {"content_type": content_type, **options}
    return InvokeRequest(function=function, payload=payload, mode=mode, **known)


def result_of(task: TaskInfo) -> Result:
    """The result of a final task. :raises TaskError: it did not complete."""
    if task.state is not TaskState.COMPLETED or task.result is None:
        raise task_error(task)
    return Result(output=task.result.output, content_type=task.result.content_type, task=task)
