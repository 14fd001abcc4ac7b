"""A node that answers with what a test gives it, behind a real local socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactState,
    ArtifactUpload,
    ConfigReload,
    FrontDoorContext,
    InstanceInfo,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    LogChunk,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    PluginInfo,
    TaskInfo,
)
from spear_core.builtins.local_socket import LocalSocketConfig, open_local_socket
from spear_core.testing import make_context

Answer = Callable[..., Awaitable[Any]]


class ScriptedNode(NodeApi):
    """Notes every call and answers it by the function of the same name, if there is one."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._answers = answers

    async def _do(self, name: str, *args: Any, **options: Any) -> Any:
        self.calls.append((name, (args, options)))
        answer = self._answers[name]
        if isinstance(answer, Exception):
            raise answer
        return await answer(*args, **options) if callable(answer) else answer

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        response: InvokeResponse = await self._do("invoke", request)
        return response

    def stream(self, request: InvokeRequest) -> AbstractAsyncContextManager[InvokeStream]:
        raise AssertionError("nobody streams here")

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        task: TaskInfo = await self._do("get_task", task_id, wait=wait)
        return task

    async def reload_config(self) -> ConfigReload:
        answer: ConfigReload = await self._do("reload_config")
        return answer

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        tasks: Sequence[TaskInfo] = await self._do("list_tasks", limit=limit)
        return tasks

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        task: TaskInfo = await self._do("cancel_task", task_id, reason=reason)
        return task

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        chunk: LogChunk = await self._do("read_log", task_id, cursor=cursor, wait=wait)
        return chunk

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        info: ArtifactInfo = await self._do("deploy", upload)
        return info

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        artifacts: Sequence[ArtifactInfo] = await self._do("list_artifacts")
        return artifacts

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        details: ArtifactDetails = await self._do("get_artifact", ref)
        return details

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        info: ArtifactInfo = await self._do("set_latest", name, version)
        return info

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        info: ArtifactInfo = await self._do("set_artifact_state", name, version, state)
        return info

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        count: int = await self._do("delete_artifact", name, version=version)
        return count

    async def list_instances(self) -> Sequence[InstanceInfo]:
        instances: Sequence[InstanceInfo] = await self._do("list_instances")
        return instances

    async def list_plugins(self) -> Sequence[PluginInfo]:
        plugins: Sequence[PluginInfo] = await self._do("list_plugins")
        return plugins

    async def status(self) -> NodeStatus:
        status: NodeStatus = await self._do("status")
        return status

    async def metrics(self) -> NodeMetrics:
        metrics: NodeMetrics = await self._do("metrics")
        return metrics


OpenDoor = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def open_door(tmp_path: Path) -> OpenDoor:
    """Serves a node in ``tmp_path`` (or another directory) and gives the URL."""

    @asynccontextmanager
    async def serve(node: NodeApi, directory: Path = tmp_path) -> AsyncIterator[str]:
        plugin = make_context(tmp_path / "plugin")
        context = FrontDoorContext(plugin=plugin, node=node, node_dir=directory)
        async with open_local_socket(context, LocalSocketConfig()) as url:
            yield url

    return serve


@pytest.fixture
def scripted() -> type[ScriptedNode]:
    """The class of the scripted node."""
    return ScriptedNode
