"""The caller's end of a streamed task.

A streamed task is an ordinary one: it waits for its turn, has a deadline, can be cancelled. Only
its work is another: instead of one call of the instance it lasts as long as the instance's stream,
which the caller's own sends and receives go to directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from spear_core.api import (
    MAX_CHUNK,
    DuplexStream,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    InvokeResponse,
    InvokeStream,
    StreamingInstance,
)
from spear_core.errors import (
    ChannelClosedError,
    ResourceExhaustedError,
    SpearError,
    UnsupportedModeError,
)
from spear_core.node._task import Task

__all__ = ["TaskStream", "open_task_stream"]


class TaskStream(InvokeStream):
    """Chunks to and from whatever instance the task has; made by :func:`open_task_stream`.

    :param answer: the response for a task that has ended.
    """

    def __init__(self, task: Task, answer: Callable[[Task], InvokeResponse]) -> None:
        self.task_id = task.id
        self._task = task
        self._answer = answer
        self._inner: DuplexStream[ExecutionResponse] | None = None
        self._read_out = trio.Event()
        """Nothing more is received from the present instance."""
        self._changed = trio.lowlevel.ParkingLot()
        self._touched = False
        """A chunk may have reached the guest or the caller: what happened cannot happen again."""
        self._input_ended = False
        self._output_ended = False

    # The task's side.

    async def work(self, instance: Instance, request: ExecutionRequest) -> ExecutionResponse:
        """One execution: lend the instance's stream to the caller until it is read to its end.

        **Raises** what the stream raises; not retryable any more once a chunk has passed.
        """
        if not isinstance(instance, StreamingInstance):
            raise UnsupportedModeError(f"instance {instance.id} cannot stream")
        try:
            async with instance.stream(request) as inner:
                self._read_out = trio.Event()
                self._inner = inner
                self._changed.unpark_all()
                try:
                    if self._input_ended:
                        await _end_input(inner)
                    await self._read_out.wait()
                    return await inner.result()
                finally:
                    self._inner = None
                    self._changed.unpark_all()
        except SpearError as error:
            if self._touched:
                error.retryable = False
            raise

    async def run(self, run: Callable[[Task], Awaitable[None]]) -> None:
        """Run the task to its end, then wake whoever waits for more."""
        try:
            await run(self._task)
        finally:
            self._changed.unpark_all()

    # The caller's side.

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > MAX_CHUNK:
            raise ResourceExhaustedError(
                f"a chunk has at most {MAX_CHUNK} bytes, this one {len(data)}", retryable=False
            )
        if self._input_ended:
            raise ChannelClosedError("the input of this stream has ended")
        inner = await self._attached()
        if inner is None:
            raise ChannelClosedError(f"{self._task.function} has ended and takes no more input")
        self._touched = True
        try:
            await inner.send(data)
        except SpearError as error:
            raise ChannelClosedError(
                f"{self._task.function} takes no more input: {error}"
            ) from error

    async def send_eof(self) -> None:
        self._input_ended = True
        if self._inner is not None:
            await _end_input(self._inner)
        else:
            await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        while not self._output_ended and (inner := await self._attached()) is not None:
            try:
                data = await inner.receive()
            except trio.EndOfChannel:
                self._output_ended = self._touched = True
                self._read_out.set()
            except SpearError:
                # The work hears of it too; it may be retried, and then there is another stream.
                self._read_out.set()
                while self._inner is inner:
                    await self._changed.park()
            else:
                self._touched = True
                return data
        await trio.lowlevel.checkpoint()
        raise trio.EndOfChannel

    async def result(self) -> InvokeResponse:
        try:
            while True:
                await self.receive()
        except trio.EndOfChannel:
            await self._task.wait_final()
        if self._task.record is not None:
            await self._task.record.settled()
        return self._answer(self._task)

    async def aclose(self) -> None:
        self.leave()
        await self._task.wait_final()

    def leave(self) -> None:
        """Cancel the task, if it has not ended."""
        self._task.cancel("its caller left the stream")

    async def _attached(self) -> DuplexStream[ExecutionResponse] | None:
        """The instance's stream, once there is one; ``None`` when the task is over."""
        while self._inner is None and not self._task.state.is_final:
            await self._changed.park()
        return self._inner


async def _end_input(inner: DuplexStream[ExecutionResponse]) -> None:
    with suppress(SpearError):  # it takes no more anyway, and the result says why
        await inner.send_eof()


@asynccontextmanager
async def open_task_stream(
    stream: TaskStream, run: Callable[[Task], Awaitable[None]]
) -> AsyncIterator[InvokeStream]:
    """Run a streamed task while the block lasts; it has ended when the block is over.

    :param run: the executor's, for an admitted task.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.run, run)
        try:
            yield stream
        except Exception as exc:  # barrier: carried past the nursery, as it is
            failure = exc
        finally:
            stream.leave()
    if failure is not None:
        raise failure
