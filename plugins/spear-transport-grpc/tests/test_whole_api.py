"""Nothing of a node's interface is left out on the wire: no value, no field, no argument."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    CheckObject,
    DeleteObject,
    InvokeResponse,
    InvokeStream,
    NodeApi,
    ObjectApi,
    ObjectChange,
    ObjectChanges,
    ObjectHolder,
    ObjectPage,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    PutObject,
    SealedFile,
    StoreUsage,
)
from spear_transport_grpc import plugin
from spear_transport_grpc._convert import MESSAGES
from spear_transport_grpc._protos.spear.v1 import (
    artifact_pb2,
    function_pb2,
    instance_pb2,
    log_pb2,
    node_pb2,
    object_pb2,
    task_pb2,
)

BY_HAND: dict[type[Any], tuple[Any, ...]] = {
    InvokeResponse: (function_pb2.InvokeFunctionResponse,),
    ArtifactUpload: (artifact_pb2.DeployArtifactHeader, artifact_pb2.ArtifactSettings),
    PutObject: (object_pb2.PutObjectOperation,),
    DeleteObject: (object_pb2.DeleteObjectOperation,),
    CheckObject: (object_pb2.CheckObjectOperation,),
}
"""Values that have messages without a converter."""
ELSEWHERE = {
    (ArtifactUpload, "content"),  # in chunks
}
STAYS_HERE = {SealedFile}
"""A file is refused by the client: bytes go over the wire."""

REQUESTS: dict[tuple[type[Any], str], Any] = {
    (NodeApi, "invoke"): function_pb2.InvokeFunctionRequest,
    (NodeApi, "stream"): function_pb2.StreamFunctionRequest,
    (NodeApi, "get_task"): task_pb2.GetTaskRequest,
    (NodeApi, "list_tasks"): task_pb2.ListTasksRequest,
    (NodeApi, "cancel_task"): task_pb2.CancelTaskRequest,
    (NodeApi, "read_log"): log_pb2.ReadLogRequest,
    (NodeApi, "deploy"): artifact_pb2.DeployArtifactRequest,
    (NodeApi, "list_artifacts"): artifact_pb2.ListArtifactsRequest,
    (NodeApi, "get_artifact"): artifact_pb2.GetArtifactRequest,
    (NodeApi, "set_latest"): artifact_pb2.SetLatestRequest,
    (NodeApi, "set_artifact_state"): artifact_pb2.SetStateRequest,
    (NodeApi, "delete_artifact"): artifact_pb2.DeleteArtifactRequest,
    (NodeApi, "list_instances"): instance_pb2.ListInstancesRequest,
    (NodeApi, "list_plugins"): node_pb2.ListPluginsRequest,
    (NodeApi, "status"): node_pb2.GetStatusRequest,
    (NodeApi, "metrics"): node_pb2.GetMetricsRequest,
    (NodeApi, "reload_config"): node_pb2.ReloadConfigRequest,
    (NodeApi, "backup"): node_pb2.BackupRequest,
    (ObjectApi, "put"): object_pb2.PutObjectOperation,
    (ObjectApi, "create"): object_pb2.PutObjectHeader,
    (ObjectApi, "read"): object_pb2.GetObjectRequest,
    (ObjectApi, "get"): object_pb2.GetObjectRequest,
    (ObjectApi, "transact"): object_pb2.TransactObjectsRequest,
    (ObjectApi, "stat"): object_pb2.StatObjectRequest,
    (ObjectApi, "list"): object_pb2.ListObjectsRequest,
    (ObjectApi, "add_ref"): object_pb2.AddReferenceRequest,
    (ObjectApi, "remove_ref"): object_pb2.RemoveReferenceRequest,
    (ObjectApi, "holders"): object_pb2.ListHoldersRequest,
    (ObjectApi, "pin"): object_pb2.PinObjectRequest,
    (ObjectApi, "unpin"): object_pb2.UnpinObjectRequest,
    (ObjectApi, "delete"): object_pb2.DeleteObjectRequest,
    (ObjectApi, "watch"): object_pb2.WatchObjectsRequest,
    (ObjectApi, "usage"): object_pb2.GetObjectUsageRequest,
}
NOT_SENT = {
    (NodeApi, "invoke", "request"),  # its fields are
    (NodeApi, "stream", "request"),
    (NodeApi, "deploy", "upload"),
    (NodeApi, "backup", "tell"),  # called here
}


def methods(cls: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, found in vars(cls).items():
        if inspect.isfunction(found) and not name.startswith("_"):
            yield name, found


def values_of(hint: Any, found: set[type[Any]]) -> None:
    """Add every class of values that such a thing is made of."""
    for argument in typing.get_args(hint):
        values_of(argument, found)
    if isinstance(hint, type) and attrs.has(hint) and hint not in found:
        found.add(hint)
        for inner in typing.get_type_hints(hint).values():
            values_of(inner, found)


def crossing() -> set[type[Any]]:
    found: set[type[Any]] = set()
    for cls in (NodeApi, ObjectApi, InvokeStream, ObjectReader, ObjectWriter):
        for _, method in methods(cls):
            for hint in typing.get_type_hints(method).values():
                values_of(hint, found)
        for hint in typing.get_type_hints(cls).values():
            values_of(hint, found)
    return found


def test_every_value_of_the_interface_has_a_message() -> None:
    values = crossing()
    assert {InvokeResponse, ObjectChanges, ObjectStat, ArtifactUpload} <= values  # it looks deep
    assert values - STAYS_HERE == set(MESSAGES) | set(BY_HAND)


@pytest.mark.parametrize("cls", BY_HAND, ids=lambda cls: cls.__name__)
def test_every_field_has_a_place(cls: type[Any]) -> None:
    places = {name for m in BY_HAND[cls] for name in m.DESCRIPTOR.fields_by_name}
    fields = {f.name for f in attrs.fields(cls) if (cls, f.name) not in ELSEWHERE}
    assert fields <= places


def test_every_method_has_a_request_with_room_for_its_arguments() -> None:
    wanted = {(cls, name) for cls in (NodeApi, ObjectApi) for name, _ in methods(cls)}
    assert wanted == set(REQUESTS)
    for (cls, name), message in REQUESTS.items():
        given = set(inspect.signature(getattr(cls, name)).parameters) - {"self"}
        given -= {argument for c, n, argument in NOT_SENT if (c, n) == (cls, name)}
        assert given <= set(message.DESCRIPTOR.fields_by_name), (cls, name)


# ---- what is asked of an object, with every argument at something that is no default

SHA = "ab" * 32
WRITE: dict[str, Any] = {
    "key": "k",
    "expect": SHA,
    "content_type": "text/x",
    "ttl": 2.5,
    "hashed": False,
}
OPERATIONS = (
    PutObject(value=b"v", **WRITE),
    DeleteObject(key="d", expect=7),
    CheckObject(key="c", expect=0),
    PutObject(key="plain", value=b""),
)
CALLS: dict[str, dict[str, Any]] = {
    "put": {"value": b"v", **WRITE},
    "create": {**WRITE, "size": 0},
    "read": {"key": "k", "version": 3, "offset": -4},
    "get": {"key": "k", "version": 3},
    "transact": {"operations": OPERATIONS},
    "stat": {"key": "k"},
    "list": {"prefix": "p", "after": "a", "limit": 7},
    "add_ref": {"key": "k", "holder": "h"},
    "remove_ref": {"key": "k", "holder": "h"},
    "holders": {"key": "k"},
    "pin": {"key": "k"},
    "unpin": {"key": "k"},
    "delete": {"key": "k", "expect": 0},
    "watch": {"prefix": "p", "start_revision": 9},
    "usage": {},
}
STAT = ObjectStat(
    key="k",
    size=0,
    version=2,
    revision=3,
    sha256=SHA,
    created_at=1.5,
    updated_at=2.5,
    content_type="text/x",
    refs=4,
    pinned=True,
    expires_at=0.0,
)


class Keeper(ObjectApi):
    """Keeps what it was asked, and answers with something whole."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def _note(self, name: str, **arguments: Any) -> None:
        self.asked.append((name, arguments))

    async def put(self, key: str, value: Any, **settings: Any) -> ObjectStat:
        self._note("put", key=key, value=value, **settings)
        return STAT

    @asynccontextmanager
    async def create(self, key: str, **settings: Any) -> AsyncGenerator[ObjectWriter]:
        self._note("create", key=key, **settings)
        yield _Writer()

    @asynccontextmanager
    async def read(self, key: str, **where: Any) -> AsyncGenerator[ObjectReader]:
        self._note("read", key=key, **where)
        yield _Reader()

    async def transact(self, operations: Sequence[Any]) -> tuple[ObjectStat | None, ...]:
        self._note("transact", operations=tuple(operations))
        return (STAT, None)[: len(operations)]

    async def stat(self, key: str) -> ObjectStat:
        self._note("stat", key=key)
        return STAT

    async def list(self, prefix: str = "", **more: Any) -> ObjectPage:
        self._note("list", prefix=prefix, **more)
        return ObjectPage(objects=(STAT, STAT), next_key="", revision=5)

    async def add_ref(self, key: str, *, holder: str = "") -> ObjectStat:
        self._note("add_ref", key=key, holder=holder)
        return STAT

    async def remove_ref(self, key: str, *, holder: str = "") -> ObjectStat | None:
        self._note("remove_ref", key=key, holder=holder)
        return STAT

    async def holders(self, key: str) -> Sequence[ObjectHolder]:
        self._note("holders", key=key)
        return [ObjectHolder(name="me", refs=2, ttl=0.0), ObjectHolder(name="", refs=1, ttl=None)]

    async def pin(self, key: str) -> ObjectStat:
        self._note("pin", key=key)
        return STAT

    async def unpin(self, key: str) -> ObjectStat | None:
        self._note("unpin", key=key)
        return STAT

    async def delete(self, key: str, *, expect: int | str | None = None) -> None:
        self._note("delete", key=key, expect=expect)

    @asynccontextmanager
    async def watch(
        self, prefix: str = "", *, start_revision: int | None = None
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[ObjectChanges]]:
        self._note("watch", prefix=prefix, start_revision=start_revision)
        sender, receiver = trio.open_memory_channel[ObjectChanges](1)
        changes = (ObjectChange(key="a", now=STAT), ObjectChange(key="b", now=None))
        sender.send_nowait(ObjectChanges(revision=6, changes=changes))
        yield receiver

    async def usage(self) -> StoreUsage:
        self._note("usage")
        return StoreUsage(objects=1, bytes=1 << 50, limit_bytes=1 << 60)


