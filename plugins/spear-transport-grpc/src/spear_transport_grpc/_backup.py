"""Backups: what is being done while they are made, and the report at the end."""

from __future__ import annotations

from collections.abc import Callable

import trio

from spear_core.api import BackupReport, NodeApi
from spear_core.errors import InvalidRequestError, ProtocolError, SpearError
from spear_transport_grpc._asking import Asking
from spear_transport_grpc._bridge import ServerCall
from spear_transport_grpc._convert import converter
from spear_transport_grpc._handlers import parsed
from spear_transport_grpc._protos.spear.v1 import node_pb2

__all__ = ["ask_backup", "serve_backup"]

_METHOD = "NodeService/Backup"
_OFTEN_S = 0.2
_Response = node_pb2.BackupResponse


async def serve_backup(node: NodeApi, call: ServerCall) -> None:
    """Have the node make a backup, and tell the client about it."""
    request = parsed(node_pb2.BackupRequest, await call.receive())
    if not request.directory:
        raise InvalidRequestError("directory: it is missing")
    news = _News()
    failure: SpearError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(news.pass_on, call)
        try:
            report = await node.backup(request.directory, logs=request.logs, tell=news.tell)
        except SpearError as error:  # carried past the nursery, as it is
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    encoded = converter(BackupReport).encode(report)
    await call.send(_Response(report=encoded).SerializeToString())


class _News:
    """The latest word; older ones are of no interest."""

    def __init__(self) -> None:
        self._text = ""

    def tell(self, text: str) -> None:
        """From any thread."""
        self._text = text

    async def pass_on(self, call: ServerCall) -> None:
        """For ever, now and then."""
        told = ""
        while True:
            if self._text != told:
                told = self._text
                await call.send(_Response(progress=told).SerializeToString())
            await trio.sleep(_OFTEN_S)


async def ask_backup(
    asking: Asking, directory: str, *, logs: bool, tell: Callable[[str], None] | None
) -> BackupReport:
    """The client's side."""
    request = node_pb2.BackupRequest(directory=directory, logs=logs)
    async with asking.open(_METHOD) as call:
        await call.send(request.SerializeToString())
        await call.send_eof()
        while (data := await call.receive()) is not None:
            message = asking.read(_Response, data)
            if message.HasField("report"):
                return converter(BackupReport).decode(message.report)
            if tell is not None:
                tell(message.progress)
    raise ProtocolError(f"the node at {asking.where} ended a backup without its report")
