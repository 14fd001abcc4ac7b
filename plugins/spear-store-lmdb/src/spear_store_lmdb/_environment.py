"""One LMDB environment: its lock, its format, its one writer and its readers.

All reads are on trio's thread and end before they await. All writes are on one other thread, a
whole transaction each: LMDB's next writer waits for ever when a transaction is committed by
another thread than the one that began it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import queue
import struct
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, overload

import attrs
import lmdb
import outcome
import trio

from spear_core.errors import (
    SpearError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreInUseError,
)

__all__ = [
    "FORMAT",
    "Cursor",
    "Environment",
    "Migration",
    "Transaction",
    "ViewCursor",
    "ViewTransaction",
    "disk_trouble",
    "open_environment",
]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class Cursor(Protocol):
    """lmdb's cursor, where it gives bytes (``buffers=False``)."""

    def first(self) -> bool: ...
    def next(self) -> bool: ...
    def next_nodup(self) -> bool: ...
    def set_key(self, key: bytes) -> bool: ...
    def set_range(self, key: bytes) -> bool: ...
    def set_range_dup(self, key: bytes, value: bytes) -> bool: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...
    def put(self, key: bytes, value: bytes) -> bool: ...
    def delete(self) -> bool: ...
    def iternext_dup(self) -> Iterator[bytes]: ...
    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...


class Transaction(Protocol):
    """lmdb's transaction, likewise."""

    @overload
    def get(self, key: bytes, *, db: Any) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes, *, db: Any) -> bytes: ...
    def put(self, key: bytes, value: bytes, *, db: Any, append: bool = False) -> bool: ...
    def delete(self, key: bytes, value: bytes = b"", *, db: Any) -> bool: ...
    def pop(self, key: bytes, *, db: Any) -> bytes | None: ...
    def stat(self, db: Any) -> dict[str, int]: ...
    def cursor(self, *, db: Any) -> Cursor: ...


class ViewCursor(Protocol):
    """lmdb's cursor, where it gives views of its own memory (``buffers=True``)."""

    def first(self) -> bool: ...
    def set_range(self, key: bytes) -> bool: ...
    def __iter__(self) -> Iterator[tuple[memoryview, memoryview]]: ...


class ViewTransaction(Protocol):
    """lmdb's transaction, likewise."""

    def get(self, key: bytes, default: bytes, *, db: Any) -> memoryview | bytes: ...
    def cursor(self, *, db: Any) -> ViewCursor: ...


Migration = Callable[[Transaction, Mapping[str, Any]], None]
"""Turns the content of one format into that of the next, in one transaction."""

FORMAT = 2
"""What this version writes. A newer one is refused, an older one is migrated."""

_FIRST_MAP = 1 << 30
"""Bytes of address space, not of disk or memory; grows by itself."""

_SPARE = 2
"""How often what is there already fits into the map at the beginning."""

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

_LITTLE = 1 << 20

_BATCH = 512
"""Writes that go to disk together at most."""


@attrs.define(eq=False)
class _Job:
    work: Callable[[Transaction], Any]
    after: Callable[[Any], None] | None
    task: trio.lowlevel.Task
    waiting: bool = True
    """Until the writer takes it, or its caller is cancelled; under the lock."""


