"""Spans around tasks, executions and hostcalls, and the context that guests are told."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ErrorInfo,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    HostcallContext,
    HostcallProvider,
    HostcallSpec,
    InvokeRequest,
    SpanKind,
    Tracer,
    TracerSpec,
    TraceSpan,
)
from spear_core.errors import ObjectNotFoundError
from spear_core.node._tracing import trace_id
from spear_core.plugins import Owned

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
CALLER = f"00-{'ab' * 16}-{'cd' * 8}-01"


@attrs.define(eq=False)
class NotedSpan(TraceSpan):
    kind: SpanKind
    name: str
    parent: str
    traceparent: str
    attributes: dict[str, Any]
    started_at: float
    ended_at: float | None = None
    error: ErrorInfo | None = None

    def end(
        self,
        *,
        error: ErrorInfo | None = None,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        assert self.ended_at is None
        self.ended_at = time.time()
        self.error = error
        self.attributes.update(attributes or {})


class NotingTracer(Tracer):
    """Keeps the spans in the order they began."""

    def __init__(self) -> None:
        self.spans: list[NotedSpan] = []
        self.failure: Exception | None = None
        self._numbers = itertools.count(1)

    def start(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent: str,
        attributes: Mapping[str, str | int | float],
        started_at: float | None = None,
    ) -> NotedSpan:
        if self.failure is not None:
            raise self.failure
        trace = trace_id(parent) or "ef" * 16
        own = f"00-{trace}-{next(self._numbers):016x}-01"
        span = NotedSpan(kind, name, parent, own, dict(attributes), started_at or time.time())
        self.spans.append(span)
        return span

    def only(self, kind: SpanKind) -> NotedSpan:
        (found,) = [span for span in self.spans if span.kind is kind]
        return found


@attrs.frozen
class NoConfig:
    pass


@pytest.fixture
def tracer() -> NotingTracer:
    return NotingTracer()


@pytest.fixture
def open_traced(open_steered_node: Any, tracer: NotingTracer) -> Any:
    """Opens a node with this tracer and one of lower priority that must not be opened."""

    @asynccontextmanager
    async def open_tracer(context: Any, config: NoConfig) -> AsyncIterator[Tracer]:
        yield tracer

    def open_other(context: Any, config: NoConfig) -> Any:
        raise AssertionError("the other one has priority")

    def spec(name: str, open_it: Any, priority: int) -> Owned[Any]:
        made = TracerSpec(name=name, open=open_it, config_cls=NoConfig, priority=priority)
        return Owned(made, "noting")

    @asynccontextmanager
    async def open_it(**options: Any) -> AsyncIterator[Any]:
        tracers = {"noting": spec("noting", open_tracer, 5), "other": spec("other", open_other, 0)}
        configs = {"noting": {NoConfig: NoConfig()}, **options.pop("configs", {})}
        async with open_steered_node(tracers=tracers, configs=configs, **options) as node:
            await node.api.deploy(UPLOAD)
            yield node.api

    return open_it


async def test_one_trace_from_the_caller_to_the_guest(
    open_traced: Any, tracer: NotingTracer, runtime: Any
) -> None:
    told: list[str] = []

    async def note(request: ExecutionRequest) -> ExecutionResponse:
        told.append(request.trace)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = note
    async with open_traced() as api:
        await api.invoke(InvokeRequest(function="f", trace=CALLER))
    task, queue, execution = tracer.spans
    assert [span.kind for span in tracer.spans] == [
        *(SpanKind.TASK, SpanKind.QUEUE, SpanKind.EXECUTION)
    ]
    assert task.parent == CALLER
    assert queue.parent == execution.parent == task.traceparent
    assert told == [execution.traceparent]
    assert trace_id(told[0]) == "ab" * 16
    assert all(span.ended_at is not None and span.error is None for span in tracer.spans)
    assert task.started_at <= queue.started_at <= (queue.ended_at or 0) <= execution.started_at
    assert task.attributes["spear.function"] == "f@1"
    assert task.attributes["spear.state"] == "completed"
    assert execution.attributes["spear.attempt"] == 1


@pytest.mark.parametrize("trace", ["", "nonsense", "00-" + "0" * 32 + "-" + "cd" * 8 + "-01"])
async def test_without_a_trace_of_the_callers_the_node_begins_one(
    open_traced: Any, tracer: NotingTracer, trace: str
) -> None:
    async with open_traced() as api:
        await api.invoke(InvokeRequest(function="f", trace=trace))
    assert {trace_id(span.traceparent) for span in tracer.spans} == {"ef" * 16}


async def test_a_failure_is_told_and_the_guests_words_only_where_secrets_are_struck(
    open_traced: Any, tracer: NotingTracer, runtime: Any
) -> None:
    async def fail(request: ExecutionRequest) -> ExecutionResponse:
        return ExecutionResponse.failed(ErrorInfo(code="unknown", message="boom", kind="E"))

    runtime.behaviour = fail
    async with open_traced() as api:
        await api.invoke(InvokeRequest(function="f"))
    execution, task = tracer.only(SpanKind.EXECUTION).error, tracer.only(SpanKind.TASK).error
    assert execution == ErrorInfo(code="unknown", message="", kind="E")
    assert task == ErrorInfo(code="unknown", message="boom", kind="E")


async def test_a_cancelled_task_has_all_its_spans_ended(
    open_traced: Any, tracer: NotingTracer, runtime: Any
) -> None:
    began = trio.Event()

    async def hang(request: ExecutionRequest) -> ExecutionResponse:
        began.set()
        await trio.sleep_forever()
        raise AssertionError

    runtime.behaviour = hang
    async with open_traced() as api:
        started = await api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await began.wait()
        await api.cancel_task(started.task.task_id)
        for span in tracer.spans:
            assert span.ended_at is not None
    for kind in (SpanKind.TASK, SpanKind.EXECUTION):
        error = tracer.only(kind).error
        assert error is not None
        assert error.code == "cancelled"


async def test_a_hostcall_is_a_child_of_its_execution(
    open_traced: Any, tracer: NotingTracer, runtime: Any
) -> None:
    class Provider(HostcallProvider):
        async def call(self, caller: HostcallContext, name: str, payload: bytes) -> bytes:
            if name == "x.miss":
                raise ObjectNotFoundError("gone")
            return b"ok"

    @asynccontextmanager
    async def open_provider(context: Any, config: NoConfig) -> AsyncIterator[HostcallProvider]:
        yield Provider()

    spec = HostcallSpec(names=frozenset({"x.y", "x.miss"}), open=open_provider, config_cls=NoConfig)

    async def use(request: ExecutionRequest) -> ExecutionResponse:
        calls = runtime.context.hostcalls
        assert await calls.call(request.execution_id, "x.y", b"") == b"ok"
        with pytest.raises(ObjectNotFoundError):
            await calls.call(request.execution_id, "x.miss", b"")
        return ExecutionResponse.completed(b"")

    runtime.behaviour = use
    owned = Owned(spec, "x")
    hostcalls = {"x.y": owned, "x.miss": owned}
    async with open_traced(hostcalls=hostcalls, configs={"x": {NoConfig: NoConfig()}}) as api:
        response = await api.invoke(InvokeRequest(function="f"))
        assert response.success
    found, missed = [span for span in tracer.spans if span.kind is SpanKind.HOSTCALL]
    assert found.parent == missed.parent == tracer.only(SpanKind.EXECUTION).traceparent
    assert (found.name, found.error) == ("x.y", None)
    assert missed.error is not None
    assert missed.error.code == "not_found"


async def test_a_tracer_that_breaks_is_left_alone_and_the_work_goes_on(
    open_traced: Any, tracer: NotingTracer
) -> None:
    async with open_traced() as api:
        tracer.failure = RuntimeError("no")
        assert (await api.invoke(InvokeRequest(function="f", trace=CALLER))).success
        tracer.failure = None
        assert (await api.invoke(InvokeRequest(function="f"))).success
    assert tracer.spans == []


async def test_without_a_tracer_the_callers_trace_still_arrives(
    open_steered_node: Any, runtime: Any
) -> None:
    told: list[str] = []

    async def note(request: ExecutionRequest) -> ExecutionResponse:
        told.append(request.trace)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = note
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(InvokeRequest(function="f", trace=CALLER))
    assert told == [CALLER]


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (CALLER, "ab" * 16),
        (f"01-{'ab' * 16}-{'cd' * 8}-01-future", "ab" * 16),
        ("", ""),
        (CALLER.upper(), ""),
        (CALLER[:-1], ""),
        (f"00-{'0' * 32}-{'cd' * 8}-01", ""),
    ],
)
def test_the_trace_of_a_traceparent(traceparent: str, expected: str) -> None:
    assert trace_id(traceparent) == expected
