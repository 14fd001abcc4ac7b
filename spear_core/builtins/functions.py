"""The hostcalls ``functions.*``: a function calls another one (``docs/calls.md``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import msgspec

from spear_core.api import (
    FunctionCalls,
    HostcallContext,
    HostcallProvider,
    InvokeRequest,
    PluginContext,
    Priority,
    TaskInfo,
    TaskState,
)
from spear_core.builtins._call_payload import pack, unpack
from spear_core.builtins._task_errors import task_error

__all__ = ["NAMES", "FunctionsConfig", "open_functions"]

NAMES = frozenset({"functions.invoke", "functions.start", "functions.wait", "functions.cancel"})


@attrs.frozen(kw_only=True)
class FunctionsConfig:
    """These hostcalls have no settings."""


class _CallHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``functions.invoke`` and ``functions.start``."""

    function: str
    content_type: str = "application/octet-stream"
    timeout_s: float | None = None
    priority: Literal["low", "normal", "high", "urgent"] = "normal"
    idempotency_key: str = ""
    context: dict[str, str] = {}
    detached: bool = False
    input_object: str = ""


class _TaskHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``functions.wait`` and ``functions.cancel``."""

    task_id: str
    reason: str = ""


class _Functions(HostcallProvider):
    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> bytes:
        functions = caller.functions
        assert functions is not None  # a node gives it
        if name == "functions.invoke":
            return _ended(await functions.invoke(_request(name, payload)))
        if name == "functions.start":
            return pack({"task_id": (await functions.start(_request(name, payload))).task_id})
        return await self._on_child(functions, name, payload)

    async def _on_child(self, functions: FunctionCalls, name: str, payload: bytes) -> bytes:
        head, _ = unpack(name, payload, _TaskHead)
        if name == "functions.wait":
            return _ended(await functions.wait(head.task_id))
        task = await functions.cancel(head.task_id, reason=head.reason)
        return pack({"task_id": task.task_id, "state": task.state.value})


def _request(name: str, payload: bytes) -> InvokeRequest:
    head, value = unpack(name, payload, _CallHead)
    return InvokeRequest(
        function=head.function,
        payload=bytes(value),
        content_type=head.content_type,
        timeout_s=head.timeout_s,
        priority=Priority[head.priority.upper()],
        idempotency_key=head.idempotency_key,
        context=head.context,
        detached=head.detached,
        input_object=head.input_object,
    )


def _ended(task: TaskInfo) -> bytes:
    """The answer of a task that completed. :raises TaskError: it did not."""
    if task.state is not TaskState.COMPLETED or task.result is None:
        raise task_error(task)
    head = {"task_id": task.task_id, "content_type": task.result.content_type}
    return pack(head, task.result.output)


@asynccontextmanager
async def open_functions(
    context: PluginContext, config: FunctionsConfig
) -> AsyncIterator[HostcallProvider]:
    """Answer ``functions.*``; holds nothing open."""
    yield _Functions()
