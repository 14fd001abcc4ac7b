"""A nursery for the services behind an `open_…` function."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import trio


@contextlib.asynccontextmanager
async def open_service_nursery() -> AsyncGenerator[trio.Nursery]:
    """A nursery that doesn't wrap what its own body raises into an exception group.

    Whoever writes `async with open_x(): ...` shall get their own exception back unchanged. What
    the services raise still comes as a group. The body must see to it that they end.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:  # barrier: raised again as it was, below
            raised = exc
    if raised is not None:
        raise raised
