"""A backup on the wire: what is being done goes as messages of a stream, the report as its end."""

from __future__ import annotations

from collections.abc import Callable

import trio

from spear_core.api import BackupReport, NodeApi
from spear_core.builtins._node_streams import gone
from spear_core.errors import ChannelBrokenError, InvalidRequestError, SpearError
from spear_core.rpc import Reply, Stream
from spear_core.rpc.codec import decode_head, encode_head

__all__ = ["hear_backup", "serve_backup"]

_OFTEN_S = 0.2


async def serve_backup(
    node: NodeApi, stream: Stream, directory: str = "", *, logs: bool = False
) -> Reply:
    """Have ``node`` make a backup, and tell the client on the other side of the stream about it.

    :raises SpearError: what :meth:`NodeApi.backup` raises.
    """
    if not directory:
        raise InvalidRequestError("backup needs the argument directory")
    news = _News()
    failure: SpearError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(news.pass_on, stream)
        try:
            report = await node.backup(directory, logs=logs, tell=news.tell)
        except SpearError as error:  # carried past the nursery, as it is
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return Reply({}, encode_head(report))


class _News:
    """The latest word; older ones are of no interest."""

    def __init__(self) -> None:
        self._text = ""

    def tell(self, text: str) -> None:
        """From any thread."""
        self._text = text

    async def pass_on(self, stream: Stream) -> None:
        """For ever, or until the client is gone, which cancels the call."""
        told = ""
        while True:
            if self._text != told:
                told = self._text
                try:
                    await stream.send(told.encode())
                except SpearError:
                    return
            await trio.sleep(_OFTEN_S)


async def hear_backup(stream: Stream, tell: Callable[[str], None] | None) -> BackupReport:
    """The client's side."""
    try:
        try:
            while True:
                text = await stream.receive()
                if tell is not None:
                    tell(text.decode())
        except trio.EndOfChannel:
            reply = await stream.result()
    except ChannelBrokenError as error:
        raise gone(error) from error
    return decode_head(bytes(reply.payload), BackupReport)
