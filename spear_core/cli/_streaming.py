"""A call whose input and output go piece by piece: stdin in, stdout out, both as they come."""

from __future__ import annotations

import trio

from spear_core.api import InvokeRequest, InvokeStream, NodeApi, TaskInfo
from spear_core.cli._input import Input, Pieces
from spear_core.cli._tasks import copy_log, log_to_stderr
from spear_core.cli._terminal import write_through
from spear_core.errors import ChannelClosedError

__all__ = ["stream_through"]


async def stream_through(
    api: NodeApi, request: InvokeRequest, source: Input, *, show_log: bool = False
) -> TaskInfo:
    """Call the function until it has ended; its task.

    :param show_log: copy its log to stderr meanwhile.

    Who does not read our output stops the function, which stops our reading of the input.
    """
    failure: Exception | None = None
    with source.pieces() as pieces:
        async with api.stream(request) as stream:
            sender = _Sender(stream, pieces)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.run, nursery.cancel_scope)
                try:
                    if show_log:
                        nursery.start_soon(_copy_log, api, stream.task_id)
                    await _copy_output(stream)
                    task = (await stream.result()).task
                    sender.scope.cancel()
                except Exception as error:  # barrier: carried past the nursery, as it is
                    failure = error
                    nursery.cancel_scope.cancel()
    failure = sender.failure or failure
    if failure is not None:
        raise failure
    return task


async def _copy_log(api: NodeApi, task_id: str) -> None:
    await copy_log(api, task_id, log_to_stderr, follow=True)


async def _copy_output(stream: InvokeStream) -> None:
    try:
        while True:
            data = await stream.receive()
            await trio.to_thread.run_sync(write_through, data, abandon_on_cancel=True)
    except trio.EndOfChannel:
        return


class _Sender:
    """Sends the input; its failure ends the whole call."""

    def __init__(self, stream: InvokeStream, pieces: Pieces) -> None:
        self._stream = stream
        self._pieces = pieces
        self.failure: Exception | None = None
        self.scope = trio.CancelScope()

    async def run(self, call: trio.CancelScope) -> None:
        """Until the end of the input, or of what the function takes of it."""
        try:
            with self.scope:
                while data := await self._pieces.next():
                    await self._stream.send(data)
                await self._stream.send_eof()
        except ChannelClosedError:
            pass  # it takes no more, and its result says why
        except Exception as error:  # barrier: the input cannot be read, the node is gone
            self.failure = error
            call.cancel()
