"""Sends whole payloads: a large one in pieces, a file beside a small one."""

from __future__ import annotations

from spear_core.api import Channel, Message, MessageFlag, MessageKind, OwnedFd
from spear_core.errors import InvalidRequestError
from spear_core.rpc._serving import Payload

__all__ = ["CHUNK", "PayloadSender"]

CHUNK = 256 << 10
"""A larger payload goes in pieces of this size, so that it does not hold up the line."""


class PayloadSender:
    """Messages with payloads of any size, on one channel.

    :param max_message: bytes of one payload.
    """

    def __init__(self, channel: Channel, *, max_message: int) -> None:
        self._channel = channel
        self._max_message = max_message

    def check_beside_fd(self, payload: Payload) -> None:
        """**Raises** :exc:`InvalidRequestError` unless a file can go beside that payload."""
        if not self._channel.passes_fds:
            raise InvalidRequestError("no files can go through this connection")
        if len(payload) > CHUNK:
            raise InvalidRequestError(
                f"at most {CHUNK} bytes can go beside a file, these are {len(payload)}"
            )

    async def send(
        self,
        kind: MessageKind,
        id_: int,
        flags: int,
        head: bytes,
        payload: Payload,
        fd: OwnedFd | None = None,
    ) -> None:
        """Send one message, in as many frames as it takes.

        :param fd: goes with it; :meth:`check_beside_fd` has been asked.
        """
        size = len(payload)
        if size <= CHUNK:
            await self._channel.send(Message(kind, id_, flags, head, payload, fd))
            return
        if size > self._max_message:
            raise InvalidRequestError(
                f"a payload has at most {self._max_message} bytes, this one {size}"
            )
        view = memoryview(payload)
        more = MessageFlag.MORE
        await self._channel.send(Message(kind, id_, flags | more, head, view[:CHUNK]))
        for start in range(CHUNK, size, CHUNK):
            flags = more if start + CHUNK < size else 0
            piece = view[start : start + CHUNK]
            await self._channel.send(Message(MessageKind.DATA, id_, flags, b"", piece))
