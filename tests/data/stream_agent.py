"""Functions that stream, or are asked to and do not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

from spear_sdk import Context


async def echo(ctx: Context, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        ctx.log.info("echo is over")


def plain_echo(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks


def three_then_fail(text: str) -> Iterator[str]:
    for number in range(3):
        yield f"chunk {number}"
    raise ValueError(f"after three: {text}")


def length(data: bytes) -> str:
    return str(len(data))


async def count(chunks: AsyncIterator[str]) -> dict[str, int]:
    return {"characters": sum([len(text) async for text in chunks])}


def for_ever(ctx: Context, chunks: Iterator[bytes]) -> Iterator[bytes]:
    number = 0
    try:
        while True:
            number += 1
            yield bytes(60_000)
    finally:
        ctx.log.info("sent %d", number)


def reads_nothing(chunks: Iterator[bytes]) -> str:
    time.sleep(600)
    return "never"
