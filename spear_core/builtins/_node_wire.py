"""NodeApi on the wire: a table of methods, and values as msgpack (``docs/wire-format.md``).

Arguments and small answers are heads. What may be large goes as payload: an input, an output, the
code of an artifact as it is, a listing as msgpack.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

import attrs
import msgspec
import trio

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactState,
    ArtifactUpload,
    BackupReport,
    ConfigReload,
    ErrorInfo,
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
    TaskInfo,
    TaskResult,
)
from spear_core.builtins._backup_wire import hear_backup, serve_backup
from spear_core.builtins._node_streams import ClientStream, gone, relay
from spear_core.builtins._objects_client import ObjectsClient
from spear_core.builtins._objects_wire import PREFIX, answer_objects, serve_objects
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    InvalidRequestError,
    ProtocolError,
    SpearError,
    UnsupportedModeError,
)
from spear_core.rpc import Call, Reply, Stream
from spear_core.rpc.codec import cut_text, decode_head, encode_head

__all__ = ["NodeClient", "answer", "serve_stream"]

T = TypeVar("T")
Ask = Callable[[str, dict[str, Any], bytes | bytearray | memoryview], Awaitable[Reply]]
OpenStream = Callable[[str, dict[str, Any]], AbstractAsyncContextManager[Stream]]

_MODES = frozenset(mode.value for mode in ExecutionMode)
_INLINE_OUTPUT = 4096
"""Bytes of output that go within the head; more goes as payload."""
_LONGEST_HEAD = 60_000
_CANCEL_S = 15.0
"""How long leaving a stream waits for its task to end."""
_LONGEST_PAYLOAD = 64 << 20
"""What a session takes (:mod:`spear_core.rpc.session`)."""
_PACKED = {True: " when packed", False: ""}
_LONGEST_TEXT = 4096
"""Bytes of each text of an error whose texts are too many for a head; ten of them fit."""


def _convert(value: object, to: type[T]) -> T:
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"malformed arguments: {error}") from error


def _fields(value: attrs.AttrsInstance, *, without: str) -> dict[str, Any]:
    return attrs.asdict(value, recurse=False, filter=lambda field, _: field.name != without)


# The node's side ----------------------------------------------------------------------------------


async def answer(node: NodeApi, call: Call) -> Reply:
    """Do what a client's call asks of ``node``.

    :raises SpearError: what the method raises; the session sends it back.
    """
    method = _METHODS.get(call.method)
    if method is None and call.method.startswith(PREFIX):
        return await answer_objects(node.objects, call)
    if method is None:
        raise InvalidRequestError(
            f"this node has no method {call.method!r}; it has {', '.join(_METHODS)}"
        )
    return await method(node, call)


async def _invoke(node: NodeApi, call: Call) -> Reply:
    mode = call.args.get("mode")
    if isinstance(mode, str) and mode not in _MODES:
        raise UnsupportedModeError(
            f"mode {mode!r} does not exist; an invocation is sync or async, and a stream is opened "
            "with StreamFunction"
        )
    request = _convert({**call.args, "payload": bytes(call.payload)}, InvokeRequest)
    return _invoked(await node.invoke(request))


def _invoked(response: InvokeResponse) -> Reply:
    task, output = _split(response.task)
    message = cut_text(response.message, _LONGEST_TEXT)
    if task is not response.task or len(message) != len(response.message):
        response = attrs.evolve(response, task=task, message=message)
    return Reply({"value": response}, output)


async def serve_stream(node: NodeApi, call: Call, stream: Stream) -> Reply:
    """Let a client's stream run through ``node``.

    :raises SpearError: what :meth:`NodeApi.stream` raises.
    """
    if call.method.startswith(PREFIX):
        return await serve_objects(node.objects, call, stream)
    if call.method == "backup":
        return await serve_backup(node, stream, **_arguments(call, directory=str, logs=bool))
    if call.method != "stream":
        raise InvalidRequestError(f"this node has no stream {call.method!r}; it has stream, backup")
    request = _convert({**call.args, "payload": b""}, InvokeRequest)
    async with node.stream(request) as task:
        await stream.send(encode_head({"task_id": task.task_id}))
        return _invoked(await relay(stream, task))


async def _get_task(node: NodeApi, call: Call) -> Reply:
    task, output = _split(await node.get_task(**_arguments(call, task_id=str, wait=bool)))
    return Reply({"value": task}, output)


async def _cancel_task(node: NodeApi, call: Call) -> Reply:
    task, output = _split(await node.cancel_task(**_arguments(call, task_id=str, reason=str)))
    return Reply({"value": task}, output)


async def _list_tasks(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.list_tasks(**_arguments(call, limit=int)))


async def _read_log(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.read_log(**_arguments(call, task_id=str, cursor=int, wait=bool)))


async def _deploy(node: NodeApi, call: Call) -> Reply:
    upload = _convert({**call.args, "content": bytes(call.payload)}, ArtifactUpload)
    return _listing(await node.deploy(upload))


async def _delete_artifact(node: NodeApi, call: Call) -> Reply:
    arguments = _arguments(call, name=str, version=int | None)
    return _listing(await node.delete_artifact(**arguments))


async def _get_artifact(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.get_artifact(**_arguments(call, ref=str)))


async def _set_latest(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.set_latest(**_arguments(call, name=str, version=int)))


async def _set_artifact_state(node: NodeApi, call: Call) -> Reply:
    arguments = _arguments(call, name=str, version=int, state=ArtifactState)
    return _listing(await node.set_artifact_state(**arguments))


async def _list_artifacts(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.list_artifacts())


async def _list_instances(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.list_instances())


async def _list_plugins(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.list_plugins())


async def _status(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.status())


async def _metrics(node: NodeApi, call: Call) -> Reply:
    return _listing(await node.metrics())


async def _reload_config(node: NodeApi, call: Call) -> Reply:
    _arguments(call)
    return _listing(await node.reload_config())


_METHODS: dict[str, Callable[[NodeApi, Call], Awaitable[Reply]]] = {
    function.__name__[1:]: function
    for function in (
        _invoke,
        _get_task,
        _cancel_task,
        _list_tasks,
        _read_log,
        _deploy,
        _delete_artifact,
        _list_artifacts,
        _get_artifact,
        _set_latest,
        _set_artifact_state,
        _list_instances,
        _list_plugins,
        _status,
        _metrics,
        _reload_config,
    )
}


def _arguments(call: Call, **types: Any) -> dict[str, Any]:
    """The call's arguments, each of its type; absent ones take the method's default."""
    if unknown := call.args.keys() - types.keys():
        raise InvalidRequestError(f"{call.method} has no argument {', '.join(sorted(unknown))}")
    return {name: _convert(value, types[name]) for name, value in call.args.items()}


def _listing(value: object) -> Reply:
    return Reply({}, encode_head(value))


def _split(task: TaskInfo) -> tuple[TaskInfo, bytes]:
    """A task that fits into a head, and the output that has to go beside it."""
    result = task.result
    if result is None:
        return task, b""
    output = result.output
    if len(output) > _INLINE_OUTPUT:
        result = attrs.evolve(result, output=b"")
    else:
        output = b""
    if result.error is not None:
        result = _fit(result, result.error)
    return (task if result is task.result else attrs.evolve(task, result=result)), output


def _fit(result: TaskResult, error: ErrorInfo) -> TaskResult:
    """Cut an error's texts if a head cannot hold them."""
    details = error.details
    if len(error.message) + sum(map(len, details.values())) <= _LONGEST_TEXT or (
        len(encode_head(result)) < _LONGEST_HEAD - _LONGEST_TEXT
    ):
        return result
    error = attrs.evolve(
        error,
        message=cut_text(error.message, _LONGEST_TEXT),
        details={
            cut_text(key, 100): cut_text(text[::-1], _LONGEST_TEXT)[::-1]  # its end says most
            for key, text in list(details.items())[:8]
        },
    )
    return attrs.evolve(result, error=error)


