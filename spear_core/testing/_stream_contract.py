"""What a runtime that streams promises; a part of the contract suite for runtimes."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio

from spear_core.api import (
    Capability,
    DuplexStream,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    RuntimeSpec,
    StreamingInstance,
)
from spear_core.errors import ChannelClosedError, SpearError
from spear_core.testing._promise import promise
from spear_core.testing._resources import Resources, least_busy_share

if TYPE_CHECKING:
    from spear_core.testing._runtime_samples import OpenedRuntime, Sample

__all__ = ["StreamingPromises"]

_Stream = DuplexStream[ExecutionResponse]
_PIECE = 32 << 10


def _request() -> ExecutionRequest:
    name = os.urandom(4).hex()
    return ExecutionRequest(execution_id=f"e-{name}", task_id=f"t-{name}")


async def _read_all(stream: _Stream) -> bytes:
    parts = []
    try:
        while True:
            parts.append(await stream.receive())
    except trio.EndOfChannel:
        return b"".join(parts)


async def _read(stream: _Stream, count: int) -> bytes:
    """That many bytes, in however many chunks they come."""
    data = b""
    while len(data) < count:
        data += await stream.receive()
    return data


def _own_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class StreamingPromises:
    """The tests for ``Capability.STREAM``; skipped without it."""

    spec: ClassVar[RuntimeSpec[Any]]
    settling: float
    patience: float

    streams: ClassVar[Sample | None] = None
    """Gives each chunk of its input back as it comes, until its input ends. Needed with
    ``Capability.STREAM``."""
    floods: ClassVar[Sample | None] = None
    """Reads nothing and writes for ever. Needed with ``Capability.STREAM``."""
    max_streamed: int = 4 << 20
    """Bytes that may be on their way in one direction while nobody reads."""

    if TYPE_CHECKING:
        echo: ClassVar[Sample]
        fails: ClassVar[Sample]
        loops: ClassVar[Sample | None]

        def open_runtime(self, tmp_path: Path) -> AbstractAsyncContextManager[OpenedRuntime]:
            """As the suite does."""
            raise NotImplementedError

        def _sample(self, name: str) -> Sample:
            raise NotImplementedError

    @asynccontextmanager
    async def _streaming(
        self, opened: OpenedRuntime, name: str, *, reuse: bool = False
    ) -> AsyncGenerator[StreamingInstance]:
        artifact = opened.artifact(self._sample(name), reuse=reuse)
        async with opened.instance(artifact) as instance:
            assert isinstance(instance, StreamingInstance)
            yield instance

    def _require_streams(self) -> None:
        if Capability.STREAM not in self.spec.capabilities:
            pytest.skip("STREAM is not declared")

    @promise
    async def test_instances_stream_if_declared(self, tmp_path: Path) -> None:
        """``Capability.STREAM`` is declared exactly when instances are ``StreamingInstance``."""
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(opened.artifact(self.echo)) as instance,
        ):
            declared = Capability.STREAM in self.spec.capabilities
            assert isinstance(instance, StreamingInstance) is declared

    @promise
    async def test_stream_gives_output_before_the_input_ends(self, tmp_path: Path) -> None:
        """``stream``: what the guest writes can be received while its input goes on; after
        ``send_eof`` comes the rest, then ``EndOfChannel``, and the result is without a payload."""
        self._require_streams()
        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "streams") as instance,
        ):
            async with instance.stream(_request()) as stream:
                for chunk in (b"one", b"two", bytes(range(256))):
                    await stream.send(chunk)
                    assert await _read(stream, len(chunk)) == chunk
                await stream.send(b"last")
                await stream.send_eof()
                await stream.send_eof()
                assert await _read_all(stream) == b"last"
                with pytest.raises(trio.EndOfChannel):
                    await stream.receive()
                response = await stream.result()
                assert await stream.result() == response
            assert response.error is None, response.error
            assert response.status is ExecutionStatus.COMPLETED
            assert response.payload == b""
            assert instance.statistics().executions == 1

    @promise
    async def test_stream_carries_much_unchanged(self, tmp_path: Path) -> None:
        """``stream``: many mebibytes go through unchanged, in chunks of any size."""
        self._require_streams()
        chunks = [os.urandom(size) for size in (1, _PIECE, 70_000, 3 << 20, 0, 17, 1 << 20)]

        async def send_all(stream: _Stream) -> None:
            for chunk in chunks:
                await stream.send(chunk)
            await stream.send_eof()

        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "streams") as instance,
            instance.stream(_request()) as stream,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, stream)
                received = await _read_all(stream)
            unchanged = received == b"".join(chunks)  # not in the assertion: pytest would explain
            assert unchanged, f"{len(received)} bytes came back, and not those that were sent"
            assert (await stream.result()).error is None

    @promise
    async def test_slow_stream_reader_stops_the_sender(self, tmp_path: Path) -> None:
        """``stream``: who sends waits while nobody receives, and goes on, with nothing lost, once
        somebody does."""
        self._require_streams()
        sent = 0

        async def send(stream: _Stream) -> None:
            nonlocal sent
            while sent < 4 * self.max_streamed:
                await stream.send(bytes(_PIECE))
                sent += _PIECE
            await stream.send_eof()

        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "streams") as instance,
            instance.stream(_request()) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(send, stream)
            before = -1
            while sent > before:
                before = sent
                await trio.sleep(0.3)
            assert sent <= 2 * self.max_streamed, "nothing stops who sends to a slow reader"
            assert len(await _read_all(stream)) == 4 * self.max_streamed

    @promise
    async def test_slow_stream_reader_stops_the_guest(self, tmp_path: Path) -> None:
        """``stream``: a guest that writes for ever waits while nobody receives; memory stays flat,
        and it goes on when somebody does."""
        self._require_streams()
        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "floods") as instance,
            instance.stream(_request()) as stream,
        ):
            assert await stream.receive()
            before, of_guest = _own_memory(), instance.statistics().memory_bytes or 0
            await trio.sleep(0.5)
            busy = await least_busy_share(seconds=self.settling, most=0.7, samples=20)
            grown = _own_memory() - before
            grown += (instance.statistics().memory_bytes or 0) - of_guest
            assert grown < 16 * self.max_streamed, f"{grown} bytes more while nobody received"
            assert busy < 0.7, "it goes on while nobody receives"
            await _read(stream, 4 * self.max_streamed)

    @promise
    async def test_leaving_a_stream_stops_the_guest(self, tmp_path: Path) -> None:
        """``stream``: leaving the block before the result stops a guest that never reads, writes
        or looks up, and one that writes for ever."""
        self._require_streams()
        async with self.open_runtime(tmp_path) as opened:
            for name in ("loops", "floods"):
                async with self._streaming(opened, name) as instance:
                    with trio.move_on_after(0.3):
                        async with instance.stream(_request()) as stream:
                            await stream.send(b"unread")
                            await trio.sleep_forever()
                    busy = await least_busy_share(seconds=self.settling)
                assert busy < 0.5, f"{name} ran in {busy:.0%} of the looks after its stream"

    @promise
    async def test_end_of_a_stream_wakes_who_waits(self, tmp_path: Path) -> None:
        """``stream``: when the block ends, ``send`` and ``receive`` that wait in other tasks raise
        instead of waiting for ever."""
        self._require_streams()
        raised: list[str] = []

        async def send(stream: _Stream) -> None:
            try:
                while True:
                    await stream.send(bytes(_PIECE))
            except SpearError:
                raised.append("send")

        async def receive(stream: _Stream) -> None:
            with pytest.raises((SpearError, trio.EndOfChannel)):
                await stream.receive()
            raised.append("receive")

        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "loops") as instance,
            trio.open_nursery() as nursery,
        ):
            async with instance.stream(_request()) as stream:
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream)
                await trio.sleep(0.3)
            with trio.fail_after(self.settling):
                while len(raised) < 2:  # noqa: ASYNC110 - no event tells when the tasks are done
                    await trio.sleep(0.01)
            assert sorted(raised) == ["receive", "send"]

    @promise
    async def test_exception_in_a_stream_passes(self, tmp_path: Path) -> None:
        """``stream``: an exception of the block comes out as it is, and nothing is left."""
        self._require_streams()
        async with self.open_runtime(tmp_path) as opened:
            async with (
                self._streaming(opened, "streams") as instance,
                instance.stream(_request()) as stream,
            ):
                await stream.send_eof()
                await stream.result()
            before = Resources.now()
            async with self._streaming(opened, "streams") as instance:
                with pytest.raises(ValueError, match="on purpose"):
                    async with instance.stream(_request()) as stream:
                        raise ValueError("on purpose")
            assert await Resources.settled(before, seconds=self.settling) == []

    @promise
    async def test_failure_in_a_stream_is_a_response(self, tmp_path: Path) -> None:
        """``stream``: a failure of the guest's own code ends its output, and the result says why;
        nothing more can be sent."""
        self._require_streams()
        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "fails") as instance,
            instance.stream(_request()) as stream,
        ):
            try:
                await stream.send(b"input\n")
                await stream.send_eof()
            except ChannelClosedError:
                pass  # it has failed already
            await _read_all(stream)
            response = await stream.result()
            assert response.status is ExecutionStatus.FAILED
            assert response.error is not None
            assert response.error.message
            with pytest.raises(ChannelClosedError):
                await stream.send(b"more")

    @promise
    async def test_guest_that_does_not_stream_gets_its_input_whole(self, tmp_path: Path) -> None:
        """``stream``: the sample ``echo``, whether it streams or not, gives back its input."""
        self._require_streams()
        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "echo") as instance,
            instance.stream(_request()) as stream,
        ):
            for part in (b"one ", b"two ", b"three"):
                await stream.send(part)
            await stream.send_eof()
            assert await _read_all(stream) == b"one two three"
            assert (await stream.result()).error is None

    @promise
    async def test_streams_and_executions_take_turns(self, tmp_path: Path) -> None:
        """``Capability.REUSE``: an instance streams and executes, one after the other."""
        self._require_streams()
        if Capability.REUSE not in self.spec.capabilities:
            pytest.skip("REUSE is not declared")
        async with (
            self.open_runtime(tmp_path) as opened,
            self._streaming(opened, "echo", reuse=True) as instance,
        ):
            for number in range(4):
                data = b"turn %d" % number
                request = ExecutionRequest(execution_id=f"e{number}", task_id="t", payload=data)
                if number % 2:
                    assert (await instance.execute(request)).payload == data
                    continue
                async with instance.stream(_request()) as stream:
                    await stream.send(data)
                    await stream.send_eof()
                    assert await _read_all(stream) == data
                    assert (await stream.result()).error is None
            assert instance.statistics().executions == 4
