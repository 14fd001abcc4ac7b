"""The node's answers to its callers: NodeApi over the executor, the stores and the plugins."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from operator import attrgetter
from pathlib import Path

import attrs
import trio

from spear_core import __version__
from spear_core.api import (
    Artifact,
    ArtifactDetails,
    ArtifactInfo,
    ArtifactState,
    ArtifactUpload,
    BackupReport,
    Capability,
    ConfigReload,
    ExecutionMode,
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
    TaskState,
)
from spear_core.errors import (
    InvalidRequestError,
    NodeStoppingError,
    ResourceExhaustedError,
    SpearError,
    TaskNotFoundError,
    UnsupportedModeError,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._deploying import Deployer
from spear_core.node._executor import Executor
from spear_core.node._journal import TaskJournal
from spear_core.node._node_backup import NodeBackups
from spear_core.node._node_metrics import node_metrics
from spear_core.node._objects import LocalObjects
from spear_core.node._reloading import Reloader
from spear_core.node._services import Services
from spear_core.node._streams import TaskStream, open_task_stream
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_objects import TaskObjects
from spear_core.node._tasks import Task, TaskTable
from spear_core.node._tracing import Tracing
from spear_core.plugins import Plugins

__all__ = ["LocalNode", "NodeIdentity"]

_LONGEST_FIELD = 1024
"""Characters of a function, a content type, a trace: together far less than a head holds."""
_SHORT_FIELDS = (
    "function", "content_type", "trace", "caller", "idempotency_key", "parent_task_id",
)  # fmt: skip
_short_fields = attrgetter(*_SHORT_FIELDS)
_MOST_CONTEXT = 8192
_LONGEST_TIMEOUT_S = 1e9
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
        artifacts: ArtifactStore,
        tasks: TaskTable,
        logs: TaskLogDirectory,
        executor: Executor,
        deployer: Deployer,
        config: SpearletConfig,
        tracing: Tracing | None = None,
        journal: TaskJournal | None = None,
        objects: TaskObjects | None = None,
    ) -> None:
        self._identity = identity
        self._plugins = plugins
        self._services = services
        self._artifacts = artifacts
        self._tasks = tasks
        self._logs = logs
        self._executor = executor
        self._config = config
        self._deployer = deployer
        self._tracing = tracing
        self._journal = journal
        self._task_objects = objects
        self._objects = LocalObjects(services.object_store)
        self._stopping = False
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
        self._stopping = True

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise NodeStoppingError("the node is shutting down and takes no new work")

    @property
    def objects(self) -> ObjectApi:
        return self._objects

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        if request.mode is ExecutionMode.STREAM:
            raise UnsupportedModeError(
                "mode stream: an invocation cannot stream; call StreamFunction (NodeApi.stream)"
            )
        if request.mode is ExecutionMode.ASYNC:
            # What follows may wait for nothing, and who submits a thousand, one after the other,
            # must not hold up what others have here.
            await trio.lowlevel.checkpoint()
        if request.idempotency_key:
            return await self._invoke_once(request)
        if request.input_object:
            request = await self._with_input(request)
        if request.mode is ExecutionMode.ASYNC:
            task = self._accept(request, attached=False)
            self._executor.start(task)
            answer = self._accepted(task)  # as it is now: the disk may take a while
            if task.record is not None:
                await task.record.accepted()
            return answer
        task = self._accept(request)
        if task.record is not None:
            await self._executor.written(task)
        await self._executor.run(task)
        if task.record is not None:
            await task.record.settled()
        return _ended(task)

    async def _invoke_once(self, request: InvokeRequest) -> InvokeResponse:
        """With an idempotency key: the task belongs to no caller, so whoever lost the connection
        can come again and find it."""
        self._check_sizes(request)
        task = self._tasks.same(request)
        if task is None and request.input_object:
            request = await self._with_input(request)
            task = self._tasks.same(request)  # another one may have come meanwhile
        if task is None:
            task = self._accept(request, attached=False)
            self._executor.start(task)
        if task.record is not None:
            await task.record.accepted()
        if request.mode is ExecutionMode.ASYNC:
            return self._accepted(task)
        await self._final(task)
        return _ended(task)

    @asynccontextmanager
    async def stream(self, request: InvokeRequest) -> AsyncGenerator[InvokeStream]:
        if request.payload or request.input_object:
            what = "payload" if request.payload else "input_object"
            raise InvalidRequestError(f"{what}: the input of a stream is sent on it")
        if request.idempotency_key:
            raise InvalidRequestError(
                "idempotency_key: a stream cannot be repeated, its input is not known beforehand"
            )
        await trio.lowlevel.checkpoint()
        artifact, _ = self._artifacts.resolve(request.function)
        runtime = self._services.declared_runtime(artifact.runtime).spec
        if Capability.STREAM not in runtime.capabilities:
            raise UnsupportedModeError(
                f"{request.function} cannot stream, for its runtime {runtime.name!r} does not; "
                "it can be invoked"
            )
        task = self._accept(request)
        stream = TaskStream(task, _ended)
        task.work = stream.work
        if task.record is not None:
            await self._executor.written(task)
        async with open_task_stream(stream, self._executor.run) as opened:
            yield opened

    async def _final(self, task: Task) -> None:
        """Wait until a task is final, and that is on disk where it has to be."""
        await task.wait_final()
        if task.record is not None:
            await task.record.settled()
        if task.postponed:
            raise NodeStoppingError(
                f"the node is shutting down; task {task.id} goes on when it is started again"
            )

    def _accept(self, request: InvokeRequest, *, attached: bool = True) -> Task:
        """Check a request, reserve a place and make the task; the executor has to run it now.

        :param attached: its caller waits for it, and it ends with its caller.
        """
        self._refuse_when_stopping()
        self._check_sizes(request)
        artifact, entry = self._artifacts.resolve(request.function)
        self._services.declared_runtime(artifact.runtime)
        deadline = trio.current_time() + self._timeout_s(request, artifact)
        parent = self._tasks.parent(request)
        if parent is not None:
            self._check_depth(parent)
        if parent is not None and not request.detached:
            deadline = min(deadline, parent.deadline)
        task = self._executor.accept(artifact, request, entry=entry, deadline=deadline)
        if self._tracing is not None:
            self._tracing.begin(task)
        if self._journal is not None and (not attached or self._config.tasks.durable_sync):
            self._journal.admit(task, attached=attached)
        if request.input_object and self._task_objects is not None:
            self._task_objects.hold_input(task, request.input_object)
        return task

    async def _with_input(self, request: InvokeRequest) -> InvokeRequest:
        """The request with the bytes of its input object, as they are now."""
        self._refuse_when_stopping()
        if self._task_objects is None:
            raise InvalidRequestError("input_object: this node has no objects")
        self._artifacts.resolve(request.function)  # first: it is cheaper to find missing
        return await self._task_objects.with_input(request)

    def _check_depth(self, parent: Task) -> None:
        most = self._config.execution.max_call_depth
        if parent.depth >= most:
            raise ResourceExhaustedError(
                f"calls are nested too deep: task {parent.id} of {parent.function} is already"
                f" {parent.depth} deep, and {most} is the most (execution.max_call_depth); does a"
                " function call itself for ever?",
                retryable=False,
            )

    def _check_sizes(self, request: InvokeRequest) -> None:
        most = self._config.execution.max_input_bytes
        if len(request.payload) > most:
            raise InvalidRequestError(
                f"the input has {len(request.payload)} bytes; {most} are allowed "
                "(execution.max_input_bytes)"
            )
        if len("".join(_short_fields(request))) > _LONGEST_FIELD:  # one may be too long
            self._refuse_long_field(request)
        if request.context:
            length = sum(len(key) + len(value) for key, value in request.context.items())
            if length > _MOST_CONTEXT:
                raise InvalidRequestError(
                    f"context has {length} characters in all; at most {_MOST_CONTEXT} are allowed"
                )

    def _refuse_long_field(self, request: InvokeRequest) -> None:
        for name, text in zip(_SHORT_FIELDS, _short_fields(request), strict=True):
            if len(text) > _LONGEST_FIELD:
                raise InvalidRequestError(
                    f"{name} has {len(text)} characters; at most {_LONGEST_FIELD} are allowed"
                )

    def _timeout_s(self, request: InvokeRequest, artifact: Artifact) -> float:
        chosen = request.timeout_s if request.timeout_s is not None else artifact.timeout_s
        if chosen is None:
            return self._config.execution.task_timeout_ms / 1000
        return _checked_timeout(chosen)

    def _accepted(self, task: Task) -> InvokeResponse:
        timeout_s = task.deadline - trio.current_time()
        estimate = min(timeout_s, self._executor.estimate_s(task.artifact, timeout_s))
        return InvokeResponse(
            success=True,
            message="accepted",
            task=task.info(),
            status_endpoint=f"/status/{task.execution_id}",
            estimated_completion_ms=round(estimate * 1000),
        )

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        await trio.lowlevel.checkpoint()
        task = self._tasks.get(task_id)
        if wait:
            await self._final(task)
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
        await self._final(task)
        for each in below:
            await self._final(each)
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
        self._refuse_when_stopping()
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


def _ended(task: Task) -> InvokeResponse:
    error = task.result.error if task.result else None
    return InvokeResponse(
        success=task.state is TaskState.COMPLETED,
        message="completed" if error is None else error.message,
        task=task.info(),
    )


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequestError(
            f"timeout_s must be a positive number of at most {_LONGEST_TIMEOUT_S:g}, "
            f"not {timeout_s}"
        )
    return timeout_s


def _worst(health: Sequence[str]) -> str:
    """The one word for a plugin with several runtimes."""
    for word in ("unhealthy", "undetected", "healthy"):
        if word in health:
            return word
    return ""
