"""Opening the plugins' parts when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from spear_core.errors import RuntimeUnavailableError
from spear_core.node._background import open_background
from spear_core.node._services import _Opened


async def test_everybody_who_waits_hears_why_it_cannot_open_whoever_tries_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    attempts = 0

    @asynccontextmanager
    async def open_it() -> AsyncIterator[str]:
        nonlocal attempts
        attempts += 1
        await trio.sleep(1)
        if attempts < 3:
            raise RuntimeUnavailableError("not yet")
        yield "open"

    heard: list[str] = []

    async with open_background() as background:
        opened = _Opened("runtime x", open_it, background, logging.getLogger("spear.test"))

        async def ask_once() -> None:
            try:
                heard.append(await opened.get())
            except RuntimeUnavailableError as error:
                heard.append(error.message)

        async def ask_until_it_works() -> None:
            while True:
                try:
                    await opened.get()
                except RuntimeUnavailableError:
                    continue
                return

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask_once)
                nursery.start_soon(ask_until_it_works)
        assert heard == ["not yet"] * 20
        assert attempts == 3


async def test_a_service_that_has_ended_is_opened_again() -> None:
    breaking = trio.Event()
    opened_times = 0

    async def break_down() -> None:
        await breaking.wait()
        raise RuntimeUnavailableError("gone")

    @asynccontextmanager
    async def open_it() -> AsyncIterator[int]:
        nonlocal opened_times
        opened_times += 1
        async with trio.open_nursery() as nursery:
            if opened_times == 1:
                nursery.start_soon(break_down)
            yield opened_times

    async with open_background() as background:
        opened = _Opened("runtime x", open_it, background, logging.getLogger("spear.test"))
        assert await opened.get() == 1
        breaking.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await opened.get() == 2
