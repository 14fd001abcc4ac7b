"""Spans of tasks, executions and hostcalls, made at the tracer of a plugin.

A task that is traced has a :class:`TaskTracing`; without a tracer it has none, and nothing here is
called. Whatever the tracer does, the work goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from logging import Logger
from typing import TYPE_CHECKING, Any

import attrs

from spear_core.api import (
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    SpanKind,
    Tracer,
    TraceSpan,
)
from spear_core.errors import SpearError
from spear_core.plugins import Owned, Plugins

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from spear_core.api import TracerSpec
    from spear_core.node._task import Task

__all__ = ["TaskTracing", "Tracing", "open_tracing", "trace_id"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""

Attributes = Mapping[str, "str | int | float"]


def trace_id(traceparent: str) -> str:
    """The trace that a ``traceparent`` belongs to; empty when it is none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match and match[1].strip("0") else ""


class Tracing:
    """The tracer, fenced: once it has raised, it is left alone."""

    def __init__(self, tracer: Tracer, log: Logger) -> None:
        self._tracer: Tracer | None = tracer
        self._log = log

    def begin(self, task: Task) -> None:
        """A task was accepted."""
        attributes: dict[str, str | int | float] = {
            "spear.task_id": task.id,
            "spear.function": task.function,
            "spear.runtime": task.artifact.runtime,
        }
        if task.parent_task_id:
            attributes["spear.parent_task_id"] = task.parent_task_id
        span = self.start(SpanKind.TASK, task.function, parent=task.trace, attributes=attributes)
        if span is not None:
            task.trace = span.traceparent
            task.tracing = TaskTracing(self, span, function=task.function)

    def start(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent: str,
        attributes: Attributes,
        started_at: float | None = None,
    ) -> TraceSpan | None:
        """A span, if there still is a tracer."""
        if self._tracer is None:
            return None
        try:
            return self._tracer.start(
                kind, name, parent=parent, attributes=attributes, started_at=started_at
            )
        except Exception:  # barrier: one plugin
            self._give_up()
            return None

    def end(
        self,
        span: TraceSpan | None,
        *,
        error: ErrorInfo | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        """The end of a span, if there is one."""
        if span is None or self._tracer is None:
            return
        try:
            span.end(error=error, attributes=attributes)
        except Exception:  # barrier: one plugin
            self._give_up()

    def _give_up(self) -> None:
        self._tracer = None
        self._log.exception("the tracer failed; nothing more is traced until the node restarts")


class TaskTracing:
    """The spans of one task."""

    def __init__(self, tracing: Tracing, span: TraceSpan, *, function: str) -> None:
        self._tracing = tracing
        self._span = span
        self._function = function
        self._waiting_since = time.time()

    async def execute(
        self, task: Task, instance: Instance, request: ExecutionRequest
    ) -> ExecutionResponse:
        """One attempt, with its spans; the guest is told of the innermost."""
        ids: dict[str, str | int | float] = {
            "spear.execution_id": request.execution_id,
            "spear.attempt": request.attempt,
        }
        parent = self._span.traceparent
        queue = self._tracing.start(
            SpanKind.QUEUE, "queue", parent=parent, attributes=ids, started_at=self._waiting_since
        )
        self._tracing.end(queue)
        span = self._tracing.start(
            SpanKind.EXECUTION,
            f"execute {self._function}",
            parent=parent,
            attributes={**ids, "spear.instance_id": instance.id.instance_id},
        )
        error: ErrorInfo | None = ErrorInfo(code="cancelled", message="the execution was stopped")
        told: dict[str, str | int | float] = {}
        if span is not None:
            task.trace = span.traceparent
            request = attrs.evolve(request, trace=span.traceparent)
        try:
            response = await task.do_work(instance, request)
            error = _without_text(response.error)
            if (cpu := response.usage.cpu_seconds) is not None:
                told["spear.cpu_seconds"] = cpu
            if (peak := response.usage.peak_memory_bytes) is not None:
                told["spear.peak_memory_bytes"] = peak
            return response
        except SpearError as raised:
            error = ErrorInfo(code=raised.code, message="", kind=type(raised).__name__)
            raise
        finally:
            self._tracing.end(span, error=error, attributes=told)
            task.trace = parent
            self._waiting_since = time.time()

    @contextmanager
    def hostcall(self, name: str, *, parent: str) -> Iterator[None]:
        """A hostcall at work while the block lasts."""
        span = self._tracing.start(SpanKind.HOSTCALL, name, parent=parent, attributes={})
        error: ErrorInfo | None = ErrorInfo(code="cancelled", message="the hostcall was stopped")
        try:
            yield
            error = None
        except SpearError as raised:
            error = ErrorInfo(code=raised.code, message="", kind=type(raised).__name__)
            raise
        finally:
            self._tracing.end(span, error=error)

    def finished(self, task: Task) -> None:
        """The task has its result."""
        error = task.result.error if task.result else None
        self._tracing.end(self._span, error=error, attributes={"spear.state": task.state.value})


def _without_text(error: ErrorInfo | None) -> ErrorInfo | None:
    """What a guest says may hold a secret; the task's own error has them struck out."""
    return error and ErrorInfo(code=error.code, message="", kind=error.kind)


@asynccontextmanager
async def open_tracing(
    plugins: Plugins,
    open_tracer: Callable[[Owned[TracerSpec[Any]]], AbstractAsyncContextManager[Tracer | None]],
    log: Logger,
) -> AsyncGenerator[Tracing | None]:
    """Tracing by the tracer with the highest priority; ``None`` without one that wants to."""
    owned = max(plugins.tracers.values(), key=lambda o: o.spec.priority, default=None)
    if owned is None:
        yield None
        return
    async with open_tracer(owned) as tracer:
        yield Tracing(tracer, log) if tracer is not None else None
