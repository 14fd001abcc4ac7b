"""Values out of a pipe, with a taker of the test's own."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator

import attrs
import pytest
import trio
import trio.testing

from spear_core.errors import InvalidRequestError, StoreError, StoreFullError
from spear_core.stores import PipeTaker
from spear_core.stores._piping import take_all


@attrs.define
class Kept(PipeTaker):
    """Keeps what it takes; may be told to fail."""

    value: bytearray = attrs.field(factory=bytearray)
    room: int = 1 << 40
    readable: int = 1 << 40

    def take(self, pipe: int, most: int) -> int:
        if len(self.value) >= self.room:
            raise StoreFullError("full")
        piece = os.read(pipe, most)
        self.value += piece
        return len(piece)

    def read_back(self, into: memoryview, at: int) -> int:
        if at >= self.readable:
            raise StoreError("cannot be read")
        piece = self.value[at : at + len(into)]
        into[: len(piece)] = piece
        return len(piece)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends; neither blocks."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


async def feed(end: int, value: bytes) -> None:
    left = memoryview(value)
    while left:
        await trio.lowlevel.wait_writable(end)
        left = left[os.write(end, left) :]


@pytest.mark.parametrize("size", [1, 65_536, 9_000_001])
@pytest.mark.parametrize("hashed", [True, False])
async def test_all_of_it_and_its_digest(pipe: tuple[int, int], size: int, *, hashed: bool) -> None:
    reading, writing = pipe
    value = os.urandom(size)
    taker = Kept(bytearray(b"before"))
    digest = hashlib.sha256(b"before")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, writing, value + b"more")
        await take_all(
            taker, reading, at=6, size=size,
            digest=digest if hashed else None, threads=trio.CapacityLimiter(2),
        )  # fmt: skip
        await trio.lowlevel.wait_readable(reading)
        assert os.read(reading, 10) == b"more"
    assert taker.value == b"before" + value
    if hashed:
        assert digest.digest() == hashlib.sha256(b"before" + value).digest()


@pytest.mark.parametrize(
    ("taker", "error"),
    [(Kept(room=100_000), StoreFullError), (Kept(readable=100_000), StoreError)],
    ids=["cannot be kept", "cannot be read back"],
)
async def test_an_error_of_either_thread_ends_both(
    pipe: tuple[int, int], taker: Kept, error: type[StoreError]
) -> None:
    reading, writing = pipe
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, writing, bytes(4 << 20))
        with trio.fail_after(60), pytest.raises(error):
            await take_all(
                taker, reading, at=0, size=1 << 30,
                digest=hashlib.sha256(), threads=trio.CapacityLimiter(2),
            )  # fmt: skip
        nursery.cancel_scope.cancel()


async def test_a_pipe_that_ends(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"abc")
    os.dup2(reading, writing)  # which closes that end
    with pytest.raises(InvalidRequestError, match="3 of 4 bytes"):
        await take_all(
            Kept(), reading, at=0, size=4,
            digest=hashlib.sha256(), threads=trio.CapacityLimiter(2),
        )  # fmt: skip


async def test_who_waits_for_a_pipe_has_no_thread() -> None:
    """However many of them there are."""
    threads = trio.CapacityLimiter(1)
    ends = [os.pipe2(os.O_NONBLOCK) for _ in range(3)]
    takers = [Kept() for _ in ends]

    async def wait(taker: Kept, reading: int) -> None:
        await take_all(taker, reading, at=0, size=10, digest=hashlib.sha256(), threads=threads)

    async with trio.open_nursery() as nursery:
        for taker, (reading, _) in zip(takers, ends, strict=True):
            nursery.start_soon(wait, taker, reading)
        for _, writing in ends:
            os.write(writing, b"x")
        while not all(taker.value for taker in takers) or threads.borrowed_tokens:
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            assert await trio.to_thread.run_sync(lambda: "free", limiter=threads) == "free"
        nursery.cancel_scope.cancel()
    for end in itertools.chain.from_iterable(ends):
        os.close(end)
