"""A sign of life on a terminal while something takes long; nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["show_progress"]

_SILENCE_S = 0.4


@asynccontextmanager
async def show_progress(text: str) -> AsyncIterator[None]:
    """Show ``text`` on stderr from 0.4 s after the block began until it ends."""
    if not sys.stderr.isatty():
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_spin, text)
        yield
        nursery.cancel_scope.cancel()


async def _spin(text: str) -> None:
    await trio.sleep(_SILENCE_S)
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(text)):
        await trio.sleep_forever()
