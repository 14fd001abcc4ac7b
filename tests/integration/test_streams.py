"""Streams through a real node over its local socket, for every kind of guest."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import (
    MAX_CHUNK,
    ArtifactUpload,
    InstanceState,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    NodeApi,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import (
    ArtifactNotFoundError,
    ChannelClosedError,
    InvalidRequestError,
    NodeUnreachableError,
    ResourceExhaustedError,
)

DATA = Path(__file__).parents[1] / "data"
CAT_WAT = (DATA / "cat.wat").read_text()
AGENT = (DATA / "stream_agent.py").read_text()
FILES = {
    "agent": ("agent.py", AGENT, "echo"),
    "command": ("cat.sh", "#!/bin/sh\nexec cat\n", ""),
    "wasm": ("cat.wat", CAT_WAT, ""),
}
_numbers = iter(range(10_000))

Process = Any


@pytest.fixture
async def api(node: Process) -> AsyncIterator[NodeApi]:
    async with connect(node.url) as client:
        yield client


async def deployed(api: NodeApi, kind: str, content: str = "") -> str:
    filename, code, entry = FILES[kind]
    upload = ArtifactUpload(
        name=f"stream-{kind}-{next(_numbers)}",
        filename=filename,
        content=(content or code).encode(),
        entry=entry,
    )
    return (await api.deploy(upload)).name


async def read_all(stream: InvokeStream) -> list[bytes]:
    chunks = []
    try:
        while True:
            chunks.append(await stream.receive())
    except trio.EndOfChannel:
        return chunks


def error_of(response: InvokeResponse) -> str:
    assert response.task.result is not None
    assert response.task.result.error is not None
    return response.task.result.error.message


async def log_of(api: NodeApi, task_id: str) -> str:
    return "\n".join(entry.message for entry in (await api.read_log(task_id)).entries)


@pytest.mark.parametrize("kind", FILES)
async def test_chunks_go_in_and_come_out_while_it_runs(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name)) as stream:
            for number in range(5):
                await stream.send(b"chunk %d" % number)
                assert await stream.receive() == b"chunk %d" % number
            assert (await api.get_task(stream.task_id)).state is TaskState.RUNNING
            await stream.send_eof()
            assert await read_all(stream) == []
            response = await stream.result()
            assert response == await stream.result()
    assert (response.success, response.message) == (True, "completed")
    task = response.task
    assert task.task_id == stream.task_id
    assert task.state is TaskState.COMPLETED
    assert task.result is not None
    assert task.result.output == b""
    assert await api.get_task(task.task_id) == task


@pytest.mark.parametrize("kind", FILES)
async def test_much_goes_both_ways_unchanged(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    sent = [os.urandom(size) for size in (1, 60_000, 70_000, 3 << 20, 0, 5)]

    async def send_all() -> None:
        for chunk in sent:
            await stream.send(chunk)
        await stream.send_eof()

    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name)) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                got = await read_all(stream)
            assert (await stream.result()).success
    assert b"".join(got) == b"".join(sent)
    if kind == "agent":
        assert got == sent


@pytest.mark.parametrize("kind", FILES)
async def test_leaving_early_cancels_the_task(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name)) as stream:
            await stream.send(b"x")
            await stream.receive()
        task = await api.get_task(stream.task_id)
    assert task.state is TaskState.CANCELLED
    assert task.result is not None
    assert task.result.error is not None
    assert "left the stream" in task.result.error.message
    if kind == "agent":
        assert "echo is over" in await log_of(api, task.task_id)


@pytest.mark.parametrize("kind", FILES)
async def test_an_exception_in_the_block_passes_and_cancels(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    with trio.fail_after(60), pytest.raises(ValueError, match="on purpose"):
        async with api.stream(InvokeRequest(function=name)) as stream:
            raise ValueError("on purpose")
    assert (await api.get_task(stream.task_id)).state is TaskState.CANCELLED


@pytest.mark.parametrize("kind", FILES)
async def test_the_deadline_ends_a_stream(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name, timeout_s=1.0)) as stream:
            assert await read_all(stream) == []
            response = await stream.result()
    assert not response.success
    assert response.task.state is TaskState.TIMEOUT
    assert "deadline" in error_of(response)


async def test_a_function_that_fails_in_the_middle(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=f"{name}:three_then_fail")) as stream:
            await stream.send(b"now")
            await stream.send_eof()
            assert await read_all(stream) == [b"chunk 0", b"chunk 1", b"chunk 2"]
            response = await stream.result()
    assert not response.success
    assert response.task.state is TaskState.FAILED
    assert "after three: now" in error_of(response)
    assert "raise ValueError" in await log_of(api, stream.task_id)


async def test_a_function_that_does_not_stream_gets_its_input_whole(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=f"{name}:length")) as stream:
            for _ in range(10):
                await stream.send(bytes(50_000))
            await stream.send_eof()
            assert await read_all(stream) == [b"500000"]
            assert (await stream.result()).success


async def test_text_is_decoded_across_chunks(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    text = "größer €".encode()
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=f"{name}:count")) as stream:
            for byte in text:
                await stream.send(bytes([byte]))
            await stream.send_eof()
            assert await read_all(stream) == [b'{"characters":8}']
            result = (await stream.result()).task.result
    assert result is not None
    assert result.content_type == "application/json"


async def test_a_generator_that_is_invoked_has_its_chunks_joined(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    for entry in ("echo", "plain_echo"):
        request = InvokeRequest(function=f"{name}:{entry}", payload=b"whole")
        result = (await api.invoke(request)).task.result
        assert result is not None
        assert (result.output, result.error) == (b"whole", None)


async def test_a_slow_reader_slows_the_guest(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=f"{name}:for_ever")) as stream:
            for _ in range(3):
                assert len(await stream.receive()) == 60_000
            await trio.sleep(0.5)
        sent = (await log_of(api, stream.task_id)).rpartition("sent ")[2]
    assert int(sent) <= 3 + 3 * (262_144 // 60_000) + 2


async def test_a_guest_that_reads_nothing_stops_the_sender(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    sent = 4
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=f"{name}:reads_nothing")) as stream:
            for _ in range(sent):
                await stream.send(bytes(60_000))
            with trio.move_on_after(1) as scope:
                while True:
                    await stream.send(bytes(60_000))
                    sent += 1
    assert scope.cancelled_caught
    assert sent <= 3 * (262_144 // 60_000) + 2


async def test_what_is_refused_at_the_door(api: NodeApi) -> None:
    with pytest.raises(ArtifactNotFoundError):
        async with api.stream(InvokeRequest(function="nothing-like-it")):
            pass
    name = await deployed(api, "command")
    for wrong in ({"payload": b"x"}, {"idempotency_key": "k"}):
        request = InvokeRequest(function=name, **wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
            async with api.stream(request):
                pass
    async with api.stream(InvokeRequest(function=name)) as stream:
        with pytest.raises(ResourceExhaustedError, match=str(MAX_CHUNK)):
            await stream.send(bytes(MAX_CHUNK + 1))
        await stream.send_eof()
        with pytest.raises(ChannelClosedError):
            await stream.send(b"more")
        assert (await stream.result()).success


async def test_a_command_that_closes_its_stdin_goes_on(api: NodeApi) -> None:
    name = await deployed(api, "command", "#!/bin/sh\nexec <&-\nsleep 0.2\necho done\n")
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name)) as stream:
            for _ in range(40):
                await stream.send(bytes(60_000))
            await stream.send_eof()
            assert b"".join(await read_all(stream)) == b"done\n"
            assert (await stream.result()).success


async def test_half_of_a_stream_may_end_first(api: NodeApi) -> None:
    name = await deployed(api, "command", "#!/bin/sh\necho early\nexec >&-\nwc -c >&2\n")
    with trio.fail_after(60):
        async with api.stream(InvokeRequest(function=name)) as stream:
            assert await read_all(stream) == [b"early\n"]
            for _ in range(10):
                await stream.send(bytes(10_000))
            await stream.send_eof()
            assert (await stream.result()).success
        assert (await log_of(api, stream.task_id)).strip() == "100000"


@pytest.mark.parametrize("kind", FILES)
async def test_leaving_at_any_moment(api: NodeApi, kind: str) -> None:
    """Early, in the middle of a chunk, at its end: the task is final, and the next call is well."""
    name = await deployed(api, kind)
    chance = random.Random(7)
    left: list[str] = []

    async def leave_sometime(delay: float) -> None:
        with trio.move_on_after(delay):
            async with api.stream(InvokeRequest(function=name)) as stream:
                left.append(stream.task_id)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_all, stream)
                    for _ in range(chance.randrange(30)):
                        await stream.send(bytes(chance.choice([1, 1000, 200_000])))
                    await stream.send_eof()
                await stream.result()

    with trio.fail_after(240):
        longest = 0.3
        while len(left) <= 10:  # on a machine so slow that most leave before they are let in
            for _ in range(10):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(leave_sometime, chance.random() ** 2 * longest)
            longest *= 2
        for task_id in left:
            assert (await api.get_task(task_id)).state.is_final
        async with api.stream(InvokeRequest(function=name)) as stream:
            await stream.send(b"well")
            assert await stream.receive() == b"well"
        own = [i for i in await api.list_instances() if i.artifact.startswith(f"{name}@")]
        assert [i for i in own if i.state is InstanceState.RUNNING] == []


async def test_a_node_that_is_killed_ends_its_streams(
    start_node: Callable[..., Process],
) -> None:
    node = start_node()
    with trio.fail_after(60):
        async with connect(node.url) as api:
            name = await deployed(api, "command")
            with pytest.raises(NodeUnreachableError):
                await kill_in_the_middle(api, name, node)


async def kill_in_the_middle(api: NodeApi, name: str, node: Process) -> None:
    async with api.stream(InvokeRequest(function=name)) as stream:
        await stream.send(b"x")
        await stream.receive()
        node.process.kill()
        await stream.receive()
