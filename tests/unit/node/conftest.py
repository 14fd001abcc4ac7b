"""A runtime whose every move a test can see and steer."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    Artifact,
    ArtifactUpload,
    Capability,
    Compare,
    ExecutionConfig,
    ExecutionRequest,
    ExecutionResponse,
    Fingerprint,
    Health,
    Instance,
    InstanceSpec,
    InstanceStatistics,
    InvokeRequest,
    KeyValue,
    MetadataChange,
    MetadataStoreSpec,
    ObjectStore,
    ObjectStoreSpec,
    PluginContext,
    PoolConfig,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
    SpearletConfig,
    TransactionResult,
)
from spear_core.builtins.memory_metadata import MemoryMetadataStore
from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.config import NodeSettings, load_config
from spear_core.errors import RuntimeUnavailableError, SpearError
from spear_core.node import Node, open_node
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import open_background
from spear_core.node._capacity import Capacity
from spear_core.node._pool import InstancePool
from spear_core.node._run_queue import RunQueue
from spear_core.node._task import Task
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_table import TaskTable
from spear_core.plugins import Owned, load_plugins

Behaviour = Callable[[ExecutionRequest], Awaitable[ExecutionResponse]]


async def echo(request: ExecutionRequest) -> ExecutionResponse:
    return ExecutionResponse.completed(request.payload)


class SteeredInstance(Instance):
    def __init__(self, spec: InstanceSpec, runtime: SteeredRuntime) -> None:
        self.id = spec.id
        self.runtime = runtime
        self.failed = trio.Event()
        self.executions = 0
        self.health_checks = 0

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        self.executions += 1
        return await self.runtime.behaviour(request)

    async def check_health(self) -> None:
        self.health_checks += 1
        if self.runtime.health is not None:
            await self.runtime.health()

    async def wait_failed(self) -> str:
        await self.failed.wait()
        return "it was shot"

    def statistics(self) -> InstanceStatistics:
        return InstanceStatistics(executions=self.executions)


class SteeredRuntime(Runtime):
    context: PluginContext

    def __init__(self) -> None:
        self.behaviour: Behaviour = echo
        self.health: Callable[[], Awaitable[None]] | None = None
        self.open_error: SpearError | None = None
        self.prepare_error: SpearError | None = None
        self.start_delay: float | None = 0.0
        """``None``: not even a checkpoint."""
        self.opens = 0
        self.breaks = trio.Event()
        self.health_answer = Fingerprint(health=Health.HEALTHY)
        self.opened: list[SteeredInstance] = []
        self.closed: list[str] = []
        self.prepared: list[str] = []

    @property
    def live(self) -> int:
        return len(self.opened) - len(self.closed)

    async def fingerprint(self) -> Fingerprint:
        return self.health_answer

    async def wait_broken(self) -> None:
        """Break the runtime as a whole, once :attr:`breaks` is set; it can be opened again."""
        await self.breaks.wait()
        self.breaks = trio.Event()
        raise RuntimeUnavailableError("the runtime broke")

    async def prepare(self, artifact: Artifact) -> None:
        await trio.lowlevel.checkpoint()
        if self.prepare_error is not None:
            raise self.prepare_error
        self.prepared.append(artifact.ref)

    @asynccontextmanager
    async def open_instance(self, spec: InstanceSpec) -> AsyncIterator[Instance]:
        if self.start_delay is not None:
            await trio.sleep(self.start_delay)
        if self.open_error is not None:
            raise self.open_error
        instance = SteeredInstance(spec, self)
        self.opened.append(instance)
        try:
            yield instance
        finally:
            self.closed.append(spec.id.instance_id)


class OneRuntime:
    """The executor's source of runtimes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def runtime(self, name: str) -> Runtime:
        return self._runtime

    def current_runtime(self, name: str) -> Runtime | None:
        return self._runtime

    def declared_runtime(self, name: str) -> Owned[RuntimeSpec[Any]]:
        return Owned(
            RuntimeSpec(
                name=name,
                open=lambda context, config: nullcontext(self._runtime),
                config_cls=NoConfig,
                recognise=lambda path, head, entry: "s",
            ),
            "runtime-steered",
        )


@pytest.fixture
def runtime() -> SteeredRuntime:
    return SteeredRuntime()


@pytest.fixture
def source(runtime: SteeredRuntime) -> OneRuntime:
    return OneRuntime(runtime)


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("spear.test")


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", warn=pytest.fail)


@pytest.fixture
def add_artifact(artifacts: ArtifactStore) -> Callable[..., Awaitable[Artifact]]:
    async def add(
        name: str = "f", *, content: bytes = b"code", reuse: bool = True, **settings: Any
    ) -> Artifact:
        upload = ArtifactUpload(
            name=name,
            content=content,
            **{"filename": "f.py"} | settings,  # type: ignore[arg-type]
        )
        staged = await artifacts.stage(upload)
        candidate, _ = artifacts.candidate(
            upload, staged, runtime="steered", shape="s", reuse=reuse
        )
        await artifacts.commit(name, candidate)
        artifacts.code.unstage(staged)
        return artifacts.resolve(name)[0]

    return add


@pytest.fixture
def tasks(tmp_path: Path) -> TaskTable:
    logs = TaskLogDirectory(tmp_path / "logs", max_bytes=1 << 20, warn=pytest.fail)
    return TaskTable(logs, keep_finished=5, keep_finished_bytes=1000)


