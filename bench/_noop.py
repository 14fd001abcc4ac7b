"""A node whose only runtime does nothing, so that what is measured is the node's own work."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from spear_core.api import (
    Artifact,
    ArtifactUpload,
    ExecutionRequest,
    ExecutionResponse,
    Fingerprint,
    Health,
    Instance,
    InstanceSpec,
    InstanceStatistics,
    NodeApi,
    PluginContext,
    Runtime,
    RuntimeSpec,
    SpearletConfig,
)
from spear_core.config import NodeSettings
from spear_core.node import open_node
from spear_core.plugins import Owned, load_plugins


class NoopInstance(Instance):
    def __init__(self, spec: InstanceSpec, runtime: NoopRuntime) -> None:
        self.id = spec.id
        self._runtime = runtime
        self._work = runtime.work

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        if self._work is not None:
            return await self._work(request)
        runtime = self._runtime
        if runtime.order is not None:
            runtime.order.append(request.payload)
        if runtime.gate is not None:
            await runtime.gate.wait()
        else:
            await trio.lowlevel.checkpoint()
        return ExecutionResponse.completed(request.payload)

    async def check_health(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_failed(self) -> str:
        await trio.sleep_forever()

    def statistics(self) -> InstanceStatistics:
        return InstanceStatistics()


class NoopRuntime(Runtime):
    """:param order: what ran is added. :param gate: an execution waits for it.
    :param work: instead of doing nothing."""

    def __init__(
        self,
        *,
        order: list[bytes] | None = None,
        gate: trio.Event | None = None,
        work: Callable[[ExecutionRequest], Awaitable[ExecutionResponse]] | None = None,
    ) -> None:
        self.order = order
        self.gate = gate
        self.work = work

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint(health=Health.HEALTHY)

    async def prepare(self, artifact: Artifact) -> None:
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def open_instance(self, spec: InstanceSpec) -> AsyncIterator[Instance]:
        yield NoopInstance(spec, self)


@attrs.frozen
class _NoConfig:
    """Nothing to set."""


@asynccontextmanager
async def open_noop_node(
    runtime: NoopRuntime, config: SpearletConfig, *, functions: tuple[str, ...] = ("f",)
) -> AsyncIterator[NodeApi]:
    """A node that serves nobody, with these functions of one reusable artifact each."""

    @asynccontextmanager
    async def open_it(context: PluginContext, config: _NoConfig) -> AsyncIterator[NoopRuntime]:
        yield runtime

    spec = RuntimeSpec(
        name="noop",
        open=open_it,
        config_cls=_NoConfig,
        recognise=lambda path, head, entry: "noop",
        reusable_shapes=frozenset({"noop"}),
    )
    plugins = attrs.evolve(
        load_plugins(only=[]), runtimes={"noop": Owned(spec, "runtime-noop")}, hostcalls={}
    )
    settings = NodeSettings(spearlet=config, plugins={"runtime-noop": {_NoConfig: _NoConfig()}})
    with tempfile.TemporaryDirectory() as folder:
        async with open_node(settings, plugins, state_dir=Path(folder), serve=False) as node:
            for name in functions:
                await node.api.deploy(
                    ArtifactUpload(name=name, filename="f.noop", content=name.encode())
                )
            yield node.api
