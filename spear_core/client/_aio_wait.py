"""Waiting in asyncio for what runs in the trio thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from spear_core.client._thread import Job

__all__ = ["finished", "outcome"]

T = TypeVar("T")


async def finished(future: Future[T]) -> T:
    """Wait for the end; being cancelled leaves it alone."""
    mirror = asyncio.wrap_future(future)
    try:
        await asyncio.wait([mirror])
    finally:
        if mirror.done() and not mirror.cancelled():
            mirror.exception()  # it is seen, whether anybody asks for it or not
    return mirror.result()


async def outcome(job: Job[T]) -> T:
    """Wait for the end; being cancelled cancels the job, and waits until it has stopped."""
    mirror = asyncio.wrap_future(job.future)
    try:
        await asyncio.wait([mirror])
    except asyncio.CancelledError:
        job.cancel()
        await asyncio.wait([mirror])
        raise
    finally:
        if mirror.done() and not mirror.cancelled():
            mirror.exception()  # it is seen, whether anybody asks for it or not
    return mirror.result()
