"""What object stores promise of values that come out of a pipe."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from spear_core.api import ObjectStore
from spear_core.errors import InvalidRequestError, ObjectNotFoundError, StoreFullError
from spear_core.testing._promise import promise

__all__ = ["StorePipes"]

_LARGE = 5_000_000


class StorePipes(ABC):
    """A part of :class:`~spear_core.testing.ObjectStoreContract`."""

    small_config: ClassVar[Any]
    patience: float

    @abstractmethod
    def open_store(
        self, tmp_path: Path, config: Any = None
    ) -> AbstractAsyncContextManager[ObjectStore]:
        """The store, as a node opens it."""

    @promise
    async def test_written_from_a_pipe(self, tmp_path: Path) -> None:
        """``write_from``: so many bytes of the pipe and no more, between what is written
        otherwise; in ``sha256`` as in the value."""
        cases: Sequence[tuple[int, int, int]] = (
            (0, 1, 0), (0, 70_000, 0), (3, 10, 4), (70_000, 300_000, 7), (7, _LARGE, 0),
            (0, _LARGE, 1_500_000), (1_500_000, _LARGE, 3),
        )  # fmt: skip
        async with self.open_store(tmp_path) as store:
            for number, sizes in enumerate(cases):
                before, piped, after = (os.urandom(size) for size in sizes)
                whole = before + piped + piped + after
                for hashed in (True, False) if number in (1, 4) else (True,):
                    key = f"k{number}"
                    size = len(whole) if hashed else None
                    async with store.create(key, hashed=hashed, size=size) as writer:
                        await writer.write(before)
                        async with _pipe(piped + piped + b"more") as pipe:
                            await writer.write_from(pipe, len(piped))
                            await writer.write_from(pipe, len(piped))
                            await trio.lowlevel.wait_readable(pipe)
                            assert os.read(pipe, 10) == b"more"
                        await writer.write(after)
                        stat = await writer.commit()
                    assert await store.get(key) == (stat, whole)
                    assert stat.size == len(whole)
                    assert stat.sha256 == (hashlib.sha256(whole).hexdigest() if hashed else "")

    @promise
    async def test_pipe_that_ends_early(self, tmp_path: Path) -> None:
        """``write_from`` raises ``InvalidRequestError`` when the pipe ends before; nothing is left
        of what came."""
        async with self.open_store(tmp_path) as store:
            for size in (100, 100_000, _LARGE):
                async with (
                    store.create("k", size=size) as writer,
                    _pipe(bytes(size - 1)) as pipe,
                ):
                    with pytest.raises(InvalidRequestError, match=f"{size - 1} of {size}"):
                        await writer.write_from(pipe, size)
                with pytest.raises(ObjectNotFoundError):
                    await store.stat("k")
                assert (await store.usage()).bytes == 0

    @promise
    async def test_pipe_within_the_limit(self, tmp_path: Path) -> None:
        """``write_from`` raises ``StoreFullError``, or ``InvalidRequestError`` for more than was
        announced, and has not touched the pipe of a larger value then; a writer that waits for
        its pipe counts, until it is cancelled."""
        if self.small_config is None:
            pytest.skip("small_config is not set: the limit is not tested")
        async with (
            self.open_store(tmp_path, self.small_config) as store,
            store.create("k") as writer,
            _pipe(b"untouched") as pipe,
        ):
            with pytest.raises(StoreFullError):
                await writer.write_from(pipe, _LARGE)
            await trio.lowlevel.wait_readable(pipe)
            assert os.read(pipe, 10) == b"untouched"
        async with self.open_store(tmp_path / "usual") as store:
            async with store.create("k", size=_LARGE) as writer, _pipe(b"untouched") as pipe:
                with pytest.raises(InvalidRequestError, match="announced"):
                    await writer.write_from(pipe, _LARGE + 1)
                await trio.lowlevel.wait_readable(pipe)
                assert os.read(pipe, 10) == b"untouched"
            async with _pipe(bytes(_LARGE), ends=False) as pipe, trio.open_nursery() as nursery:

                async def wait() -> None:
                    async with store.create("k") as writer:
                        await writer.write_from(pipe, _LARGE + 1)

                nursery.start_soon(wait)
                while (await store.usage()).bytes != _LARGE + 1:
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert (await store.usage()).bytes == 0
            with pytest.raises(ObjectNotFoundError):
                await store.stat("k")


@asynccontextmanager
async def _pipe(value: bytes, *, ends: bool = True) -> AsyncGenerator[int]:
    """A pipe that another thread fills with that; and, if it ends, closes."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)

    def fill() -> None:
        left = memoryview(value)
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(writing, left) :]
        if ends:
            os.close(writing)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        with trio.CancelScope(shield=True):  # without a reader it ends at once
            await trio.to_thread.run_sync(thread.join)
        if not ends:
            os.close(writing)
