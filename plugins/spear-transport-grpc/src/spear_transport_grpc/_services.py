"""The public services: NodeApi for callers in any language."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio
from google.protobuf.message import Message

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactSettings,
    ArtifactState,
    ArtifactUpload,
    ConfigReload,
    ExecutionMode,
    InstanceInfo,
    InvokeRequest,
    LogChunk,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    PluginInfo,
)
from spear_core.errors import InvalidRequestError
from spear_transport_grpc._backup import serve_backup
from spear_transport_grpc._bridge import Method, ServerCall
from spear_transport_grpc._convert import converter
from spear_transport_grpc._handlers import parsed, streaming, unary
from spear_transport_grpc._identity import caller_of
from spear_transport_grpc._protos.spear.v1 import (
    artifact_pb2,
    function_pb2,
    instance_pb2,
    log_pb2,
    node_pb2,
    task_pb2,
)
from spear_transport_grpc._relay import relay
from spear_transport_grpc._task import response_to_message, task_to_message

__all__ = ["NodeServices"]

_DEFAULT_LIMIT = 100
_ROUNDING = 0.01
"""gRPC writes a timeout with two or three digits and rounds up."""
_MARGIN_S = 0.05
"""A task ends this much before its call's deadline, so that the client still hears how."""


class NodeServices:
    """Every public method over one node.

    :param task_timeout_s: the deadline of tasks that name none.
    :param max_artifact: bytes of code that a deployment may have.
    :param certificates: clients may have one that is checked.
    """

    def __init__(
        self, node: NodeApi, *, task_timeout_s: float, max_artifact: int, certificates: bool
    ) -> None:
        self._node = node
        self._task_timeout_s = task_timeout_s
        self._max_artifact = max_artifact
        self._certificates = certificates

    def methods(self) -> Mapping[str, Method]:
        """``/package.Service/Method`` → how it is done."""
        questions: tuple[tuple[str, type[Message], Callable[..., Awaitable[Message]]], ...] = (
            ("FunctionService/InvokeFunction", function_pb2.InvokeFunctionRequest, self._invoke),
            ("TaskService/GetTask", task_pb2.GetTaskRequest, self._get_task),
            ("TaskService/ListTasks", task_pb2.ListTasksRequest, self._list_tasks),
            ("TaskService/CancelTask", task_pb2.CancelTaskRequest, self._cancel_task),
            ("ArtifactService/ListArtifacts", artifact_pb2.ListArtifactsRequest, self._artifacts),
            ("ArtifactService/GetArtifact", artifact_pb2.GetArtifactRequest, self._get_artifact),
            ("ArtifactService/DeleteArtifact", artifact_pb2.DeleteArtifactRequest, self._delete),
            ("ArtifactService/SetLatest", artifact_pb2.SetLatestRequest, self._set_latest),
            ("ArtifactService/SetState", artifact_pb2.SetStateRequest, self._set_state),
            ("InstanceService/ListInstances", instance_pb2.ListInstancesRequest, self._instances),
            ("NodeService/GetStatus", node_pb2.GetStatusRequest, self._status),
            ("NodeService/GetMetrics", node_pb2.GetMetricsRequest, self._metrics),
            ("NodeService/ReloadConfig", node_pb2.ReloadConfigRequest, self._reload_config),
            ("NodeService/ListPlugins", node_pb2.ListPluginsRequest, self._plugins),
            ("LogService/ReadLog", log_pb2.ReadLogRequest, self._read_log),
        )
        streams = (
            ("FunctionService/StreamFunction", self._stream),
            ("ArtifactService/DeployArtifact", self._deploy),
            ("LogService/FollowLog", self._follow_log),
            ("NodeService/Backup", self._backup),
        )
        return {
            **{f"/spear.v1.{name}": unary(cls, do) for name, cls, do in questions},
            **{f"/spear.v1.{name}": streaming(do) for name, do in streams},
        }

    # ---- functions

    def _request(
        self, message: function_pb2.InvokeFunctionRequest, call: ServerCall
    ) -> InvokeRequest:
        request = converter(InvokeRequest).decode(message)
        changes: dict[str, Any] = {}
        if request.timeout_s is None and request.mode is not ExecutionMode.ASYNC:
            left = call.deadline - trio.current_time()
            if left < self._task_timeout_s:
                left -= left * _ROUNDING + min(_MARGIN_S, left / 20)
                changes["timeout_s"] = max(0.001, left)
        if self._certificates and (caller := caller_of(call)):
            changes["caller"] = caller
        if not request.trace and (trace := call.header("traceparent")):
            changes["trace"] = trace
        return attrs.evolve(request, **changes) if changes else request

    async def _invoke(
        self, message: function_pb2.InvokeFunctionRequest, call: ServerCall
    ) -> Message:
        return response_to_message(await self._node.invoke(self._request(message, call)))

    async def _stream(self, call: ServerCall) -> None:
        first = parsed(function_pb2.StreamFunctionRequest, await call.receive())
        if not first.HasField("open"):
            raise InvalidRequestError("open: the first message of a stream says what to run")
        request = self._request(first.open, call)
        async with self._node.stream(request) as stream:
            await relay(call, stream)

    # ---- tasks

    async def _get_task(self, message: task_pb2.GetTaskRequest, call: ServerCall) -> Message:
        return task_to_message(await self._node.get_task(message.task_id, wait=message.wait))

    async def _list_tasks(self, message: task_pb2.ListTasksRequest, call: ServerCall) -> Message:
        tasks = await self._node.list_tasks(limit=message.limit or _DEFAULT_LIMIT)
        return task_pb2.ListTasksResponse(tasks=map(task_to_message, tasks))

    async def _cancel_task(self, message: task_pb2.CancelTaskRequest, call: ServerCall) -> Message:
        task = await self._node.cancel_task(message.task_id, reason=message.reason)
        return task_to_message(task)

    # ---- artifacts

    async def _deploy(self, call: ServerCall) -> None:
        first = parsed(artifact_pb2.DeployArtifactRequest, await call.receive())
        if not first.HasField("header"):
            raise InvalidRequestError("header: the first message of a deployment says what it is")
        header = first.header
        if not 0 <= header.size <= self._max_artifact:
            raise InvalidRequestError(
                f"size: {header.size} bytes of code; at most {self._max_artifact} are taken here"
            )
        content = bytearray()
        while (data := await call.receive()) is not None:
            content += parsed(artifact_pb2.DeployArtifactRequest, data).chunk
            if len(content) > header.size:
                break
        if len(content) != header.size:
            raise InvalidRequestError(
                f"size: {header.size} bytes of code were announced, {len(content)} came"
            )
        info = await self._node.deploy(_upload(header, bytes(content)))
        await call.send(converter(ArtifactInfo).encode(info).SerializeToString())

    async def _artifacts(
        self, message: artifact_pb2.ListArtifactsRequest, call: ServerCall
    ) -> Message:
        encode = converter(ArtifactInfo).encode
        return artifact_pb2.ListArtifactsResponse(
            artifacts=map(encode, await self._node.list_artifacts())
        )

    async def _get_artifact(
        self, message: artifact_pb2.GetArtifactRequest, call: ServerCall
    ) -> Message:
        details = await self._node.get_artifact(message.ref)
        encoded: Message = converter(ArtifactDetails).encode(details)
        return encoded

    async def _delete(
        self, message: artifact_pb2.DeleteArtifactRequest, call: ServerCall
    ) -> Message:
        version = message.version if message.HasField("version") else None
        deleted = await self._node.delete_artifact(message.name, version=version)
        return artifact_pb2.DeleteArtifactResponse(deleted=deleted)

    async def _set_latest(
        self, message: artifact_pb2.SetLatestRequest, call: ServerCall
    ) -> Message:
        info = await self._node.set_latest(message.name, message.version)
        encoded: Message = converter(ArtifactInfo).encode(info)
        return encoded

    async def _set_state(self, message: artifact_pb2.SetStateRequest, call: ServerCall) -> Message:
        states = {
            artifact_pb2.ArtifactState.Value(f"ARTIFACT_STATE_{state.name}"): state
            for state in ArtifactState
        }
        if message.state not in states:
            raise InvalidRequestError(f"state: {message.state} is no state of an artifact")
        info = await self._node.set_artifact_state(
            message.name, message.version, states[message.state]
        )
        encoded: Message = converter(ArtifactInfo).encode(info)
        return encoded

    # ---- the node

    async def _instances(
        self, message: instance_pb2.ListInstancesRequest, call: ServerCall
    ) -> Message:
        encode = converter(InstanceInfo).encode
        return instance_pb2.ListInstancesResponse(
            instances=map(encode, await self._node.list_instances())
        )

    async def _status(self, message: node_pb2.GetStatusRequest, call: ServerCall) -> Message:
        encoded: Message = converter(NodeStatus).encode(await self._node.status())
        return encoded

    async def _metrics(self, message: node_pb2.GetMetricsRequest, call: ServerCall) -> Message:
        encoded: Message = converter(NodeMetrics).encode(await self._node.metrics())
        return encoded

    async def _plugins(self, message: node_pb2.ListPluginsRequest, call: ServerCall) -> Message:
        encode = converter(PluginInfo).encode
        return node_pb2.ListPluginsResponse(plugins=map(encode, await self._node.list_plugins()))

    async def _reload_config(
        self, message: node_pb2.ReloadConfigRequest, call: ServerCall
    ) -> Message:
        encoded: Message = converter(ConfigReload).encode(await self._node.reload_config())
        return encoded

    async def _backup(self, call: ServerCall) -> None:
        await serve_backup(self._node, call)

    # ---- logs

    async def _read_log(self, message: log_pb2.ReadLogRequest, call: ServerCall) -> Message:
        chunk = await self._node.read_log(message.task_id, cursor=message.cursor, wait=message.wait)
        encoded: Message = converter(LogChunk).encode(chunk)
        return encoded

    async def _follow_log(self, call: ServerCall) -> None:
        request = parsed(log_pb2.FollowLogRequest, await call.receive())
        cursor, finished = request.cursor, False
        while not finished:
            chunk = await self._node.read_log(request.task_id, cursor=cursor, wait=True)
            cursor, finished = chunk.cursor, chunk.finished
            await call.send(converter(LogChunk).encode(chunk).SerializeToString())


def _upload(header: artifact_pb2.DeployArtifactHeader, content: bytes) -> ArtifactUpload:
    settings = converter(ArtifactSettings).fields(header.settings)
    try:
        return ArtifactUpload(
            name=header.name,
            filename=header.filename,
            content=content,
            bundle=header.bundle,
            runtime=header.runtime,
            reuse=header.reuse if header.HasField("reuse") else None,
            executable=header.executable,
            **settings,
        )
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"settings: {error}") from error
