"""A streamed task: an ordinary one whose caller holds the ends of its instance's stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from spear_core.api import (
    MAX_CHUNK,
    ArtifactUpload,
    Capability,
    DuplexStream,
    ErrorInfo,
    ExecutionConfig,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    InstanceSpec,
    InvokeRequest,
    InvokeStream,
    NodeApi,
    SpearletConfig,
    StreamingInstance,
    TaskState,
)
from spear_core.errors import (
    ChannelClosedError,
    InstanceLostError,
    InvalidRequestError,
    ResourceExhaustedError,
    UnsupportedModeError,
)
from spear_core.rpc import FarEnd, open_local_stream

from .conftest import SteeredInstance, SteeredRuntime

STREAMS = frozenset({Capability.STREAM})
Guest = Callable[[FarEnd], Awaitable[ExecutionResponse]]
DONE = ExecutionResponse.completed(b"")


async def echo_chunks(far: FarEnd) -> ExecutionResponse:
    try:
        while True:
            await far.send(await far.receive())
    except trio.EndOfChannel:
        return DONE


class StreamingSteered(SteeredInstance, StreamingInstance):
    runtime: StreamingRuntime  # type: ignore[assignment]

    @asynccontextmanager
    async def stream(
        self, request: ExecutionRequest
    ) -> AsyncIterator[DuplexStream[ExecutionResponse]]:
        self.executions += 1
        self.runtime.requests.append(request)
        async with open_local_stream(partial(self._run, self.runtime.guest)) as stream:
            yield stream

    async def _run(self, guest: Guest, far: FarEnd) -> ExecutionResponse:
        self.runtime.running += 1
        try:
            return await guest(far)
        finally:
            self.runtime.running -= 1


class StreamingRuntime(SteeredRuntime):
    def __init__(self) -> None:
        super().__init__()
        self.guest: Guest = echo_chunks
        self.requests: list[ExecutionRequest] = []
        self.running = 0
        self.streams = True

    @asynccontextmanager
    async def open_instance(self, spec: InstanceSpec) -> AsyncIterator[Instance]:
        yield (StreamingSteered if self.streams else SteeredInstance)(spec, self)


@pytest.fixture
def runtime() -> StreamingRuntime:
    return StreamingRuntime()


@pytest.fixture
def open_api(open_steered_node: Callable[..., Any]) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_it(
        *, capabilities: frozenset[Capability] = STREAMS, idempotent: bool = False, **execution: Any
    ) -> AsyncIterator[NodeApi]:
        config = SpearletConfig(execution=ExecutionConfig(**execution))
        async with open_steered_node(config, capabilities=capabilities) as node:
            await node.api.deploy(
                ArtifactUpload(name="f", filename="f.st", content=b"code", idempotent=idempotent)
            )
            yield node.api

    return open_it


CALL = InvokeRequest(function="f")


async def read_all(stream: InvokeStream) -> list[bytes]:
    chunks = []
    try:
        while True:
            chunks.append(await stream.receive())
    except trio.EndOfChannel:
        return chunks


async def test_it_is_a_task_like_any_other(open_api: Any, runtime: StreamingRuntime) -> None:
    async with open_api() as api:
        request = InvokeRequest(function="f", content_type="text/plain", context={"a": "b"})
        async with api.stream(request) as stream:
            await stream.send(b"one")
            assert await stream.receive() == b"one"
            task = await api.get_task(stream.task_id)
            assert task.state is TaskState.RUNNING
            assert (await api.status()).running == 1
            await stream.send_eof()
            response = await stream.result()
        assert response.success
        assert response.task.state is TaskState.COMPLETED
        assert await api.get_task(stream.task_id) == response.task
        assert (await api.status()).successful_executions == 1
    (asked,) = runtime.requests
    assert asked.task_id == stream.task_id
    assert (asked.payload, asked.content_type, asked.context) == (b"", "text/plain", {"a": "b"})


async def test_a_runtime_that_does_not_stream_is_named(open_api: Any) -> None:
    async with open_api(capabilities=frozenset()) as api:
        with pytest.raises(UnsupportedModeError, match="'steered' does not"):
            async with api.stream(CALL):
                pass
        assert await api.list_tasks() == []


async def test_an_instance_that_does_not_stream_fails_the_task(
    open_api: Any, runtime: StreamingRuntime
) -> None:
    runtime.streams = False
    async with open_api() as api, api.stream(CALL) as stream:
        assert await read_all(stream) == []
        response = await stream.result()
    assert not response.success
    assert "cannot stream" in response.message


@pytest.mark.parametrize(
    ("field", "value"), [("payload", b"x"), ("input_object", "k"), ("idempotency_key", "k")]
)
async def test_what_makes_no_sense_in_a_stream(open_api: Any, field: str, value: Any) -> None:
    async with open_api() as api:
        with pytest.raises(InvalidRequestError, match=field):
            async with api.stream(InvokeRequest(function="f", **{field: value})):
                pass


async def test_chunks_wait_for_the_tasks_turn(
    open_api: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_api(max_concurrent_tasks=1) as api, api.stream(CALL) as first:
        await first.send(b"1")
        await first.receive()
        async with trio.open_nursery() as nursery, api.stream(CALL) as second:
            nursery.start_soon(second.send, b"2")
            with trio.move_on_after(10) as scope:
                await second.receive()
            assert scope.cancelled_caught
            assert (await api.get_task(second.task_id)).state is TaskState.PENDING
            await first.send_eof()
            assert (await first.result()).success
            assert await second.receive() == b"2"
            await second.send_eof()
            assert (await second.result()).success


async def test_the_end_of_the_input_waits_for_its_turn_too(
    open_api: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_api(max_concurrent_tasks=1) as api, api.stream(CALL) as first:
        await first.send(b"1")
        await first.receive()
        async with api.stream(CALL) as second:
            await second.send_eof()
            await first.send_eof()
            assert (await first.result()).success
            assert (await second.result()).success


async def test_the_deadline_ends_it(
    open_api: Any, runtime: StreamingRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_api() as api:
        started = trio.current_time()
        async with api.stream(InvokeRequest(function="f", timeout_s=30)) as stream:
            await stream.send(b"x")
            assert await read_all(stream) == [b"x"]
            response = await stream.result()
            with pytest.raises(ChannelClosedError):
                await stream.send(b"more")
        assert trio.current_time() - started == pytest.approx(30)
    assert response.task.state is TaskState.TIMEOUT
    assert runtime.running == 0


@pytest.mark.parametrize("how", ["leave", "aclose", "raise", "cancel", "cancel_task"])
async def test_every_way_out_ends_the_guest(
    open_api: Any, runtime: StreamingRuntime, how: str
) -> None:
    async def leave(api: NodeApi) -> str:
        async with api.stream(CALL) as stream:
            await stream.send(b"x")
            await stream.receive()
            assert runtime.running == 1
            if how == "aclose":
                await stream.aclose()
                assert runtime.running == 0
            elif how == "raise":
                raise ValueError(stream.task_id)
            elif how == "cancel":
                scope.cancel()
                tasks.append(stream.task_id)
                await stream.receive()
            elif how == "cancel_task":
                await api.cancel_task(stream.task_id, reason="enough")
                assert runtime.running == 0
        return stream.task_id

    tasks: list[str] = []
    async with open_api() as api:
        with trio.CancelScope() as scope:
            try:
                tasks.append(await leave(api))
            except ValueError as error:
                tasks.append(str(error))
        assert runtime.running == 0
        task = await api.get_task(tasks[0])
    assert task.state is TaskState.CANCELLED
    assert task.result is not None
    assert task.result.error is not None
    assert ("enough" if how == "cancel_task" else "its caller") in task.result.error.message


async def test_leaving_while_it_waits_for_its_turn(open_api: Any) -> None:
    async with open_api(max_concurrent_tasks=1) as api, api.stream(CALL) as first:
        await first.send(b"1")
        await first.receive()
        async with api.stream(CALL) as second:
            pass
        assert (await api.get_task(second.task_id)).state is TaskState.CANCELLED
        status = await api.status()
        assert (status.running, status.queued) == (1, 0)


async def test_output_is_there_after_the_guest_has_ended(
    open_api: Any, runtime: StreamingRuntime
) -> None:
    async def answer(far: FarEnd) -> ExecutionResponse:
        for number in range(3):
            await far.send(b"%d" % number)
        return ExecutionResponse.failed(ErrorInfo(code="unknown", message="after three"))

    runtime.guest = answer
    async with open_api() as api, api.stream(CALL) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.running == 0
        assert await read_all(stream) == [b"0", b"1", b"2"]
        response = await stream.result()
        assert (response.success, response.message) == (False, "after three")
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()


async def test_result_drops_what_nobody_has_received(
    open_api: Any, runtime: StreamingRuntime
) -> None:
    async def much(far: FarEnd) -> ExecutionResponse:
        for _ in range(100):
            await far.send(bytes(10_000))
        return DONE

    runtime.guest = much
    async with open_api() as api, api.stream(CALL) as stream:
        assert await stream.receive() == bytes(10_000)
        assert (await stream.result()).success


async def test_a_chunk_has_a_limit(open_api: Any) -> None:
    async with open_api() as api, api.stream(CALL) as stream:
        with pytest.raises(ResourceExhaustedError, match=str(MAX_CHUNK)):
            await stream.send(bytes(MAX_CHUNK + 1))
        await stream.send(b"fine")
        assert await stream.receive() == b"fine"


async def test_an_instance_lost_before_the_first_chunk_is_replaced(
    open_api: Any, runtime: StreamingRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    async def lose(far: FarEnd) -> ExecutionResponse:
        runtime.guest = echo_chunks
        raise InstanceLostError("it was lost")

    runtime.guest = lose
    async with open_api(idempotent=True, retry_attempts=2) as api, api.stream(CALL) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_eof)
            assert await read_all(stream) == []
        response = await stream.result()
    assert response.success, response.message
    assert response.task.result is not None
    assert response.task.result.attempt == 2
    assert len(runtime.requests) == 2


async def test_an_instance_lost_after_a_chunk_is_not_replaced(
    open_api: Any, runtime: StreamingRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    async def lose(far: FarEnd) -> ExecutionResponse:
        await far.send(await far.receive())
        raise InstanceLostError("it was lost")

    runtime.guest = lose
    async with open_api(idempotent=True, retry_attempts=5) as api, api.stream(CALL) as stream:
        await stream.send(b"x")
        assert await read_all(stream) == [b"x"]
        response = await stream.result()
    assert not response.success
    assert "it was lost" in response.message
    assert len(runtime.requests) == 1
