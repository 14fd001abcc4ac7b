"""The client's end of a streaming call."""

from __future__ import annotations

import trio

from spear_core.api import MAX_CHUNK, InvokeResponse, InvokeStream
from spear_core.errors import ChannelClosedError, ResourceExhaustedError
from spear_transport_grpc._asking import Asking
from spear_transport_grpc._bridge import ClientCall, RpcError
from spear_transport_grpc._protos.spear.v1 import function_pb2
from spear_transport_grpc._task import response_from_message

__all__ = ["STREAM", "GrpcStream"]

STREAM = "FunctionService/StreamFunction"


class GrpcStream(InvokeStream):
    """Chunks over one call of StreamFunction."""

    def __init__(self, call: ClientCall, task_id: str, asking: Asking) -> None:
        self.task_id = task_id
        self._call = call
        self._asking = asking
        self._response: InvokeResponse | None = None
        self._output_ended = False
        self._eof_sent = False
        self._closed = False

    @property
    def finished(self) -> bool:
        """The node has said how the task ended."""
        return self._response is not None

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > MAX_CHUNK:
            raise ResourceExhaustedError(
                f"a chunk has at most {MAX_CHUNK} bytes, this one {len(data)}", retryable=False
            )
        if self._eof_sent or self._closed or self.finished:
            raise ChannelClosedError("nothing more can be sent on this stream")
        message = function_pb2.StreamFunctionRequest(data=bytes(data))
        try:
            await self._call.send(message.SerializeToString())
        except RpcError as error:
            raise self._asking.error(error, STREAM) from error

    async def send_eof(self) -> None:
        self._eof_sent = True
        await self._call.send_eof()

    async def receive(self) -> bytes:
        if self._closed:
            raise ChannelClosedError("the stream is closed")
        if self._output_ended:
            await trio.lowlevel.checkpoint()
            raise trio.EndOfChannel
        message = await self._next()
        if message.HasField("data"):
            return message.data
        self._output_ended = True
        raise trio.EndOfChannel

    async def result(self) -> InvokeResponse:
        while self._response is None:
            if self._closed:
                raise ChannelClosedError("the stream is closed")
            await self._next()
        await trio.lowlevel.checkpoint()
        return self._response

    async def aclose(self) -> None:
        self._closed = True
        self._call.cancel()
        await trio.lowlevel.checkpoint()

    async def _next(self) -> function_pb2.StreamFunctionResponse:
        try:
            data = await self._call.receive()
        except RpcError as error:
            raise self._asking.error(error, STREAM) from error
        message = self._asking.read(function_pb2.StreamFunctionResponse, data)
        if message.HasField("finished"):
            self._response = response_from_message(message.finished)
            self._output_ended = True
        return message
