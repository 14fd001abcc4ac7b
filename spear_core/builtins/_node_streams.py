"""Streams between a client and its node: chunks as they are, the response at the end."""

from __future__ import annotations

from collections.abc import Callable

import trio

from spear_core.api import MAX_CHUNK, InvokeResponse, InvokeStream
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    NodeUnreachableError,
    ResourceExhaustedError,
    SpearError,
)
from spear_core.rpc import Reply, Stream

__all__ = ["ClientStream", "gone", "relay"]


async def relay(client: Stream, task: InvokeStream) -> InvokeResponse:
    """Pass chunks both ways until the task has ended; its response.

    Input that the task does not take any more is dropped, so that a client which sends all of it
    before it reads is not stuck.
    """
    failure: SpearError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_input, client, task)
        try:
            while True:
                await client.send(await task.receive())
        except trio.EndOfChannel:
            failure = await _end_output(client)
        except SpearError as error:  # carried past the nursery, as it is
            failure = error
        try:
            if failure is None:
                response = await task.result()
        except SpearError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return response


async def _end_output(client: Stream) -> SpearError | None:
    try:
        await client.send_eof()
    except SpearError as error:
        return error
    return None


async def _pass_input(client: Stream, task: InvokeStream) -> None:
    taken = True
    try:
        while True:
            data = await client.receive()
            if taken:
                try:
                    await task.send(data)
                except SpearError:
                    taken = False
    except trio.EndOfChannel:
        if taken:
            await task.send_eof()
    except SpearError:
        pass  # the client is gone; its session cancels us


class ClientStream(InvokeStream):
    """The client's end.

    :param read: makes the response out of the node's answer.
    """

    def __init__(
        self, task_id: str, stream: Stream, read: Callable[[Reply], InvokeResponse]
    ) -> None:
        self.task_id = task_id
        self._stream = stream
        self._read = read
        self.finished = False
        """The node has said how the task ended."""

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > MAX_CHUNK:
            raise ResourceExhaustedError(
                f"a chunk has at most {MAX_CHUNK} bytes, this one {len(data)}", retryable=False
            )
        try:
            await self._stream.send(data)
        except ChannelBrokenError as error:
            raise gone(error) from error

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except ChannelClosedError:
            pass  # it has ended, and takes no more anyway
        except ChannelBrokenError as error:
            raise gone(error) from error

    async def receive(self) -> bytes:
        try:
            return await self._stream.receive()
        except ChannelBrokenError as error:
            raise gone(error) from error

    async def result(self) -> InvokeResponse:
        try:
            while True:
                await self.receive()
        except trio.EndOfChannel:
            pass
        try:
            reply = await self._stream.result()
            self.finished = True
            return self._read(reply)
        except ChannelBrokenError as error:
            raise gone(error) from error

    async def aclose(self) -> None:
        await self._stream.aclose()


def gone(error: ChannelBrokenError | ChannelClosedError) -> NodeUnreachableError:
    """What a client says when its session broke."""
    return NodeUnreachableError(f"the node went away in the middle of a stream: {error}")
