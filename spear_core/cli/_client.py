"""Reaching a node: the front door that speaks the URL's scheme does it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from spear_core.api import FrontDoorSpec, NodeApi
from spear_core.cli._interrupt import Interrupt, watch_interrupts
from spear_core.cli._options import Options
from spear_core.errors import InvalidRequestError
from spear_core.node.paths import StatePaths, default_state_dir
from spear_core.plugins import BUILTINS, load_plugins

__all__ = ["ask", "open_client", "state_dir", "talk"]

T = TypeVar("T")


def state_dir(options: Options) -> Path:
    """The node's state directory."""
    return (options.state_dir or default_state_dir(os.environ)).absolute()


def _front_door(url: str) -> FrontDoorSpec[object]:
    scheme = url.partition("://")[0]
    found: dict[str, FrontDoorSpec[object]] = {}
    for only in ([BUILTINS], None):  # the core's own are quick to load and usually enough
        found = {
            s: door.spec
            for door in load_plugins(only).front_doors.values()
            for s in door.spec.schemes
        }
        if scheme in found:
            return found[scheme]
    raise InvalidRequestError(
        f"the node's address {url!r} should begin with one of "
        f"{', '.join(f'{s}://' for s in sorted(found))}; no installed plugin speaks another scheme"
    )


@asynccontextmanager
async def open_client(options: Options) -> AsyncIterator[NodeApi]:
    """The node that the options name. :raises NodeUnreachableError: with what to do about it."""
    url = options.node or StatePaths(state_dir(options)).url
    async with _front_door(url).connect(url) as api:
        yield api


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
