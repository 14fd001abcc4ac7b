"""Two sessions with each other, and one session with a hostile peer."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest

from spear_core.api import Message
from spear_core.rpc import Call, Reply, Session, SessionLimits, SocketChannel, Stream, open_session

DEFAULTS = SessionLimits()


@attrs.frozen
class Sides:
    """Both ends of a connection."""

    client: Session
    server: Session


@attrs.frozen
class Hostile:
    """A session under test, and a channel whose other end says what it likes."""

    session: Session
    channel: SocketChannel

    async def send(self, kind: int, id_: int = 0, **rest: Any) -> None:
        """Send one message."""
        await self.channel.send(Message(kind, id_, **rest))


async def echo(call: Call) -> Reply:
    """A handler that gives back what it gets."""
    return Reply(call.args, call.payload)


OpenSides = Callable[..., AbstractAsyncContextManager[Sides]]
OpenHostile = Callable[..., AbstractAsyncContextManager[Hostile]]


@asynccontextmanager
async def _open_sides(
    handler: Callable[[Call], Awaitable[Reply]] | None = echo,
    *,
    on_notice: Callable[[Call], None] | None = None,
    on_stream: Callable[[Call, Stream], Awaitable[Reply]] | None = None,
    limits: SessionLimits = DEFAULTS,
    passes_fds: bool = False,
) -> AsyncIterator[Sides]:
    near, far = map(SocketChannel, socket.socketpair())
    if passes_fds:
        near.pass_fds()
        far.pass_fds()
    async with (
        open_session(
            far,
            initiator=False,
            handler=handler,
            on_notice=on_notice,
            on_stream=on_stream,
            limits=limits,
        ) as server,
        open_session(near, initiator=True) as client,
    ):
        yield Sides(client, server)


@asynccontextmanager
async def _open_hostile(
    handler: Callable[[Call], Awaitable[Reply]] | None = echo,
    *,
    on_stream: Callable[[Call, Stream], Awaitable[Reply]] | None = None,
    limits: SessionLimits = DEFAULTS,
) -> AsyncIterator[Hostile]:
    near, far = map(SocketChannel, socket.socketpair())
    async with (
        near,
        open_session(
            far, initiator=False, handler=handler, on_stream=on_stream, limits=limits
        ) as session,
    ):
        yield Hostile(session, near)


@pytest.fixture
def open_sides() -> OpenSides:
    """Opens a server session with the given handlers and a client session."""
    return _open_sides


@pytest.fixture
def open_hostile() -> OpenHostile:
    """Opens a session on the accepting side (its own ids are odd) and gives the bare channel."""
    return _open_hostile
