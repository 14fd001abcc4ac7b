"""Every method of NodeApi, from the client through gRPC to a node and back."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio

from spear_core.api import (
    ArtifactSettings,
    ArtifactState,
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    Limits,
    NodeApi,
    Priority,
    TaskState,
)
from spear_core.errors import (
    ChannelClosedError,
    InvalidRequestError,
    NodeUnreachableError,
    ResourceExhaustedError,
    SpearError,
    TaskNotFoundError,
)
from spear_transport_grpc import plugin
from spear_transport_grpc._bridge import RpcError, StatusCode, open_channel
from spear_transport_grpc._client import GrpcNode
from spear_transport_grpc._protos.spear.v1 import artifact_pb2, function_pb2, log_pb2

LISTINGS = (
    "list_artifacts",
    "list_instances",
    "list_plugins",
    "status",
    "metrics",
    "reload_config",
)


@pytest.mark.parametrize("method", LISTINGS)
async def test_listings_arrive_as_they_are(door: Any, method: str, table_node: Any) -> None:
    assert await getattr(door.api, method)() == await getattr(table_node(), method)()
    assert door.node.asked == [(method, None)]


async def test_invoke_carries_the_whole_request(door: Any) -> None:
    request = InvokeRequest(
        function="f@2:x",
        payload=bytes(range(256)) * 5000,
        content_type="text/plain",
        mode=ExecutionMode.ASYNC,
        timeout_s=1.25,
        trace="00-aa-bb-01",
        priority=Priority.URGENT,
        idempotency_key="k",
        caller="me",
        context={"a": "b"},
        parent_task_id="t-0",
        detached=True,
    )
    response = await door.api.invoke(request)
    assert door.node.asked == [("invoke", request)]
    assert response.success
    assert response.task.result.output == request.payload


async def test_a_failed_task_is_an_answer(door: Any) -> None:
    response = await door.api.invoke(InvokeRequest(function="fail"))
    assert not response.success
    assert response.task.state is TaskState.FAILED
    assert response.task.result.error.message == "so it is"


async def test_errors_come_back_as_they_were(door: Any) -> None:
    with pytest.raises(ResourceExhaustedError, match="the queue is full") as caught:
        await door.api.invoke(InvokeRequest(function="full"))
    assert (caught.value.retry_after, caught.value.retryable) == (1.5, True)
    with pytest.raises(TaskNotFoundError, match="no such task"):
        await door.api.get_task("nothing")


async def test_a_bug_of_the_node_is_an_internal_error(door: Any) -> None:
    with pytest.raises(SpearError, match="LookupError") as caught:
        await door.api.invoke(InvokeRequest(function="bug"))
    assert caught.value.code == "internal"


async def test_tasks(door: Any, table_node: Any) -> None:
    node = table_node()
    assert await door.api.get_task("t", wait=True) == await node.get_task("t", wait=True)
    assert await door.api.get_task("t") == await node.get_task("t")
    assert await door.api.list_tasks(limit=7) == await node.list_tasks(limit=7)
    assert await door.api.cancel_task("t", reason="why") == await node.cancel_task("t")
    assert door.node.asked == [
        ("get_task", ("t", True)),
        ("get_task", ("t", False)),
        ("list_tasks", 7),
        ("cancel_task", ("t", "why")),
    ]


async def test_artifacts(door: Any, table_node: Any) -> None:
    node = table_node()
    assert await door.api.get_artifact("f@2") == await node.get_artifact("f@2")
    assert await door.api.set_latest("f", 1) == await node.set_latest("f", 1)
    disabled = await door.api.set_artifact_state("f", 1, ArtifactState.DISABLED)
    assert disabled.state is ArtifactState.DISABLED
    assert await door.api.delete_artifact("f") == 2
    assert await door.api.delete_artifact("f", version=1) == 1
    assert door.node.asked[-2:] == [
        ("delete_artifact", ("f", None)),
        ("delete_artifact", ("f", 1)),
    ]


async def test_a_backup_tells_what_it_does(door: Any, table_node: Any) -> None:
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        door.node.release.set()

    with trio.fail_after(30):
        report = await door.api.backup("/b", logs=True, tell=tell)
    assert report == await table_node().backup("/b")
    assert told == ["copying the code"]
    assert door.node.asked == [("backup", ("/b", True))]
    door.node.error = InvalidRequestError("/b: it exists")
    with pytest.raises(InvalidRequestError, match="it exists"):
        await door.api.backup("/b")
    with pytest.raises(InvalidRequestError, match="directory"):
        await door.api.backup("")


@pytest.mark.parametrize("size", [0, 3, (5 << 20) + 1])
async def test_deploy_carries_code_and_settings(door: Any, size: int) -> None:
    upload = ArtifactUpload(
        name="f",
        filename="f.py",
        content=b"x" * size,
        bundle=True,
        runtime="process",
        reuse=False,
        executable=True,
        env={"A": "b"},
        limits=Limits(memory_bytes=1 << 20),
        weight=0.5,
    )
    await door.api.deploy(upload)
    assert door.node.asked == [("deploy", upload)]


async def test_values_of_wrong_types_are_refused_here(door: Any) -> None:
    wrong: list[dict[str, Any]] = [{"env": {"A": 1}}, {"limits": {"cpu_seconds": 1}}, {"entry": 5}]
    for settings in wrong:
        with pytest.raises(InvalidRequestError, match="wrong type"):
            await door.api.deploy(ArtifactUpload(name="f", filename="f", content=b"", **settings))
    for request in ({"function": b"f\xff"}, {"function": "f", "mode": "later"}):
        with pytest.raises(InvalidRequestError, match="wrong type"):
            await door.api.invoke(InvokeRequest(**request))
    assert door.node.asked == []


async def test_a_deployment_that_is_cut_short_is_refused(door: Any) -> None:
    header = artifact_pb2.DeployArtifactHeader(name="f", filename="f", size=10)
    with pytest.raises(RpcError, match="10 bytes of code were announced, 3 came") as caught:
        await _deploy(door, header, b"abc")
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    with pytest.raises(RpcError, match="at most"):
        await _deploy(door, artifact_pb2.DeployArtifactHeader(name="f", size=1 << 50))
    assert door.node.asked == []


async def _deploy(door: Any, header: Any, chunk: bytes = b"") -> None:
    request = artifact_pb2.DeployArtifactRequest
    async with (
        open_channel(f"unix:{door.url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call("/spear.v1.ArtifactService/DeployArtifact") as call,
    ):
        await call.send(request(header=header).SerializeToString())
        await call.send(request(chunk=chunk).SerializeToString())
        await call.send_eof()
        await call.receive()


async def test_a_settings_value_that_cannot_be_is_refused(door: Any) -> None:
    settings = artifact_pb2.ArtifactSettings(concurrency=-1)
    header = artifact_pb2.DeployArtifactHeader(name="f", size=0, settings=settings)
    with pytest.raises(RpcError, match="concurrency"):
        await _deploy(door, header)


async def test_logs(door: Any, table_node: Any) -> None:
    chunk = await door.api.read_log("t", cursor=4, wait=True)
    assert chunk == await table_node().read_log("t", cursor=4)
    assert door.node.asked == [("read_log", ("t", 4, True))]


async def test_a_log_is_followed_to_its_end(door: Any) -> None:
    request = log_pb2.FollowLogRequest(task_id="t")
    async with (
        open_channel(f"unix:{door.url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call("/spear.v1.LogService/FollowLog") as call,
    ):
        await call.send(request.SerializeToString())
        await call.send_eof()
        got = []
        while (data := await call.receive()) is not None:
            got.append(log_pb2.LogChunk.FromString(data).cursor)
    assert got == [1, 2, 3]


async def test_a_message_that_is_none_is_refused(door: Any) -> None:
    async with open_channel(f"unix:{door.url.removeprefix('grpc+unix://')}") as channel:
        with pytest.raises(RpcError, match="no InvokeFunctionRequest") as caught:
            await channel.call("/spear.v1.FunctionService/InvokeFunction", b"\xff\xff\xff")
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


# ---- cancelling, deadlines


async def test_a_caller_that_leaves_cancels_its_call(door: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.api.invoke, InvokeRequest(function="sleep"))
        await door.node.sleeping.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(60):
        await door.node.woken.wait()
    assert door.node.cancelled == 1


async def test_the_calls_deadline_becomes_the_tasks(door: Any) -> None:
    with trio.fail_after(60):
        await door.api.invoke(InvokeRequest(function="f"))
        await door.api.invoke(InvokeRequest(function="f", timeout_s=3.0))
        await door.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
    await door.api.invoke(InvokeRequest(function="f"))
    found = [request.timeout_s for _, request in door.node.asked]
    assert 30 < found[0] < 60
    assert found[1:] == [3.0, None, None]


async def test_the_traceparent_of_the_call_is_the_tasks(door: Any) -> None:
    request = function_pb2.InvokeFunctionRequest(function="f").SerializeToString()
    async with open_channel(f"unix:{door.url.removeprefix('grpc+unix://')}") as channel:
        await channel.call(
            "/spear.v1.FunctionService/InvokeFunction",
            request,
            metadata=(("traceparent", "00-11-22-01"),),
        )
    assert door.node.asked[0][1].trace == "00-11-22-01"


# ---- streams


async def test_a_stream_both_ways(door: Any) -> None:
    async with door.api.stream(InvokeRequest(function="f")) as stream:
        assert stream.task_id == "t-1"
        for chunk in (b"a", b"", b"b" * 100_000):
            await stream.send(chunk)
            assert await stream.receive() == chunk.upper()
        await stream.send_eof()
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()
        assert (await stream.result()).message == "ended"
        assert (await stream.result()).message == "ended"
        with pytest.raises(ChannelClosedError):
            await stream.send(b"more")
    assert door.node.cancelled == 0


async def test_leaving_a_stream_cancels_its_task(door: Any) -> None:
    async with door.api.stream(InvokeRequest(function="f")) as stream:
        await stream.send(b"x")
    assert ("cancel_task", ("t-1", "the caller left the stream")) in door.node.asked


async def test_a_stream_that_cannot_open(door: Any) -> None:
    door.node.error = ResourceExhaustedError("no room", retry_after=1.0)
    with pytest.raises(ResourceExhaustedError, match="no room"):
        async with door.api.stream(InvokeRequest(function="f")):
            pytest.fail("it opened")


async def test_a_stream_begins_with_what_to_run(door: Any) -> None:
    async with (
        open_channel(f"unix:{door.url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call("/spear.v1.FunctionService/StreamFunction") as call,
    ):
        message = function_pb2.StreamFunctionRequest(data=b"too soon")
        await call.send(message.SerializeToString())
        with pytest.raises(RpcError, match="open: the first message") as caught:
            await call.receive()
        assert caught.value.code is StatusCode.INVALID_ARGUMENT


# ---- nobody there


@pytest.mark.parametrize(
    "url", ["grpc+unix:///nowhere/at/all", "grpc://127.0.0.1:1", "grpc+unix:///tmp/no-such-socket"]
)
async def test_nobody_there(url: str) -> None:
    with pytest.raises(NodeUnreachableError):
        async with plugin.connect(url):
            pytest.fail("somebody is there")


@pytest.mark.parametrize(
    "url", ["grpc://", "grpc://host", "grpc+unix://relative", "grpc://h:1?ca=x", "grpcs://h:1?x=y"]
)
async def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        async with plugin.connect(url):
            pytest.fail("somebody is there")


def test_the_client_has_every_method_of_a_node() -> None:
    methods = {name for name, found in vars(NodeApi).items() if inspect.isfunction(found)}
    assert methods <= set(vars(GrpcNode))


def test_settings_are_part_of_an_upload() -> None:
    assert issubclass(ArtifactUpload, ArtifactSettings)
