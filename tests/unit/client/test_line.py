"""The connection behind a client: kept, lost and made anew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import FrontDoorSpec
from spear_core.client._line import Line
from spear_core.errors import NodeUnreachableError


class Peer:
    """What a test's front door connects to; only what a line looks at."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_connected = True


@attrs.define
class Door:
    """Connects to a new peer each time, unless it is shut."""

    shut: bool = False
    dialled: int = 0
    open: set[int] = attrs.field(factory=set)
    on_connected: Callable[[], object] | None = None

    @asynccontextmanager
    async def connect(self, url: str) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        if self.shut:
            raise NodeUnreachableError(f"nobody at {url}")
        self.dialled += 1
        number = self.dialled
        self.open.add(number)
        if self.on_connected is not None:
            self.on_connected()
        try:
            yield Peer(number)
        finally:
            self.open.remove(number)

    def spec(self) -> FrontDoorSpec[Any]:
        return FrontDoorSpec(
            name="test", schemes=("test",), open=self._no, connect=self.connect, config_cls=Door
        )

    def _no(self, *_: Any) -> Any:
        raise AssertionError("only its client is used")


@asynccontextmanager
async def open_line(door: Door) -> AsyncIterator[Line]:
    async with trio.open_nursery() as nursery:
        line = Line("test://x", door.spec(), nursery)
        try:
            yield line
        finally:
            line.close()


async def number_of(api: Any) -> int:
    await trio.lowlevel.checkpoint()
    number = api.number
    assert isinstance(number, int)
    return number


async def test_one_connection_serves_every_question_of_many_tasks() -> None:
    door = Door()
    async with open_line(door) as line:
        seen = []

        async def ask() -> None:
            seen.append(await line.ask(number_of, repeatable=False))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert seen == [1] * 20
        assert door.open == {1}
    assert door.open == set()


async def test_a_connection_lost_in_a_call_is_told_and_the_next_call_dials() -> None:
    door = Door()

    async def lose(api: Any) -> int:
        raise NodeUnreachableError("gone")

    async with open_line(door) as line:
        with pytest.raises(NodeUnreachableError, match="gone"):
            await line.ask(lose, repeatable=False)
        assert door.dialled == 1
        assert await line.ask(number_of, repeatable=False) == 2
        assert door.open == {2}


async def test_only_what_may_be_repeated_is_asked_again_and_once_only() -> None:
    door = Door()
    asked = []

    async def lose(api: Any) -> int:
        asked.append(api.number)
        raise NodeUnreachableError("gone")

    async with open_line(door) as line:
        with pytest.raises(NodeUnreachableError):
            await line.ask(lose, repeatable=True)
    assert asked == [1, 2]


async def test_a_connection_lost_while_idle_is_noticed_before_asking() -> None:
    door = Door()
    async with open_line(door) as line:
        (await line.connect()).is_connected = False  # type: ignore[misc]
        assert await line.ask(number_of, repeatable=False) == 2


async def test_a_lost_connection_stays_for_those_who_still_use_it() -> None:
    door = Door()
    async with open_line(door) as line:
        async with line.borrow() as api:
            api.is_connected = False  # type: ignore[misc]
            assert await line.ask(number_of, repeatable=False) == 2
            assert door.open == {1, 2}
        await trio.testing.wait_all_tasks_blocked()
        assert door.open == {2}


async def test_nobody_there_is_said_and_may_be_tried_again() -> None:
    door = Door(shut=True)
    async with open_line(door) as line:
        with pytest.raises(NodeUnreachableError, match="nobody at test://x"):
            await line.connect()
        door.shut = False
        assert await line.ask(number_of, repeatable=False) == 1


async def test_a_closed_line_dials_no_more() -> None:
    door = Door()
    async with open_line(door) as line:
        await line.connect()
    with pytest.raises(NodeUnreachableError, match="is closed") as caught:
        await line.ask(number_of, repeatable=True)
    assert not caught.value.retryable
    assert door.dialled == 1


async def test_who_is_cancelled_just_when_the_dial_succeeds_leaves_at_once() -> None:
    door = Door()
    async with open_line(door) as line:
        with trio.CancelScope() as scope, trio.fail_after(60):
            door.on_connected = scope.cancel
            await line.connect()
        assert scope.cancelled_caught
        assert door.open == set()
        door.on_connected = None
        assert await line.ask(number_of, repeatable=False) == 2
