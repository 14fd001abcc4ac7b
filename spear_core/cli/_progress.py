"""A sign of life on a terminal while something takes long; nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from spear_core.api import ArtifactState, NodeApi
from spear_core.cli._terminal import on_terminal, visible
from spear_core.errors import SpearError

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["show_progress", "what_is_done"]

_SILENCE_S = 0.4
_ASK_AGAIN_S = 0.5

Question = Callable[[], Awaitable[str]]


@asynccontextmanager
async def show_progress(text: str, ask: Question | None = None) -> AsyncIterator[None]:
    """Show ``text`` on stderr from 0.4 s after the block began until it ends.

    :param ask: gives what is being done now, to show after the text; empty for nothing.
    """
    if not on_terminal(sys.stderr):
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_spin, text, ask)
        yield
        nursery.cancel_scope.cancel()


async def _spin(text: str, ask: Question | None) -> None:
    await trio.sleep(_SILENCE_S)
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(text)) as status:
        if ask is not None:
            await _tell(status, escape(text), ask)
        await trio.sleep_forever()


async def _tell(status: Status, text: str, ask: Question) -> None:
    from rich.markup import escape

    while True:
        try:
            doing = await ask()
        except SpearError:
            return  # what we wait for will fail, too, and say why
        status.update(f"{text}: {escape(visible(doing))}" if doing else text)
        await trio.sleep(_ASK_AGAIN_S)


async def what_is_done(api: NodeApi, name: str) -> str:
    """What the node does to get an artifact of this name ready; empty when it does not say."""
    for artifact in await api.list_artifacts():
        if artifact.name == name and artifact.state is ArtifactState.PREPARING:
            return artifact.message
    return ""