class _Writer(ObjectWriter):
    async def write(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def commit(self) -> ObjectStat:
        return STAT


class _Reader(ObjectReader):
    stat = STAT

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.EndOfChannel

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def outcome(objects: ObjectApi, name: str) -> Any:
    """What came of calling that method with everything."""
    asked = getattr(objects, name)(**CALLS[name])
    if not isinstance(asked, AbstractAsyncContextManager):
        return await asked
    async with asked as opened:
        if name == "create":
            return await opened.commit()
        return opened.stat if name == "read" else await opened.receive()


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_every_argument_and_every_answer_arrives(
    name: str, tmp_path: Path, serve: Callable[..., Any], table_node: Any
) -> None:
    node = table_node()
    node.objects = keeper = Keeper()
    async with serve(tmp_path, node) as url, plugin.connect(url) as api:
        answer = await outcome(api.objects, name)
    if name == "get":  # is a read from the beginning
        assert answer == (STAT, b"")
        assert keeper.asked == [("read", {**CALLS["get"], "offset": 0})]
        return
    if name == "put":  # is a transaction of one
        assert answer == STAT
        assert keeper.asked == [("transact", {"operations": (PutObject(**CALLS["put"]),)})]
        return
    assert keeper.asked == [(name, CALLS[name])]
    assert answer == await outcome(Keeper(), name)


def test_every_method_was_called_with_every_argument() -> None:
    for name, method in methods(ObjectApi):
        given = set(inspect.signature(method).parameters) - {"self"}
        assert set(CALLS[name]) == given
