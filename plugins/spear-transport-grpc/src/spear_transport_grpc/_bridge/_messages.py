"""The messages of one call, the same on both sides of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from spear_transport_grpc._bridge._core import NO_FLAGS, cygrpc
from spear_transport_grpc._bridge._poller import Event, Waiter

__all__ = ["Messages"]

Start = Callable[[tuple[Any, ...], Callable[[Event], None]], bool]
"""Starts a batch of operations and says whether it could; the function is called at its end."""


class Messages:
    """Sends and receives, with at most one operation of each kind outstanding in C-core.

    A send returns when the one before it has been taken off our hands, so one message is on its
    way ahead of the sender, and a cancelled send has sent all or nothing. A cancelled receive
    stays outstanding; its message goes to the next receive.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._sending = False
        self._send_failed = False
        self._sender_busy = False
        self._sent = Waiter()
        self._receiving = False
        self._received: bytes | None = None
        self._arrived = False
        self._arrival = Waiter()

    @property
    def broken(self) -> bool:
        """A message could not be sent: the call is over, and its status says why."""
        return self._send_failed

    async def receive(self) -> bytes | None:
        """The next message, ``None`` when no more comes (also when the call has failed)."""
        if not self._arrived:
            if not self._receiving:
                operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
                if not self._start(operations, self._on_received):
                    return None
                self._receiving = True
            await self._arrival.wait("receiving")
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        message = self._received
        if message is not None:
            self._arrived = False
            self._received = None
        return message

    def _on_received(self, event: Event) -> None:
        self._receiving = False
        self._arrived = True
        self._received = event.batch_operations[0].message()
        self._arrival.wake()

    async def send(self, data: bytes, first: tuple[Any, ...] = ()) -> bool:
        """Send one message, after the operations ``first``; false when the call is over."""
        if not await self.wait_sent():
            return False
        operations = (*first, cygrpc.SendMessageOperation(data, NO_FLAGS))
        if not self._start(operations, self._on_sent):
            self._send_failed = True
            return False
        self._sending = True
        return True

    async def wait_sent(self) -> bool:
        """Wait until the last message is on its way; false when the call is over."""
        if self._sender_busy:
            raise trio.BusyResourceError("another task is sending")
        self._sender_busy = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while self._sending and not self._send_failed:
                await self._sent.wait("sending")
        finally:
            self._sender_busy = False
        return not self._send_failed

    async def wait_last_sent(self) -> None:
        """Send nothing more, whoever is about to, and wait until the last message is on its way."""
        self._send_failed = True
        self._sent.wake()
        while self._sending:
            await self._sent.wait("waiting for the last message")

    def release(self) -> None:
        """The call is over: let go of it, so that it goes when its last user does."""
        self._start = _never

    def _on_sent(self, event: Event) -> None:
        self._sending = False
        self._send_failed = self._send_failed or not event.success
        self._sent.wake()


def _never(operations: tuple[Any, ...], done: Callable[[Event], None]) -> bool:
    return False
