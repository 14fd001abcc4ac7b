"""One LMDB environment: its one writer and its readers.

All reads are on trio's thread and end before they await, but for long ones, which :meth:`scan` has
in a thread. All writes are on one other thread, which belongs to the writer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import lmdb
import trio

from spear_core.errors import StoreError

from ._batches import BatchWriter, Numbers
from ._disk_errors import disk_trouble
from ._folder import Migration, opened_folder
from ._transaction import Transaction, ViewTransaction

__all__ = ["Environment", "open_environment"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@asynccontextmanager
async def open_environment(
    folder: Path,
    *,
    kind: str,
    databases: dict[str, bool],
    durable: bool,
    log: logging.Logger = _LOG,
    migrations: Mapping[int, Migration] | None = None,
) -> AsyncGenerator[Environment, None]:
    """Open the environment of a folder, make it if there is none, and run its writer.

    :param kind: what is in it; another kind is refused.
    :param databases: name → whether a key may have several values.
    :param durable: whether a commit waits for the disk.
    :param migrations: for each older format, how to make the next one of it.

    **Raises** :exc:`~spear_core.errors.StoreInUseError`,
    :exc:`~spear_core.errors.StoreFormatError`, :exc:`~spear_core.errors.StoreCorruptError` and
    :exc:`~spear_core.errors.StoreFullError`.
    """
    await trio.lowlevel.checkpoint()
    with opened_folder(
        folder,
        kind=kind,
        databases=databases,
        durable=durable,
        migrations=migrations or {},
        log=log,
    ) as (env, handles):
        environment = Environment(env, handles, folder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, environment)
            try:
                yield environment
            finally:
                environment.stop()


async def _serve(environment: Environment) -> None:
    """Until :meth:`Environment.stop`, whatever is cancelled: what was accepted is committed."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(environment.serve, limiter=trio.CapacityLimiter(1))


class Environment:
    """An open environment. Made by :func:`open_environment`."""

    def __init__(self, env: lmdb.Environment, databases: dict[str, Any], folder: Path) -> None:
        self._env = env
        self._databases = databases
        self._folder = folder
        self._still = threading.Lock()
        """Held while another thread reads: the map must not move then."""
        self.numbers = Numbers(databases["meta"])
        self._writer = BatchWriter(env, folder, self.numbers, still=self._still)
        self._closed = False
        self._scans = trio.CapacityLimiter(1)
        self.reading: Callable[[], AbstractContextManager[Transaction]] = cast(Any, env.begin)
        """A picture of the last commit, in a block. Leave it before awaiting anything."""
        self.looking: Callable[[], AbstractContextManager[ViewTransaction]] = cast(
            Any, partial(env.begin, buffers=True)
        )
        """The same without copies: no view of it may be used after the block."""

    def trouble(self, exc: BaseException) -> StoreError:
        """What to raise when LMDB cannot read or write."""
        return disk_trouble(exc, self._folder)

    @property
    def databases(self) -> Mapping[str, Any]:
        """The handles, by name."""
        return self._databases

    def __getitem__(self, name: str) -> Any:
        return self._databases[name]

    @property
    def batches(self) -> int:
        """Commits so far; each is one flush to disk at most."""
        return self._writer.batches

    async def write(
        self, work: Callable[[Transaction], T], after: Callable[[T], None] | None = None
    ) -> T:
        """Run ``work`` in a write transaction, and return when it is committed.

        It runs on another thread, together with others' work, and perhaps more than once: it
        changes nothing but the transaction, and raises a ``SpearError`` only before its first
        change. ``after`` gets its result on trio's thread, in the order of the commits.

        **Cancellation**: before the writer has taken it, it is never done; after that, it is
        waited for.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        return await self._writer.write(work, after)

    def later(self, chore: Callable[[], None]) -> None:
        """Have the writer's thread do what would keep trio's waiting: soon, and before the next
        write is answered. It raises nothing."""
        self._writer.later(chore)

    async def scan(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a read transaction on a thread of its own: for what takes long.

        The writer goes on meanwhile, as long as the map is large enough. **Cancellation**: waits
        for it; ``work`` should call :meth:`go_on` now and then.
        """

        def read() -> T:
            with self._still:
                self._check_open()
                try:
                    with self._env.begin() as txn:
                        return work(cast(Transaction, txn))
                except lmdb.Error as exc:
                    raise self.trouble(exc) from exc

        return await trio.to_thread.run_sync(read, limiter=self._scans)

    async def copy(self, directory: Path) -> None:
        """Write the last commit to a directory that exists, on the disk itself."""

        def write() -> None:
            with self._still:
                self._check_open()
                try:
                    self._env.copy(str(directory), compact=True)
                except (lmdb.Error, OSError) as exc:
                    raise disk_trouble(exc, directory) from exc
            with (directory / "data.mdb").open("rb") as file:
                os.fchmod(file.fileno(), 0o600)  # LMDB leaves that to the umask
                os.fsync(file.fileno())

        await trio.to_thread.run_sync(write, limiter=self._scans)

    def go_on(self) -> None:
        """Leave a scan that nobody waits for, or whose store is being closed."""
        trio.from_thread.check_cancelled()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store in {self._folder} is closed", code="unavailable")

    def serve(self) -> None:
        """The writer's thread: commit what comes, until :meth:`stop`. No scan reads after it."""
        self._writer.serve()
        with self._still:
            pass  # no scan reads any more, and none will begin: the map may go

    def stop(self) -> None:
        """Let the writer end when it has done what it was given."""
        self._closed = True
        self._writer.stop()
