"""An agent's streamed execution, as the node sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from spear_core.api import DuplexStream, ExecutionResponse
from spear_core.errors import ChannelClosedError, SpearError
from spear_core.rpc import Stream
from spear_core.rpc.codec import execution_response_from_head


class AgentStream(DuplexStream[ExecutionResponse]):
    """A stream of the session with the worker; its answer is the response.

    :param complete: makes the response out of the worker's. :param explain: makes one, or raises,
        when there is none: the worker has died or refused.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        complete: Callable[[ExecutionResponse], ExecutionResponse],
        explain: Callable[[SpearError], Awaitable[ExecutionResponse]],
    ) -> None:
        self._stream = stream
        self._complete = complete
        self._explain = explain
        self._response: ExecutionResponse | None = None
        self.ended = False
        """The worker has nothing more to do with it."""

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive(self) -> bytes:
        return await self._stream.receive()

    async def result(self) -> ExecutionResponse:
        if self._response is not None:
            await trio.lowlevel.checkpoint()
            return self._response
        try:
            while True:
                await self._stream.receive()
        except trio.EndOfChannel:
            pass
        except SpearError:
            pass  # the answer says it too, and more
        try:
            reply = await self._stream.result()
        except ChannelClosedError:
            raise  # its block has ended, or it was closed
        except SpearError as error:
            self.ended = True
            self._response = await self._explain(error)
        else:
            self.ended = True
            told = execution_response_from_head(reply.head, reply.payload)
            self._response = self._complete(told)
        return self._response

    async def aclose(self) -> None:
        await self._stream.aclose()