class Environment:
    """An open environment. Made by :func:`open_environment`."""

    def __init__(self, env: lmdb.Environment, databases: dict[str, Any], folder: Path) -> None:
        self._env = env
        self._databases = databases
        self._folder = folder
        self._jobs: queue.SimpleQueue[_Job | Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._token = trio.lowlevel.current_trio_token()
        self._still = threading.Lock()
        """Held while another thread reads: the map must not move then."""
        self._closed = False
        self._scans = trio.CapacityLimiter(1)
        self.reading: Callable[[], AbstractContextManager[Transaction]] = cast(Any, env.begin)
        """A picture of the last commit, in a block. Leave it before awaiting anything."""
        self.looking: Callable[[], AbstractContextManager[ViewTransaction]] = cast(
            Any, partial(env.begin, buffers=True)
        )
        """The same without copies: no view of it may be used after the block."""
        self._numbers: dict[bytes, int] = {}
        self._changed: set[bytes] = set()
        self.batches = 0
        """Commits so far; each is one flush to disk at most."""

    def trouble(self, exc: BaseException) -> StoreError:
        """What to raise when LMDB cannot read or write."""
        return disk_trouble(exc, self._folder)

    @property
    def databases(self) -> Mapping[str, Any]:
        """The handles, by name."""
        return self._databases

    def __getitem__(self, name: str) -> Any:
        return self._databases[name]

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
        job = _Job(work, after, trio.lowlevel.current_task())
        self._jobs.put(job)

        def abort(raise_cancel: Any) -> trio.lowlevel.Abort:
            with self._lock:
                withdrawn, job.waiting = job.waiting, False
            return trio.lowlevel.Abort.SUCCEEDED if withdrawn else trio.lowlevel.Abort.FAILED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def number(self, txn: Transaction, name: bytes) -> int:
        """A number in ``meta``, with what this batch has made of it. For the writer's thread."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = int(txn.get(name, b"0", db=self._databases["meta"]))
        return found

    def set_number(self, name: bytes, value: int) -> None:
        """Likewise; it is written once, at the end of the batch."""
        self._numbers[name] = value
        self._changed.add(name)

    def write_numbers(self, txn: Transaction) -> None:
        """Write them now, for somebody who looks into ``meta`` itself."""
        for name in self._changed:
            txn.put(name, b"%d" % self._numbers[name], db=self._databases["meta"])
        self._numbers.clear()
        self._changed.clear()

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

    def later(self, chore: Callable[[], None]) -> None:
        """Have the writer's thread do what would keep trio's waiting: soon, and before the next
        write is answered. It raises nothing."""
        self._jobs.put(chore)

    def serve(self) -> None:
        """The writer's thread: commit what comes, until :meth:`stop`."""
        stopping = False
        while not stopping:
            taken = [self._jobs.get()]
            with suppress(queue.Empty):
                while len(taken) < _BATCH:
                    taken.append(self._jobs.get_nowait())
            stopping = None in taken
            batch = []
            with self._lock:
                for job in taken:
                    if isinstance(job, _Job) and job.waiting:
                        job.waiting = False
                        batch.append(job)
            for job in taken:
                if job is not None and not isinstance(job, _Job):
                    job()
            if batch:
                results = self._commit(batch)
                self._token.run_sync_soon(self._deliver, batch, results)
        with self._still:
            pass  # no scan reads any more, and none will begin: the map may go

    def stop(self) -> None:
        """Let the writer end when it has done what it was given."""
        self._closed = True
        self._jobs.put(None)

    def _commit(self, batch: Sequence[_Job]) -> list[outcome.Outcome[Any]]:
        """The outcome of each job, in one transaction for all; again while the map is too small."""
        broken: dict[int, outcome.Outcome[Any]] = {}
        while True:
            number = -1
            results: list[outcome.Outcome[Any]] = []
            self._numbers.clear()
            self._changed.clear()
            try:
                with self._env.begin(write=True) as begun:
                    txn = cast(Transaction, begun)
                    for number, job in enumerate(batch):
                        results.append(broken.get(number) or self._attempt(job, txn))
                    number = -1
                    self.write_numbers(txn)
                self.batches += 1
                return results
            except lmdb.MapFullError:
                with self._still:
                    trio.from_thread.run_sync(self._grow)
            except Exception as exc:  # barrier: one job, or the disk
                if number < 0 or isinstance(exc, (lmdb.Error, OSError)):
                    return [outcome.Error(disk_trouble(exc, self._folder))] * len(batch)
                broken[number] = outcome.Error(exc)

    @staticmethod
    def _attempt(job: _Job, txn: Transaction) -> outcome.Outcome[Any]:
        try:
            return outcome.Value(job.work(txn))
        except StoreCorruptError:
            raise  # perhaps in the midst of its changes: all of them go, and then the others again
        except SpearError as exc:
            return outcome.Error(exc)

    def _grow(self) -> None:
        """Double the map. On trio's thread, where no read is going on, and with no write open."""
        self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def _deliver(self, batch: Sequence[_Job], results: Sequence[outcome.Outcome[Any]]) -> None:
        for job, result in zip(batch, results, strict=True):
            if job.after is not None and isinstance(result, outcome.Value):
                job.after(result.value)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, outcome.Error):
                # several callers may have one error, and each adds its own traceback
                result = outcome.Error(_copied(result.error))
            trio.lowlevel.reschedule(job.task, result)


def _copied(error: BaseException) -> BaseException:
    if not isinstance(error, SpearError):
        return error
    copy = type(error)(error.message, code=error.code, retryable=error.retryable)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


def disk_trouble(exc: BaseException, folder: Path) -> StoreError:
    """What went wrong with the files below a folder, in our words."""
    text = f"{exc}"
    short = os.strerror(errno.EIO) in text and not _has_room(folder)
    if short or any(os.strerror(number) in text for number in _FULL):
        error: StoreError = StoreFullError(f"no room left on the disk of {folder}: {text}")
    elif isinstance(
        exc, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, struct.error)
    ):
        error = _corrupt(folder, text)
    else:
        error = StoreError(f"the store in {folder} cannot be used: {text}", code="unavailable")
    error.__cause__ = exc
    return error


