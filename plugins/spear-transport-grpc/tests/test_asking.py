"""What a client hears of a node that is not there, or dies in the middle of a call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi
from spear_core.errors import (
    NodeUnreachableError,
    ObjectNotFoundError,
    ProtocolError,
    SpearError,
)
from spear_transport_grpc._asking import _AFTERWARDS, Asking
from spear_transport_grpc._bridge import (
    Port,
    RpcError,
    ServerCall,
    StatusCode,
    Streaming,
    open_channel,
    open_server,
)
from spear_transport_grpc._client import GrpcNode
from spear_transport_grpc._errors import error_to_status
from spear_transport_grpc._protos.spear.v1 import object_pb2

SILENT = """
import sys, trio
from spear_transport_grpc._bridge import Port, Streaming, Unary, open_server

async def ask(data, call):
    print("asked", flush=True)
    await trio.sleep_forever()

async def stream(call):
    await call.receive()
    call.accept()
    print("asked", flush=True)
    await trio.sleep_forever()

async def main():
    methods = {
        f"/spear.v1.{name}": kind
        for kind, names in ((Unary(ask), sys.argv[2]), (Streaming(stream), sys.argv[3]))
        for name in names.split()
    }
    async with open_server((Port(address=sys.argv[1]),), methods, grace_s=0):
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
UNARY = (
    "FunctionService/InvokeFunction TaskService/GetTask TaskService/CancelTask"
    " ObjectService/TransactObjects ObjectService/UnpinObject"
)
STREAMING = (
    "FunctionService/StreamFunction ArtifactService/DeployArtifact ObjectService/PutObject"
    " ObjectService/GetObject"
)


@attrs.frozen
class Silent:
    """A node that never answers."""

    process: subprocess.Popen[str]
    address: str
    api: NodeApi

    def heard(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "asked\n"


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncIterator[Silent]:
    address = f"unix:{tmp_path}/s"
    with subprocess.Popen(  # noqa: ASYNC220 - it is quick
        [sys.executable, "-c", SILENT, address, UNARY, STREAMING], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.readline) == "ready\n"
        try:
            async with open_channel(address) as channel:
                yield Silent(process, address, GrpcNode(channel, "grpc://there"))
        finally:
            process.kill()


async def put(api: NodeApi) -> None:
    async with api.objects.create("k") as writer:
        await writer.write(b"v")
        await writer.commit()


async def read(api: NodeApi) -> None:
    await api.objects.get("k")


async def stream(api: NodeApi) -> None:
    async with api.stream(InvokeRequest(function="f")) as opened:
        await opened.receive()


def upload() -> ArtifactUpload:
    return ArtifactUpload(name="f", filename="f", content=b"x")


CASES: dict[str, tuple[Callable[[NodeApi], Awaitable[Any]], str]] = {
    "InvokeFunction": (lambda api: api.invoke(InvokeRequest(function="f")), "may run it twice"),
    "StreamFunction": (stream, "a new stream runs it anew"),
    "GetTask": (lambda api: api.get_task("t"), "nothing was changed"),
    "CancelTask": (lambda api: api.cancel_task("t"), "Cancel it again"),
    "DeployArtifact": (lambda api: api.deploy(upload()), "Deploy it again"),
    "TransactObjects": (lambda api: api.objects.put("k", b""), "again with `expect`"),
    "UnpinObject": (lambda api: api.objects.unpin("k"), "look before you do it again"),
    "PutObject": (put, "again with `expect`"),
    "GetObject": (read, "nothing was changed"),
}


@pytest.mark.parametrize("method", CASES)
async def test_a_node_that_dies_in_the_middle(silent: Silent, method: str) -> None:
    call, advice = CASES[method]
    heard: list[NodeUnreachableError] = []

    async def ask(api: NodeApi) -> None:
        with pytest.raises(NodeUnreachableError) as caught:
            await call(api)
        heard.append(caught.value)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, silent.api)
            await trio.to_thread.run_sync(silent.heard)
            silent.process.kill()
        async with open_channel(silent.address) as channel:
            await ask(GrpcNode(channel, "grpc://there"))
    assert f"the node at grpc://there went away in the middle of {method} (" in heard[0].message
    assert advice in heard[0].message
    assert f"no node answers at grpc://there, and {method} was not begun" in heard[1].message


async def test_what_the_node_says_itself_is_said_so() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        asking = Asking(channel, "there")
        told = error_to_status(ObjectNotFoundError("no object 'k'"))
        assert str(asking.error(told, "ObjectService/GetObject")) == "no object 'k'"
        cancelled = RpcError(StatusCode.CANCELLED, "the server stopped the call")
        assert "stopped the call" in str(asking.error(cancelled, "ObjectService/GetObject"))


def test_advice_is_for_methods_that_there_are() -> None:
    from spear_transport_grpc._protos.spear.v1 import (
        artifact_pb2,
        function_pb2,
        node_pb2,
        object_pb2,
        task_pb2,
    )

    known = {
        method.name
        for module in (artifact_pb2, function_pb2, node_pb2, object_pb2, task_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(_AFTERWARDS) <= known


async def test_a_node_that_ends_calls_too_early(tmp_path: Path) -> None:
    """It is wrong, or of another version: what it did not say is not made up."""

    async def get(call: ServerCall) -> None:
        stat = object_pb2.ObjectStat(key="k", size=10, version=1)
        await call.send(object_pb2.GetObjectResponse(stat=stat).SerializeToString())
        await call.send(object_pb2.GetObjectResponse(chunk=b"1234").SerializeToString())

    async def nothing(call: ServerCall) -> None:
        call.accept()

    methods = {
        "/spear.v1.ObjectService/GetObject": Streaming(get),
        **{
            f"/spear.v1.{name}": Streaming(nothing)
            for name in (
                "ObjectService/PutObject",
                "ObjectService/WatchObjects",
                "NodeService/Backup",
                "FunctionService/StreamFunction",
                "ArtifactService/DeployArtifact",
            )
        },
    }
    port = Port(address=f"unix:{tmp_path}/s")
    async with open_server((port,), methods, grace_s=0), open_channel(port.address) as channel:
        node = GrpcNode(channel, "there")
        with pytest.raises(ProtocolError, match="object 'k' with 6 of its bytes outstanding"):
            await node.objects.get("k")
        with pytest.raises(ProtocolError, match="without the ObjectChanges"):
            await watch(node)
        with pytest.raises(ProtocolError, match="without the StreamFunctionResponse"):
            await stream(node)
        with pytest.raises(ProtocolError, match="without its report"):
            await node.backup("/b")
        for ask in (put(node), node.deploy(upload())):
            with pytest.raises(SpearError, match=r"without the|has ended the call"):
                await ask


async def watch(api: NodeApi) -> None:
    async with api.objects.watch() as changes:
        await changes.receive()