# The client's side --------------------------------------------------------------------------------


class NodeClient(NodeApi):
    """A node on the other side of ``ask(method, args, payload)``.

    :param open_stream: opens a stream of this method with these arguments.
    :param connected: says whether the other side still takes requests.
    """

    def __init__(
        self, ask: Ask, open_stream: OpenStream, *, connected: Callable[[], bool] = lambda: True
    ) -> None:
        self._ask = ask
        self._open_stream = open_stream
        self._connected = connected
        self._objects = ObjectsClient(ask, open_stream)

    @property
    def is_connected(self) -> bool:
        return self._connected()

    @property
    def objects(self) -> ObjectApi:
        return self._objects

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        reply = await self._ask("invoke", _invoke_arguments(request), request.payload)
        response = _received(reply, InvokeResponse)
        if reply.payload:
            response = attrs.evolve(response, task=_joined(response.task, reply))
        return response

    @asynccontextmanager
    async def stream(self, request: InvokeRequest) -> AsyncGenerator[InvokeStream]:
        if request.payload:
            raise InvalidRequestError("payload: the input of a stream is sent on it")
        async with self._stream("stream", _invoke_arguments(request)) as stream:
            told = decode_head(await stream.receive(), dict)
            client = ClientStream(str(told["task_id"]), stream, _response)
            try:
                yield client
            finally:
                if not client.finished:
                    with (
                        trio.move_on_after(_CANCEL_S, shield=True),
                        suppress(SpearError),  # the node is gone, or it has ended by itself
                    ):
                        await self.cancel_task(client.task_id, reason="its caller left the stream")

    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        return await self._task("get_task", {"task_id": task_id, "wait": wait})

    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        return await self._task("cancel_task", {"task_id": task_id, "reason": reason})

    async def _task(self, method: str, args: dict[str, Any]) -> TaskInfo:
        reply = await self._ask(method, args, b"")
        return _joined(_received(reply, TaskInfo), reply)

    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        return await self._listing("list_tasks", {"limit": limit}, list[TaskInfo])

    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        args = {"task_id": task_id, "cursor": cursor, "wait": wait}
        return await self._listing("read_log", args, LogChunk)

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        args = _fields(upload, without="content")
        if (size := len(upload.content)) > _LONGEST_PAYLOAD:
            raise InvalidRequestError(
                f"the code of {upload.name[:100]!r} has {size} bytes{_PACKED[upload.bundle]}; a "
                f"local socket takes {_LONGEST_PAYLOAD} at most. Leave out what it does not need "
                "(`exclude` in spear.toml), or let it get large files when it runs"
            )
        if (size := len(encode_head(args))) > _LONGEST_HEAD:
            raise InvalidRequestError(
                f"the settings of {upload.name[:100]!r} (environment and arguments, above all) have"
                f" {size} bytes; at most {_LONGEST_HEAD} are allowed"
            )
        return await self._listing("deploy", args, ArtifactInfo, upload.content)

    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        return await self._listing("list_artifacts", {}, list[ArtifactInfo])

    async def get_artifact(self, ref: str) -> ArtifactDetails:
        return await self._listing("get_artifact", {"ref": ref}, ArtifactDetails)

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        return await self._listing("set_latest", {"name": name, "version": version}, ArtifactInfo)

    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        args = {"name": name, "version": version, "state": state}
        return await self._listing("set_artifact_state", args, ArtifactInfo)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        return await self._listing("delete_artifact", {"name": name, "version": version}, int)

    async def reload_config(self) -> ConfigReload:
        return await self._listing("reload_config", {}, ConfigReload)

    async def backup(
        self, directory: str, *, logs: bool = False, tell: Callable[[str], None] | None = None
    ) -> BackupReport:
        args = {"directory": directory, "logs": logs}
        async with self._stream("backup", args) as stream:
            return await hear_backup(stream, tell)

    async def list_instances(self) -> Sequence[InstanceInfo]:
        return await self._listing("list_instances", {}, list[InstanceInfo])

    async def list_plugins(self) -> Sequence[PluginInfo]:
        return await self._listing("list_plugins", {}, list[PluginInfo])

    async def status(self) -> NodeStatus:
        return await self._listing("status", {}, NodeStatus)

    async def metrics(self) -> NodeMetrics:
        return await self._listing("metrics", {}, NodeMetrics)

    @asynccontextmanager
    async def _stream(self, method: str, args: dict[str, Any]) -> AsyncGenerator[Stream]:
        try:
            async with self._open_stream(method, args) as stream:
                yield stream
        except (ChannelBrokenError, ChannelClosedError) as error:
            raise gone(error) from error

    async def _listing(
        self, method: str, args: dict[str, Any], type_: type[T], payload: bytes = b""
    ) -> T:
        reply = await self._ask(method, args, payload)
        return decode_head(bytes(reply.payload), type_)


def _response(reply: Reply) -> InvokeResponse:
    return _received(reply, InvokeResponse)


def _invoke_arguments(request: InvokeRequest) -> dict[str, Any]:
    """What the request says beside its payload; what it leaves at its default is left out."""
    args: dict[str, Any] = {"function": request.function}
    for name, default in _INVOKE_DEFAULTS:
        if (value := getattr(request, name)) != default:
            args[name] = value
    return args


_INVOKE_DEFAULTS = tuple(
    (field.name, {} if field.name == "context" else field.default)
    for field in attrs.fields(InvokeRequest)
    if field.name not in ("function", "payload")
)


def _received(reply: Reply, type_: type[T]) -> T:
    try:
        return msgspec.convert(reply.head["value"], type_)
    except (KeyError, msgspec.ValidationError) as error:
        raise ProtocolError(f"the node's answer is not understood: {error}") from error


def _joined(task: TaskInfo, reply: Reply) -> TaskInfo:
    """The task with its output, wherever that travelled."""
    if not reply.payload or task.result is None:
        return task
    result = attrs.evolve(task.result, output=bytes(reply.payload))
    return attrs.evolve(task, result=result)
