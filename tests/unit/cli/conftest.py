"""The command line in this process, talking to a node in memory through a real plugin."""

from __future__ import annotations

import importlib
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
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
    ErrorInfo,
    ExecutionMode,
    ExecutionUsage,
    InstanceInfo,
    InstanceState,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    IsolationLevel,
    LogChunk,
    LogEntry,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    PluginInfo,
    RuntimeInfo,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.cli import run
from spear_core.errors import ArtifactNotFoundError, SpearError, TaskNotFoundError

DOOR = '''
"""A front door to nodes in this process."""

import attrs
from contextlib import asynccontextmanager
from spear_core import hookimpl
from spear_core.api import FrontDoorSpec

NODES = {}


@attrs.frozen
class Config:
    pass


def serve(context, config):
    raise AssertionError("only its client is used")


@asynccontextmanager
async def connect(url):
    yield NODES[url]


@hookimpl
def spear_front_doors():
    yield FrontDoorSpec(
        name="fake", schemes=("fake",), open=serve, connect=connect, config_cls=Config
    )
'''


class FakeNode(NodeApi):
    """A node in memory. What a function does is in its name: ``echo``, ``fail``, ``limit``,
    ``slow`` (until cancelled or ``release`` is set)."""

    def __init__(self) -> None:
        self.uploads: list[ArtifactUpload] = []
        self.latest: dict[str, int] = {}
        self.deploying: ArtifactUpload | None = None
        self.preparing = ""
        self.states: dict[tuple[str, int], ArtifactState] = {}
        self.requests: list[InvokeRequest] = []
        self.tasks: dict[str, TaskInfo] = {}
        self.cancelled: list[tuple[str, str]] = []
        self.deleted: list[tuple[str, int | None]] = []
        self.entries: dict[str, list[LogEntry]] = {}
        self.on_slow: Callable[[], None] = lambda: None
        """Called when somebody waits for a slow task."""
        self.measured: list[NodeMetrics] = []
        """What is answered, one after the other; the last again and again."""
        self.refusal: SpearError | None = None
        self.deploying_s = 0.0
        self._ended: dict[str, trio.Event] = {}

    def log(
        self, task_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        mine = self.entries.setdefault(task_id, [])
        mine.append(
            LogEntry(
                seq=len(mine) + 1,
                ts=1_700_000_000.25,
                level=level,
                source=source,
                message=message,
                execution_id="e-1",
            )
        )

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        await trio.lowlevel.checkpoint()
        if self.refusal:
            raise self.refusal
        self.requests.append(request)
        name = request.function.partition("@")[0].partition(":")[0]
        if name not in ("echo", "fail", "limit", "slow"):
            raise ArtifactNotFoundError(f"no artifact {name!r} is deployed here")
        task_id = f"t-{len(self.tasks) + 1}"
        self.tasks[task_id] = TaskInfo(
            task_id=task_id,
            execution_id=f"e-{task_id}",
            function=f"{name}@1",
            state=TaskState.RUNNING,
            created_at=time.time() - 65,
            started_at=time.time() - 64,
        )
        if name != "slow":
            self.end(task_id, request.payload)
        if request.mode is ExecutionMode.ASYNC:
            return InvokeResponse(success=True, message="accepted", task=self.tasks[task_id])
        try:
            task = await self.get_task(task_id, wait=True)
        except trio.Cancelled:
            self.cancelled.append((task_id, "the caller went away"))
            raise
        return InvokeResponse(success=True, message="", task=task)

    def end(self, task_id: str, output: bytes = b"", error: ErrorInfo | None = None) -> None:
        task = self.tasks[task_id]
        state = TaskState.COMPLETED
        if task.function == "fail@1":
            state = TaskState.FAILED
            error = ErrorInfo(
                code="invalid_argument", message="it broke", details={"exit_code": "3"}
            )
        elif task.function == "limit@1":
            state = TaskState.TIMEOUT
            error = ErrorInfo(code="deadline_exceeded", message="its deadline passed")
        result = TaskResult(
            output=b"" if error else output,
            error=error,
            instance_id="i-1",
            usage=ExecutionUsage(cpu_seconds=0.5, isolation=IsolationLevel.SYSCALLS),
        )
        self.tasks[task_id] = attrs.evolve(
            task, state=state, completed_at=(task.started_at or 0) + 1.5, result=result
        )
        if task_id in self._ended:
            self._ended[task_id].set()

    def stream(self, request: InvokeRequest) -> AbstractAsyncContextManager[InvokeStream]:
        raise AssertionError("nobody streams here")

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        await trio.lowlevel.checkpoint()
        if task_id not in self.tasks:
            raise TaskNotFoundError(f"no task {task_id!r} is known here")
        if wait and not self.tasks[task_id].state.is_final:
            self.on_slow()
        if wait and not self.tasks[task_id].state.is_final:
            await self._ended.setdefault(task_id, trio.Event()).wait()
        return self.tasks[task_id]

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        await trio.lowlevel.checkpoint()
        return list(reversed(self.tasks.values()))[:limit]

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        task = await self.get_task(task_id)
        if not task.state.is_final:
            self.cancelled.append((task_id, reason))
            self.tasks[task_id] = attrs.evolve(
                task, state=TaskState.CANCELLED, completed_at=time.time()
            )
        return self.tasks[task_id]

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        task = await self.get_task(task_id)
        left = self.entries.get(task_id, [])[cursor : cursor + 2]
        at_end = cursor + len(left) == len(self.entries.get(task_id, []))
        return LogChunk(
            entries=tuple(left),
            cursor=cursor + len(left),
            finished=task.state.is_final and at_end,
        )

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        self.deploying = upload
        await trio.sleep(self.deploying_s)
        self.deploying = None
        self.uploads.append(upload)
        return self._artifact(upload, len(self.uploads))

    def _artifact(self, upload: ArtifactUpload, version: int) -> ArtifactInfo:
        return ArtifactInfo(
            name=upload.name,
            version=version,
            digest="ab" * 32,
            size=len(upload.content),
            runtime="process",
            shape="command",
            filename=upload.filename,
            entry=upload.entry,
            created_at=time.time() - 7200,
            in_use=1,
            state=self.states.get((upload.name, version), ArtifactState.READY),
            latest=version == self.latest.get(upload.name, len(self.uploads)),
        )

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        await trio.lowlevel.checkpoint()
        name, _, number = ref.partition("@")
        version = int(number) if number else self.latest.get(name, len(self.uploads))
        if not 0 < version <= len(self.uploads):
            raise ArtifactNotFoundError(f"no artifact {ref!r} is deployed here")
        upload = self.uploads[version - 1]
        fields = attrs.fields(ArtifactSettings)
        return ArtifactDetails(
            info=self._artifact(upload, version),
            settings=ArtifactSettings(**{f.name: getattr(upload, f.name) for f in fields}),
            bundle=upload.bundle,
            reuse=bool(upload.reuse),
        )

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        self.latest[name] = version
        return (await self.get_artifact(f"{name}@{version}")).info

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        self.states[name, version] = state
        return (await self.get_artifact(f"{name}@{version}")).info

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        await trio.lowlevel.checkpoint()
        found = [self._artifact(upload, n) for n, upload in enumerate(self.uploads, 1)][::-1]
        if self.deploying is not None:
            info = self._artifact(self.deploying, len(found) + 1)
            state = ArtifactState.PREPARING
            found.insert(0, attrs.evolve(info, state=state, message=self.preparing))
        return found

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        await trio.lowlevel.checkpoint()
        self.deleted.append((name, version))
        return 1 if version else 2

    async def list_instances(self) -> Sequence[InstanceInfo]:
        await trio.lowlevel.checkpoint()
        return [
            InstanceInfo(
                instance_id="i-1",
                runtime="process",
                artifact="echo@1",
                state=InstanceState.READY,
                created_at=time.time() - 200_000,
                executions=7,
                pid=None,
                cpu_seconds=0.25,
                memory_bytes=3 << 20,
            )
        ]

    async def list_plugins(self) -> Sequence[PluginInfo]:
        raise AssertionError("the command line loads plugins itself")

    async def status(self) -> NodeStatus:
        await trio.lowlevel.checkpoint()
        return NodeStatus(
            node_id="n-1",
            version="0.1.0",
            pid=4242,
            started_at=time.time() - 90,
            state_dir="/state",
            running=1,
            queued=2,
            instances=3,
            total_executions=9,
            successful_executions=8,
            failed_executions=1,
            average_execution_time_ms=12.5,
            runtimes=(RuntimeInfo(name="wasm", health="healthy", message="ok", details={}),),
        )

    async def metrics(self) -> NodeMetrics:
        await trio.lowlevel.checkpoint()
        return self.measured.pop(0) if len(self.measured) > 1 else self.measured[0]


@attrs.frozen
class Told:
    """What a command line led to."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def on_terminal(
    act: Callable[[], object], monkeypatch: pytest.MonkeyPatch, stream: str = "stdout"
) -> str:
    """What ``act`` writes to a stream of ours that is a terminal."""
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, stream, terminal)
        patch.setenv("TERM", "xterm-256color")
        act()
        terminal.write("(end)")
        terminal.flush()
        shown = b""
        while b"(end)" not in shown:
            shown += os.read(ours, 65536)
    os.close(ours)
    return shown.decode().removesuffix("(end)")


InstallPlugin = Callable[[str, str], ModuleType]


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """``install_plugin(name, source)``: a distribution on the path with one plugin module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed = []

    def install(name: str, source: str) -> ModuleType:
        (site / f"{name}.py").write_text(source)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[spear]\n{name} = {name}\n")
        installed.append(name)
        importlib.invalidate_caches()
        return ModuleType(name) if "spear_commands" in source else importlib.import_module(name)

    yield install
    for name in installed:
        sys.modules.pop(name, None)


@pytest.fixture
def spear(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Told]]:
    """``spear("ps", "--json")`` runs the command line in this process, away from the user's own
    state and settings, with an empty stdin."""
    for name in [name for name in os.environ if name.startswith(("SPEAR_", "XDG_", "NO_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)

        def spear(*args: str) -> Told:
            code = run(args)
            captured = capsysbinary.readouterr()
            return Told(code, captured.out, captured.err.decode())

        yield spear


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``terminal(act, "stderr")``: what ``act`` writes when that stream is a terminal."""

    def show(act: Callable[[], object], stream: str = "stdout") -> str:
        return on_terminal(act, monkeypatch, stream)

    return show


@pytest.fixture
def node(install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch, spear: Any) -> FakeNode:
    """A node in memory that ``spear`` talks to without being told, where time stands still: how
    old things are does not depend on how long a test takes."""
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    door = install_plugin("memory_door", DOOR)
    fake = FakeNode()
    door.NODES["fake://here"] = fake
    monkeypatch.setenv("SPEAR_NODE", "fake://here")
    return fake
