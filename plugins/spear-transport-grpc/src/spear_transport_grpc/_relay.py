"""A stream between a client and a task: chunks as they are, the response at the end."""

from __future__ import annotations

from contextlib import suppress

import trio
from google.protobuf.message import DecodeError

from spear_core.api import InvokeStream
from spear_core.errors import SpearError
from spear_transport_grpc._bridge import ServerCall
from spear_transport_grpc._protos.spear.v1 import function_pb2
from spear_transport_grpc._task import response_to_message

__all__ = ["relay"]

_Response = function_pb2.StreamFunctionResponse


async def relay(call: ServerCall, task: InvokeStream) -> None:
    """Pass chunks both ways until the task has ended, and say how it did.

    Input that the task does not take any more is dropped, so that a client which sends all of it
    before it reads is not stuck.
    """
    opened = function_pb2.StreamOpened(task_id=task.task_id)
    await call.send(_Response(opened=opened).SerializeToString())
    failure: SpearError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_input, call, task)
        try:
            await _pass_output(call, task)
            response = await task.result()
        except SpearError as error:  # carried past the nursery, as it is
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    await call.send(_Response(finished=response_to_message(response)).SerializeToString())


async def _pass_output(call: ServerCall, task: InvokeStream) -> None:
    try:
        while True:
            await call.send(_Response(data=await task.receive()).SerializeToString())
    except trio.EndOfChannel:
        end = function_pb2.StreamEndOfOutput()
        await call.send(_Response(end_of_output=end).SerializeToString())


async def _pass_input(call: ServerCall, task: InvokeStream) -> None:
    taken = True
    while (data := await call.receive()) is not None:
        if not taken:
            continue
        try:
            message = function_pb2.StreamFunctionRequest.FromString(data)
            if message.HasField("data"):
                await task.send(message.data)
        except (SpearError, DecodeError):
            taken = False
    if taken:
        with suppress(SpearError):  # it has ended and takes no more anyway
            await task.send_eof()
