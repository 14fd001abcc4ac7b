"""Messages from places that cannot wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from spear_core.api import Channel, Message
from spear_core.errors import ChannelError

__all__ = ["Outbox"]

_ROOM = 1024


class Outbox:
    """Short messages on their way to a channel, in order.

    :param on_overflow: called when the peer causes more of them than it reads.
    """

    def __init__(self, channel: Channel, on_overflow: Callable[[], None]) -> None:
        self._channel = channel
        self._on_overflow = on_overflow
        self._waiting: deque[Message] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._sent = trio.lowlevel.ParkingLot()
        self._sending = False

    def post(self, message: Message) -> None:
        """Have it sent soon."""
        self._waiting.append(message)
        self._arrived.unpark()
        if len(self._waiting) > _ROOM:
            self._on_overflow()

    async def wait_empty(self) -> None:
        """Wait until everything is sent."""
        while self._waiting or self._sending:
            await self._sent.park()

    async def run(self) -> None:
        """Send what is posted, until the channel ends."""
        while True:
            self._sending = bool(self._waiting)
            while self._waiting:
                try:
                    await self._channel.send(self._waiting.popleft())
                except ChannelError:
                    return  # whoever reads the channel finds out why
            self._sending = False
            self._sent.unpark_all()
            await self._arrived.park()
