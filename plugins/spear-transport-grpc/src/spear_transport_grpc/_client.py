"""The client side: NodeApi over a gRPC channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import trio

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactSettings,
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
    TaskInfo,
)
from spear_core.errors import InvalidRequestError, SpearError
from spear_transport_grpc._asking import Asking
from spear_transport_grpc._backup import ask_backup
from spear_transport_grpc._bridge import ClientCall, ClientChannel
from spear_transport_grpc._client_objects import GrpcObjects
from spear_transport_grpc._client_stream import STREAM, GrpcStream
from spear_transport_grpc._convert import converter
from spear_transport_grpc._protos.spear.v1 import (
    artifact_pb2,
    common_pb2,
    function_pb2,
    instance_pb2,
    log_pb2,
    node_pb2,
    task_pb2,
)
from spear_transport_grpc._task import response_from_message, task_from_message

__all__ = ["GrpcNode"]

V = TypeVar("V")
_CHUNK = 1 << 20
_CANCEL_S = 15.0
"""How long leaving a stream waits for its task to end."""


class GrpcNode(NodeApi):
    """The node behind a channel.

    :param where: its address, for messages.
    """

    def __init__(self, channel: ClientChannel, where: str) -> None:
        self._asking = Asking(channel, where)
        self._ask = self._asking.ask
        self._objects = GrpcObjects(self._asking)

    @property
    def objects(self) -> ObjectApi:
        return self._objects

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        message = _encoded(InvokeRequest, request)
        answer = function_pb2.InvokeFunctionResponse
        return response_from_message(
            await self._ask("FunctionService/InvokeFunction", message, answer)
        )

    @asynccontextmanager
    async def stream(self, request: InvokeRequest) -> AsyncIterator[InvokeStream]:
        async with self._asking.open(STREAM) as call:
            stream = await self._open_stream(call, request)
            try:
                yield stream
            finally:
                if not stream.finished:
                    await self._end_task(call, stream.task_id)

    async def _open_stream(self, call: ClientCall, request: InvokeRequest) -> GrpcStream:
        opening = function_pb2.StreamFunctionRequest(open=_encoded(InvokeRequest, request))
        await call.send(opening.SerializeToString())
        answer = self._asking.read(function_pb2.StreamFunctionResponse, await call.receive())
        return GrpcStream(call, answer.opened.task_id, self._asking)

    async def _end_task(self, call: ClientCall, task_id: str) -> None:
        """Nothing of the task may run when the block is over: cancel it and wait."""
        call.cancel()
        with trio.move_on_after(_CANCEL_S, shield=True):
            request = task_pb2.CancelTaskRequest(
                task_id=task_id, reason="the caller left the stream"
            )
            with suppress(SpearError):  # it is over, or the node is gone
                await self._ask("TaskService/CancelTask", request, common_pb2.Task)

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        request = task_pb2.GetTaskRequest(task_id=task_id, wait=wait)
        return task_from_message(await self._ask("TaskService/GetTask", request, common_pb2.Task))

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        request = task_pb2.ListTasksRequest(limit=limit)
        answer = await self._ask("TaskService/ListTasks", request, task_pb2.ListTasksResponse)
        return [task_from_message(task) for task in answer.tasks]

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        request = task_pb2.CancelTaskRequest(task_id=task_id, reason=reason)
        return task_from_message(
            await self._ask("TaskService/CancelTask", request, common_pb2.Task)
        )

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        request = log_pb2.ReadLogRequest(task_id=task_id, cursor=cursor, wait=wait)
        answer = await self._ask("LogService/ReadLog", request, log_pb2.LogChunk)
        return converter(LogChunk).decode(answer)

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        header = artifact_pb2.DeployArtifactHeader(
            name=upload.name,
            filename=upload.filename,
            size=len(upload.content),
            bundle=upload.bundle,
            runtime=upload.runtime,
            executable=upload.executable,
            settings=_encoded(ArtifactSettings, upload),
        )
        if upload.reuse is not None:
            header.reuse = upload.reuse
        view = memoryview(upload.content)
        async with self._asking.open("ArtifactService/DeployArtifact") as call:
            first = artifact_pb2.DeployArtifactRequest(header=header)
            await call.send(first.SerializeToString())
            for start in range(0, len(view), _CHUNK):
                chunk = artifact_pb2.DeployArtifactRequest(
                    chunk=bytes(view[start : start + _CHUNK])
                )
                await call.send(chunk.SerializeToString())
            await call.send_eof()
            answer = self._asking.read(artifact_pb2.Artifact, await call.receive())
        return converter(ArtifactInfo).decode(answer)

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        answer = await self._ask(
            "ArtifactService/ListArtifacts",
            artifact_pb2.ListArtifactsRequest(),
            artifact_pb2.ListArtifactsResponse,
        )
        return [converter(ArtifactInfo).decode(artifact) for artifact in answer.artifacts]

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        request = artifact_pb2.GetArtifactRequest(ref=ref)
        answer = await self._ask(
            "ArtifactService/GetArtifact", request, artifact_pb2.ArtifactDetails
        )
        return converter(ArtifactDetails).decode(answer)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        request = artifact_pb2.DeleteArtifactRequest(name=name, version=version)
        answer = await self._ask(
            "ArtifactService/DeleteArtifact", request, artifact_pb2.DeleteArtifactResponse
        )
        return answer.deleted

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        request = artifact_pb2.SetLatestRequest(name=name, version=version)
        answer = await self._ask("ArtifactService/SetLatest", request, artifact_pb2.Artifact)
        return converter(ArtifactInfo).decode(answer)

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        request = artifact_pb2.SetStateRequest(
            name=name,
            version=version,
            state=f"ARTIFACT_STATE_{state.name}",
        )
        answer = await self._ask("ArtifactService/SetState", request, artifact_pb2.Artifact)
        return converter(ArtifactInfo).decode(answer)

    async def list_instances(self) -> Sequence[InstanceInfo]:
        answer = await self._ask(
            "InstanceService/ListInstances",
            instance_pb2.ListInstancesRequest(),
            instance_pb2.ListInstancesResponse,
        )
        return [converter(InstanceInfo).decode(instance) for instance in answer.instances]

    async def list_plugins(self) -> Sequence[PluginInfo]:
        answer = await self._ask(
            "NodeService/ListPlugins", node_pb2.ListPluginsRequest(), node_pb2.ListPluginsResponse
        )
        return [converter(PluginInfo).decode(plugin) for plugin in answer.plugins]

    async def status(self) -> NodeStatus:
        answer = await self._ask(
            "NodeService/GetStatus", node_pb2.GetStatusRequest(), node_pb2.NodeStatus
        )
        return converter(NodeStatus).decode(answer)

    async def metrics(self) -> NodeMetrics:
        answer = await self._ask(
            "NodeService/GetMetrics", node_pb2.GetMetricsRequest(), node_pb2.NodeMetrics
        )
        return converter(NodeMetrics).decode(answer)

    async def reload_config(self) -> ConfigReload:
        answer = await self._ask(
            "NodeService/ReloadConfig",
            node_pb2.ReloadConfigRequest(),
            node_pb2.ReloadConfigResponse,
        )
        return converter(ConfigReload).decode(answer)

    async def backup(
        self, directory: str, *, logs: bool = False, tell: Callable[[str], None] | None = None
    ) -> BackupReport:
        return await ask_backup(self._asking, directory, logs=logs, tell=tell)


def _encoded(cls: type[V], value: V) -> Any:
    """The value as a message. **Raises** :exc:`InvalidRequestError` for what is not of its type."""
    try:
        return converter(cls).encode(value)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InvalidRequestError(f"{cls.__name__} has a field of a wrong type: {error}") from error