def _has_room(folder: Path) -> bool:
    """Whether the disk takes a little more. LMDB calls a write that was cut short an I/O error,
    whatever the reason."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, _LITTLE)
    except OSError as exc:
        return exc.errno not in _FULL
    return True


def _corrupt(folder: Path, reason: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{folder / 'data.mdb'} is damaged ({reason}); restore a backup, or move {folder} away to "
        f"begin with an empty store"
    )


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
    with _held(folder):
        env = _opened(folder, len(databases) + 1, durable=durable)
        try:
            handles, found = _checked(env, folder, kind, databases)
            _migrate(env, folder, handles, range(found, FORMAT), migrations or {}, log)
            environment = Environment(env, handles, folder)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve, environment)
                try:
                    yield environment
                finally:
                    environment.stop()
        finally:
            env.close()


async def _serve(environment: Environment) -> None:
    """Until :meth:`Environment.stop`, whatever is cancelled: what was accepted is committed."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(environment.serve, limiter=trio.CapacityLimiter(1))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise disk_trouble(exc, folder) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUseError(
                f"another process has the store in {folder} open; stop it first"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path, databases: int, *, durable: bool) -> lmdb.Environment:
    data = folder / "data.mdb"
    there = data.exists() and data.stat().st_size
    size = max(_FIRST_MAP, _SPARE * there)
    try:
        env = lmdb.open(
            str(folder),
            map_size=size,
            max_dbs=databases,
            sync=durable,
            metasync=durable,
            mode=0o600,
        )
    except lmdb.VersionMismatchError as exc:
        raise StoreFormatError(f"{data} was written by another version of LMDB ({exc})") from exc
    except (lmdb.InvalidError, lmdb.CorruptedError) as exc:
        raise _corrupt(folder, str(exc)) from exc
    except (lmdb.Error, OSError) as exc:
        raise disk_trouble(exc, folder) from exc
    pages = env.info()["last_pgno"] + 1
    if there and data.stat().st_size < pages * env.stat()["psize"]:
        # a page beyond the end of the file would be a SIGBUS
        env.close()
        raise _corrupt(folder, f"cut off at {there} bytes")
    env.reader_check()
    return env


def _checked(
    env: lmdb.Environment, folder: Path, kind: str, databases: dict[str, bool]
) -> tuple[dict[str, Any], int]:
    """The handles of the databases, if the environment is one of ours, or new; and its format."""
    mine = f"spear {kind}".encode()
    try:
        with env.begin() as txn:
            empty = txn.stat()["entries"] == 0
        if not empty and not _has_meta(env):
            raise StoreFormatError(f"{folder / 'data.mdb'} is an LMDB file, but not one of SPEAR's")
        meta = env.open_db(b"meta")
        with env.begin() as txn:
            found, version = txn.get(b"kind", db=meta), txn.get(b"format", db=meta)
            # also what was killed when it was made
            names = {bytes(name).decode(errors="replace") for name, _ in txn.cursor()}
            empty = txn.stat(meta)["entries"] == 0 and names <= {"meta", *databases}
        if not empty and found != mine:
            raise StoreFormatError(f"{folder / 'data.mdb'} holds {found!r}, not {mine!r}")
        if version is not None and int(version) > FORMAT:
            raise StoreFormatError(
                f"{folder / 'data.mdb'} has the format {int(version)}, and this version of "
                f"spear-store-lmdb knows {FORMAT} at most; upgrade it"
            )
        handles = {
            name: env.open_db(name.encode(), dupsort=several) for name, several in databases.items()
        }
        if empty:
            with env.begin(write=True, db=meta) as txn:
                txn.put(b"kind", mine)
                txn.put(b"format", b"%d" % FORMAT)
    except (lmdb.Error, OSError, ValueError) as exc:
        raise disk_trouble(exc, folder) from exc
    return {"meta": meta, **handles}, FORMAT if version is None else int(version)


def _migrate(
    env: lmdb.Environment,
    folder: Path,
    handles: Mapping[str, Any],
    steps: Iterable[int],
    migrations: Mapping[int, Migration],
    log: logging.Logger,
) -> None:
    """Each step in one transaction with the new number, so that it is done, or not begun."""
    for old in steps:
        if old not in migrations:
            raise StoreFormatError(f"{folder / 'data.mdb'} has the format {old}, which is unknown")
        log.info("bringing %s from format %s to %s", folder, old, old + 1)
        while True:
            try:
                with env.begin(write=True) as txn:
                    migrations[old](cast(Transaction, txn), handles)
                    txn.put(b"format", b"%d" % (old + 1), db=handles["meta"])
                break
            except lmdb.MapFullError:
                env.set_mapsize(env.info()["map_size"] * 2)
            except (lmdb.Error, OSError, struct.error) as exc:
                raise disk_trouble(exc, folder) from exc


def _has_meta(env: lmdb.Environment) -> bool:
    with env.begin() as txn:
        return txn.get(b"meta") is not None
