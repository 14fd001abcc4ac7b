"""The node's answers to its callers: NodeApi over the executor, the stores and the plugins."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import attrs
import trio

from spear_core import __version__
from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactState,
    ArtifactUpload,
    BackupReport,
    ConfigReload,
    InstanceInfo,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    LogChunk,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    ObjectApi,
    PluginInfo,
    RuntimeInfo,
    SpearletConfig,
    TaskInfo,
)
from spear_core.errors import InvalidRequestError, SpearError, TaskNotFoundError
from spear_core.node._deploying import Deployer
from spear_core.node._executor import Executor
from spear_core.node._invocations import Invocations, wait_settled
from spear_core.node._node_backup import NodeBackups
from spear_core.node._node_metrics import node_metrics
from spear_core.node._objects import LocalObjects
from spear_core.node._reloading import Reloader
from spear_core.node._services import Services
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_objects import TaskObjects
from spear_core.node._task_table import TaskTable
from spear_core.plugins import Plugins

__all__ = ["LocalNode", "NodeIdentity"]

_MOST_BYTES = 1 << 62


@attrs.frozen(kw_only=True)
class NodeIdentity:
    """Who this node is."""

    node_id: str
    state_dir: Path
    started_at: float


class LocalNode(NodeApi):
    """The node in this process."""

    def __init__(
        self,
        identity: NodeIdentity,
        plugins: Plugins,
        services: Services,
        *,
        invocations: Invocations,
        tasks: TaskTable,
        logs: TaskLogDirectory,
        executor: Executor,
        deployer: Deployer,
        config: SpearletConfig,
        objects: TaskObjects | None = None,
    ) -> None:
        self._identity = identity
        self._plugins = plugins
        self._services = services
        self._invocations = invocations
        self._tasks = tasks
        self._logs = logs
        self._executor = executor
        self._config = config
        self._deployer = deployer
        self._task_objects = objects
        self._objects = LocalObjects(services.object_store)
        self._reloader: Reloader | None = None
        self._backups: NodeBackups | None = None

    def attach(self, reloader: Reloader, backups: NodeBackups | None = None) -> None:
        """Who reads the configuration again, which needs this node to pass it on to; and who makes
        backups of it."""
        self._reloader = reloader
        self._backups = backups

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take new settings, and have everybody take them."""
        self._config = config
        self._invocations.reconfigure(config)
        self._tasks.reconfigure(config.tasks)
        self._logs.reconfigure(config.logs)
        if self._task_objects is not None:
            self._task_objects.reconfigure(config)
        self._executor.reconfigure(config)
        self._deployer.keep_warm()

    @property
    def grace_s(self) -> float:
        """How long running tasks may go on once the node was told to stop."""
        return self._config.execution.shutdown_grace_ms / 1000

    def stop_accepting(self) -> None:
        """From now on refuse new work with ``unavailable``; everything else still answers."""
        self._invocations.stop_accepting()

    @property
    def objects(self) -> ObjectApi:
        return self._objects

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        return await self._invocations.invoke(request)

    def stream(self, request: InvokeRequest) -> AbstractAsyncContextManager[InvokeStream]:
        return self._invocations.stream(request)

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        await trio.lowlevel.checkpoint()
        task = self._tasks.get(task_id)
        if wait:
            await wait_settled(task)
        elif task.record is not None and task.state.is_final:
            await task.record.settled()
        return task.info()

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        await trio.lowlevel.checkpoint()
        found = self._tasks.newest(limit)
        for task in found:
            if task.record is not None and task.state.is_final:
                with suppress(SpearError):  # a store in trouble is no reason to show nothing
                    await task.record.settled()
        return [task.info(with_output=False) for task in found]

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        task = self._tasks.get(task_id)
        below = list(self._tasks.below(task))
        task.cancel(reason or "on request")
        await wait_settled(task)
        for each in below:
            await wait_settled(each)
        return task.info()

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        await trio.lowlevel.checkpoint()
        if not 0 <= cursor < _MOST_BYTES:
            raise InvalidRequestError(f"cursor {cursor} is not one that a log has given")
        try:
            task = self._tasks.get(task_id)
        except TaskNotFoundError:
            old = self._logs.read_old(task_id, cursor)
            if old is None:
                raise
            return old
        return await task.log.read(cursor, wait=wait)

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        self._invocations.refuse_when_stopping()
        return await self._deployer.deploy(upload)

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        await trio.lowlevel.checkpoint()
        return self._deployer.list()

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        await trio.lowlevel.checkpoint()
        return self._deployer.describe(ref)

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        return await self._deployer.set_latest(name, version)

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        return await self._deployer.set_state(name, version, state)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        return await self._deployer.delete(name, version)

    async def list_instances(self) -> Sequence[InstanceInfo]:
        await trio.lowlevel.checkpoint()
        return self._executor.deployments.instances()

    async def list_plugins(self) -> Sequence[PluginInfo]:
        await trio.lowlevel.checkpoint()
        health = {info.name: info.health for info in await self.runtimes(only_open=False)}
        found = []
        for plugin in self._plugins.plugins:
            mine = [health[p[8:]] for p in plugin.provides if p.startswith("runtime:")]
            found.append(
                PluginInfo(
                    name=plugin.name,
                    distribution=plugin.distribution,
                    version=plugin.version,
                    provides=plugin.provides,
                    state=plugin.state,
                    reason=plugin.reason,
                    health=_worst(mine) if plugin.state == "loaded" else "",
                )
            )
        return found

    async def runtimes(self, *, only_open: bool) -> list[RuntimeInfo]:
        """Every runtime and its health; ``only_open`` asks none that nobody has needed yet."""
        found = []
        for name in self._services.runtime_specs():
            if only_open and not self._services.is_open("runtime", name):
                found.append(
                    RuntimeInfo(name=name, health="", message="not opened yet", details={})
                )
                continue
            print_ = await self._services.fingerprint(name)
            found.append(
                RuntimeInfo(
                    name=name,
                    health=print_.health.value,
                    message=print_.message,
                    details=dict(print_.details),
                )
            )
        return found

    async def status(self) -> NodeStatus:
        await trio.lowlevel.checkpoint()
        recorder = self._executor.recorder
        ended, well = recorder.outcomes()
        return NodeStatus(
            node_id=self._identity.node_id,
            version=__version__,
            pid=os.getpid(),
            started_at=self._identity.started_at,
            state_dir=str(self._identity.state_dir),
            running=self._executor.slots.running,
            queued=self._executor.slots.queued,
            instances=self._executor.deployments.instance_count(),
            total_executions=ended,
            successful_executions=well,
            failed_executions=ended - well,
            average_execution_time_ms=recorder.average_s * 1000,
            runtimes=tuple(await self.runtimes(only_open=True)),
        )

    async def reload_config(self) -> ConfigReload:
        if self._reloader is None:
            return await super().reload_config()
        return await self._reloader.reload()

    async def backup(
        self, directory: str, *, logs: bool = False, tell: Callable[[str], None] | None = None
    ) -> BackupReport:
        if self._backups is None:
            return await super().backup(directory, logs=logs, tell=tell)
        return await self._backups.write(directory, logs=logs, tell=tell)

    async def metrics(self) -> NodeMetrics:
        await trio.lowlevel.checkpoint()
        return node_metrics(
            self._executor.recorder,
            self._executor.deployments.instances(),
            node_id=self._identity.node_id,
            started_at=self._identity.started_at,
        )


def _worst(health: Sequence[str]) -> str:
    """The one word for a plugin with several runtimes."""
    for word in ("unhealthy", "undetected", "healthy"):
        if word in health:
            return word
    return ""