@pytest.fixture
def make_task(tasks: TaskTable, tmp_path: Path) -> Callable[[], Task]:
    """Makes tasks that no executor knows."""
    queue = RunQueue(
        ExecutionConfig(), Capacity(), instances_of=lambda artifact: 9, clock=lambda: 0.0
    )
    artifact = Artifact(
        name="f", version=1, digest="0", runtime="r", shape="s", path=tmp_path / "f", filename="f"
    )
    request = InvokeRequest(function="f")

    def make() -> Task:
        turn = queue.admit(artifact, "", request.priority)
        return tasks.add(artifact, request, turn, entry="", deadline=1.0)

    return make


@attrs.frozen
class NoConfig:
    """A plugin's empty configuration."""


class Disk:
    """Two stores that outlive the nodes which use them.

    What a crash would leave is a copy of them at that moment; the node that has them meanwhile may
    end as it likes.
    """

    def __init__(self) -> None:
        self.metadata = SteeredMetadata(max_bytes=64 << 20, max_history=100_000)
        self.objects: ObjectStore = MemoryObjectStore(max_bytes=256 << 20)

    async def copy(self) -> Disk:
        """As it is now, with what is written at leisure."""
        await trio.sleep(0.1)
        await trio.testing.wait_all_tasks_blocked()
        other = Disk()
        for item in (await self.metadata.range(limit=100_000)).items:
            await other.metadata.put(item.key, item.value)
        for stat in (await self.objects.list(limit=10_000)).objects:
            _, value = await self.objects.get(stat.key)
            await other.objects.put(stat.key, value)
            for holder in await self.objects.holders(stat.key):
                await other.objects.add_ref(stat.key, holder=holder.name)
        return other

    def specs(self) -> dict[str, Any]:
        """For :class:`Plugins`."""
        capable = frozenset({Capability.DURABLE})
        kept: dict[str, Any] = {"config_cls": NoConfig, "capabilities": capable}
        metadata: Any = MetadataStoreSpec(
            name="disk", open=lambda context, config: nullcontext(self.metadata), **kept
        )
        objects: Any = ObjectStoreSpec(
            name="disk", open=lambda context, config: nullcontext(self.objects), **kept
        )
        return {
            "metadata_stores": {"disk": Owned(metadata, "runtime-steered")},
            "object_stores": {"disk": Owned(objects, "runtime-steered")},
        }


class SteeredMetadata(MemoryMetadataStore):
    """A metadata store that waits or fails when a test wants it to, and counts."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.transactions = 0
        self.failure: SpearError | None = None
        self.gate = trio.Event()
        self.gate.set()
        """While it is not set, nothing is written."""
        self.history: list[tuple[KeyValue, ...]] | None = None
        """What was in it after each transaction, for whoever sets a list here."""

    async def transact(
        self, changes: Sequence[MetadataChange], *, compares: Sequence[Compare] = ()
    ) -> TransactionResult:
        self.transactions += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        result = await super().transact(changes, compares=compares)
        if self.history is not None:
            self.history.append((await self.range(limit=100_000)).items)
        return result


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def open_steered_node(runtime: SteeredRuntime, tmp_path: Path) -> Callable[..., Any]:
    """Opens a real node whose only runtime is the steered one."""

    @asynccontextmanager
    async def open_steered(
        context: PluginContext, config: NoConfig
    ) -> AsyncIterator[SteeredRuntime]:
        runtime.context = context
        runtime.opens += 1
        opened = runtime if runtime.opens == 1 else copy.copy(runtime)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.wait_broken)
            yield opened
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def open_it(
        spearlet: SpearletConfig | None = None,
        *,
        state_dir: Path = tmp_path / "state",
        hostcalls: Mapping[str, Owned[Any]] | None = None,
        tracers: Mapping[str, Owned[Any]] | None = None,
        configs: Mapping[str, Any] | None = None,
        config_file: Path | None = None,
        capabilities: frozenset[Capability] = frozenset(),
        disk: Disk | None = None,
    ) -> AsyncIterator[Node]:
        spec = RuntimeSpec(
            name="steered",
            open=open_steered,
            config_cls=NoConfig,
            recognise=lambda path, head, entry: "s" if path.suffix == ".st" else None,
            reusable_shapes=frozenset({"s"}),
            capabilities=capabilities,
        )
        loaded = load_plugins(only=[])
        plugins = attrs.evolve(
            loaded,
            plugins=(*loaded.plugins, attrs.evolve(loaded.plugins[0], name="runtime-steered")),
            runtimes={"steered": Owned(spec, "runtime-steered")},
            hostcalls=hostcalls or {},
            tracers=tracers or {},
            **(disk.specs() if disk is not None else {}),
        )
        settings = NodeSettings(
            spearlet=spearlet or SpearletConfig(),
            plugins={"runtime-steered": {NoConfig: NoConfig()}, **(configs or {})},
        )
        if config_file is not None:
            settings = load_config(config_file, plugins)
        async with open_node(settings, plugins, state_dir=state_dir, serve=False) as node:
            yield node

    return open_it


@pytest.fixture
def open_pool(
    runtime: Any, add_artifact: Callable[..., Awaitable[Artifact]], log: logging.Logger
) -> Callable[..., Any]:
    """Opens a pool of the steered runtime, to be kept warm."""

    @asynccontextmanager
    async def open_it(
        *, concurrency: int = 1, artifact: Any = None, **config: Any
    ) -> AsyncIterator[InstancePool]:
        numbers = itertools.count(1)
        async with open_background() as background:
            pool = InstancePool(
                artifact or await add_artifact(),
                runtime,
                PoolConfig(**config),
                concurrency=concurrency,
                background=background,
                new_id=lambda: RuntimeInstanceId(
                    runtime_type="steered", instance_id=f"i-{next(numbers)}"
                ),
                log=log,
            )
            pool.keep_warm(True)
            yield pool

    return open_it
