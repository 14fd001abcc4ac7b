"""One connection to a node, kept and made anew when it was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import trio

from spear_core.api import FrontDoorSpec, NodeApi
from spear_core.errors import NodeUnreachableError, SpearError

__all__ = ["Line"]

T = TypeVar("T")


@attrs.define(eq=False)
class _Connection:
    api: NodeApi
    over: trio.Event = attrs.field(factory=trio.Event)
    """Set: nobody begins anything on it any more."""
    users: int = 0
    idle: trio.Event = attrs.field(factory=trio.Event)

    def release(self) -> None:
        self.users -= 1
        if not self.users and self.over.is_set():
            self.idle.set()

    def retire(self) -> None:
        """Close it when the last of its users has left."""
        self.over.set()
        if not self.users:
            self.idle.set()


class Line:
    """Dials when somebody asks and nothing is connected; any number of tasks share the connection.

    :param nursery: its owner's, who leaves its block only after :meth:`close`; every connection is
        held open by a task of its own there.
    """

    def __init__(self, url: str, door: FrontDoorSpec[object], nursery: trio.Nursery) -> None:
        self.url = url
        self._door = door
        self._nursery = nursery
        self._dialing = trio.Lock()
        self._current: _Connection | None = None
        self._held: set[_Connection] = set()
        self._closed = False

    async def connect(self) -> NodeApi:
        """The node on the connection of now, which is made if there is none.

        **Raises** :exc:`~spear_core.errors.NodeUnreachableError`.
        """
        return (await self._connection()).api

    async def ask(self, question: Callable[[NodeApi], Awaitable[T]], *, repeatable: bool) -> T:
        """Ask on the connection of now.

        :param repeatable: ask once more on a new connection when this one is lost before the
            answer; asking twice must be as good as asking once.

        **Raises** what ``question`` raises, :exc:`~spear_core.errors.NodeUnreachableError` when
        the connection is lost or cannot be made.
        """
        try:
            return await self._ask(question)
        except NodeUnreachableError:
            if not repeatable:
                raise
        return await self._ask(question)

    async def _ask(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        async with self.borrow() as api:
            return await question(api)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[NodeApi]:
        """The connection of now, which stays while the block lasts unless it is lost."""
        connection = await self._connection()
        connection.users += 1
        try:
            yield connection.api
        except NodeUnreachableError:
            self._drop(connection)
            raise
        finally:
            connection.release()

    async def _connection(self) -> _Connection:
        if (connection := self._usable()) is not None:
            return connection
        async with self._dialing:
            if (connection := self._usable()) is not None:
                return connection
            if self._closed:
                raise NodeUnreachableError(f"the client of {self.url} is closed", retryable=False)
            self._current = await self._nursery.start(self._hold)
            return self._current

    def _usable(self) -> _Connection | None:
        current = self._current
        if current is not None and not current.api.is_connected:
            self._drop(current)
        return self._current

    def _drop(self, connection: _Connection) -> None:
        connection.retire()
        if self._current is connection:
            self._current = None

    async def _hold(self, task_status: trio.TaskStatus[_Connection]) -> None:
        connection: _Connection | None = None
        try:
            async with self._door.connect(self.url) as api:
                connection = _Connection(api)
                self._held.add(connection)
                task_status.started(connection)
                # What is cancelled still tells the node so. Except for whoever dialled, if that was
                # just now: then trio has left this task in the dialler's nursery.
                ours = trio.lowlevel.current_task().parent_nursery is self._nursery
                with trio.CancelScope(shield=ours):
                    await connection.idle.wait()
        except SpearError:
            if connection is None:
                raise
            # A connection that breaks while it is closed has nobody left to tell.
        finally:
            if connection is not None:
                self._held.discard(connection)

    def close(self) -> None:
        """Take no more questions, and let every connection go."""
        self._closed = True
        self._current = None
        for connection in self._held:
            connection.idle.set()
