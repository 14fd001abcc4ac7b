"""Reaching the node that the options name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from spear_core.api import NodeApi
from spear_core.cli._interrupt import Interrupt, watch_interrupts
from spear_core.cli._options import Options
from spear_core.client import connect
from spear_core.node.paths import default_state_dir

__all__ = ["ask", "open_client", "state_dir", "talk"]

T = TypeVar("T")


def state_dir(options: Options) -> Path:
    """The node's state directory."""
    return (options.state_dir or default_state_dir(os.environ)).absolute()


@asynccontextmanager
async def open_client(options: Options) -> AsyncIterator[NodeApi]:
    """The node that the options name. :raises NodeUnreachableError: with what to do about it."""
    async with connect(options.node, state_dir=state_dir(options)) as node:
        yield await node.api()


def talk(options: Options, work: Callable[[NodeApi, Interrupt], Awaitable[T]]) -> T:
    """Connect, do ``work`` and return its result.

    ``work`` puts what Ctrl-C may cancel into the scope of its :class:`Interrupt`. **Raises**
    :exc:`~spear_core.cli._errors.InterruptedBySignalError` after an interrupted ``work``.
    """

    async def session() -> T:
        async with watch_interrupts() as interrupt:
            async with open_client(options) as api:
                result = await work(api, interrupt)
            interrupt.check()
        return result

    return trio.run(session)


def ask(options: Options, question: Callable[[NodeApi], Awaitable[T]]) -> T:
    """Connect, ask one thing and return the answer; Ctrl-C just stops."""

    async def session() -> T:
        async with open_client(options) as api:
            return await question(api)

    return trio.run(session)
