"""A node that answers from a table, and a front door before it."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactSettings,
    ArtifactState,
    ArtifactUpload,
    BackupReport,
    ConfigReload,
    ErrorInfo,
    ExecutionMetrics,
    FrontDoorContext,
    Histogram,
    InstanceInfo,
    InstanceState,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    LogChunk,
    LogEntry,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    ObjectApi,
    ObjectGrants,
    PluginInfo,
    PoolSettings,
    RetryPolicy,
    RuntimeInfo,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.errors import ResourceExhaustedError, SpearError, TaskNotFoundError
from spear_core.testing import make_context
from spear_transport_grpc import plugin
from spear_transport_grpc._config import DoorConfig

ARTIFACT = ArtifactInfo(
    name="f",
    version=2,
    digest="ab" * 32,
    size=3,
    runtime="wasm",
    shape="wasm",
    filename="f.wasm",
    entry="",
    created_at=1.5,
    in_use=0,
)


def task(state: TaskState = TaskState.COMPLETED, output: bytes = b"") -> TaskInfo:
    """A task in that state."""
    error = None
    if state not in (TaskState.COMPLETED, TaskState.RUNNING, TaskState.PENDING):
        error = ErrorInfo(code=state.value, message="so it is")
    result = TaskResult(output=output, error=error, node_id="n") if state.is_final else None
    return TaskInfo(
        task_id="t-1",
        execution_id="e-1",
        function="f@2",
        state=state,
        created_at=1.0,
        started_at=2.0,
        completed_at=3.0 if result else None,
        result=result,
    )


class EchoStream(InvokeStream):
    """Gives back what it gets, in capitals."""

    def __init__(self) -> None:
        self.task_id = "t-1"
        self._send, self._receive = trio.open_memory_channel[bytes](0)
        self.closed = False

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await self._send.send(bytes(data).upper())

    async def send_eof(self) -> None:
        self._send.close()

    async def receive(self) -> bytes:
        return await self._receive.receive()

    async def result(self) -> InvokeResponse:
        async for _ in self._receive:
            pass
        return InvokeResponse(success=True, message="ended", task=task())

    async def aclose(self) -> None:
        self.closed = True


class TableNode(NodeApi):
    """Answers with something to recognise, and keeps what it was asked."""

    objects: ObjectApi = None  # type: ignore[assignment]  # tests of objects set one

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.cancelled = 0
        self.sleeping = trio.Event()
        self.release = trio.Event()
        self.woken = trio.Event()
        self.error: SpearError | None = None

    def _note(self, what: str, detail: Any = None) -> None:
        self.asked.append((what, detail))
        if self.error is not None:
            raise self.error

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        self._note("invoke", request)
        if request.function == "sleep":
            self.sleeping.set()
            try:
                await self.release.wait()
            except trio.Cancelled:
                self.cancelled += 1
                self.woken.set()
                raise
        if request.function == "full":
            raise ResourceExhaustedError("the queue is full", retry_after=1.5)
        if request.function == "bug":
            raise LookupError("a bug of ours")
        state = TaskState.FAILED if request.function == "fail" else TaskState.COMPLETED
        done = task(state, request.payload)
        return InvokeResponse(success=state is TaskState.COMPLETED, message="done", task=done)

    @asynccontextmanager
    async def stream(self, request: InvokeRequest) -> AsyncIterator[InvokeStream]:
        self._note("stream", request)
        try:
            yield EchoStream()
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        self._note("get_task", (task_id, wait))
        if task_id == "nothing":
            raise TaskNotFoundError("no such task")
        return task(TaskState.COMPLETED if wait else TaskState.RUNNING, b"out")

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        self._note("list_tasks", limit)
        return [task(state) for state in TaskState]

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        self._note("cancel_task", (task_id, reason))
        return task(TaskState.CANCELLED)

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        self._note("read_log", (task_id, cursor, wait))
        entry = LogEntry(
            seq=cursor + 1, ts=1.0, level="info", source="guest", message="hi", execution_id="e"
        )
        return LogChunk(entries=(entry,), cursor=cursor + 1, finished=cursor >= 2)

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        self._note("deploy", upload)
        return ARTIFACT

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        self._note("list_artifacts")
        return [ARTIFACT]

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        self._note("get_artifact", ref)
        settings = ArtifactSettings(env={"A": "b"}, args=("x",))
        return ArtifactDetails(info=ARTIFACT, settings=settings, bundle=False, reuse=True)

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        self._note("set_latest", (name, version))
        return ARTIFACT

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        self._note("set_artifact_state", (name, version, state))
        return attrs.evolve(ARTIFACT, state=state)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        self._note("delete_artifact", (name, version))
        return 2 if version is None else 1

    async def list_instances(self) -> Sequence[InstanceInfo]:
        self._note("list_instances")
        return [
            InstanceInfo(
                instance_id="i",
                runtime="wasm",
                artifact="f@2",
                state=InstanceState.READY,
                created_at=1.0,
                executions=3,
                pid=None,
                cpu_seconds=0.0,
                memory_bytes=None,
            )
        ]

    async def list_plugins(self) -> Sequence[PluginInfo]:
        self._note("list_plugins")
        return [
            PluginInfo(
                name="p",
                distribution="d",
                version="1",
                provides=("runtime:x",),
                state="loaded",
                reason="",
                health="healthy",
            )
        ]

    async def status(self) -> NodeStatus:
        self._note("status")
        runtime = RuntimeInfo(name="wasm", health="healthy", message="", details={"a": "b"})
        return NodeStatus(
            node_id="n",
            version="1",
            pid=4,
            started_at=1.0,
            state_dir="/x",
            running=1,
            queued=2,
            instances=3,
            total_executions=4,
            successful_executions=3,
            failed_executions=1,
            average_execution_time_ms=1.5,
            runtimes=(runtime,),
        )

    async def reload_config(self) -> ConfigReload:
        self._note("reload_config")
        return ConfigReload(path="/c.toml", changed=("a.b: 1 → 2",), restart=("c.d",))

    async def backup(
        self, directory: str, *, logs: bool = False, tell: Callable[[str], None] | None = None
    ) -> BackupReport:
        self._note("backup", (directory, logs))
        if tell is not None:
            tell("copying the code")
            await self.release.wait()
        return BackupReport(
            path=directory,
            created_at=1.5,
            node_id="n",
            files=3,
            bytes=1 << 40,
            records=0,
            objects=None,
            artifacts=2,
        )

    async def metrics(self) -> NodeMetrics:
        self._note("metrics")
        histogram = Histogram(bounds_s=(0.1, 1.0), counts=(1, 2, 3), sum_s=1.5)
        total = ExecutionMetrics(total_executions=6, execution_time=histogram, queue_time=histogram)
        return NodeMetrics(node_id="n", total=total, errors=(("unknown", 3),))


@attrs.frozen
class Door:
    """An open front door."""

    node: TableNode
    url: str
    api: NodeApi


@asynccontextmanager
async def serve(
    folder: Path, node: NodeApi, config: DoorConfig | None = None
) -> AsyncIterator[str]:
    """A door before that node; yields its URL."""
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    context = FrontDoorContext(plugin=make_context(folder), node=node, node_dir=state)
    async with plugin.open_door(context, config or DoorConfig()) as url:
        yield url


@pytest.fixture(name="serve")
def _serve() -> Callable[..., AbstractAsyncContextManager[str]]:
    return serve


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    """A door on a Unix socket, and a client that has come through it."""
    node = TableNode()
    async with serve(tmp_path, node) as url, plugin.connect(url) as api:
        yield Door(node, url, api)


@pytest.fixture
def table_node() -> type[TableNode]:
    return TableNode


# ---- values with something in every field

_CHECKED: dict[type[Any], Any] = {
    ObjectGrants: ObjectGrants(read=("a/", "b/c"), write=("",)),
    RetryPolicy: RetryPolicy(
        attempts=7, initial_backoff_s=0.0, max_backoff_s=0.0, multiplier=3.0, jitter=0.0
    ),
    PoolSettings: PoolSettings(
        min_instances=0,
        max_instances=9,
        idle_timeout_ms=8,
        health_check_interval_ms=7,
        max_executions_per_instance=0,
        selection="round_robin",
    ),
}
"""Values whose fields may not be just anything."""
_EXCLUDED = {(TaskResult, "output")}
"""An output is here or in an object, never both; it has a test of its own."""


def full(cls: type[Any], *, salt: int = 3) -> Any:
    """A value with every field at something that is no default, save those that exclude others."""
    if cls in _CHECKED:
        return _CHECKED[cls]
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            f.name: something(hints[f.name], salt + n)
            for n, f in enumerate(attrs.fields(cls))
            if (cls, f.name) not in _EXCLUDED
        }
    )


def something(hint: Any, salt: int) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return something(next(a for a in arguments if a is not type(None)), salt)
    if origin is tuple and typing.get_origin(arguments[0]) is tuple:
        return (("a", salt), ("b", salt + 1))
    if origin is tuple:
        return (something(arguments[0], salt), something(arguments[0], salt + 1))
    if origin is not None and issubclass(origin, Mapping):
        return {f"key {salt}": f"value {salt}"}
    if issubclass(hint, enum.Enum):
        return list(hint)[-1]
    if attrs.has(hint):
        return _CHECKED.get(hint) or full(hint, salt=salt)
    return {str: f"text ü {salt}", bytes: b"\0bytes", bool: True, int: salt}.get(hint, salt / 7)


@pytest.fixture(name="full")
def _full() -> Callable[..., Any]:
    return full
