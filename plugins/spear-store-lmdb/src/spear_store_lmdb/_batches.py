"""The one writer of an environment: writes of the same moment are one transaction, and one flush.

It has a thread of its own, for a whole transaction each: LMDB's next writer waits for ever when a
transaction is committed by another thread than the one that began it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
import lmdb
import outcome
import trio

from spear_core.errors import SpearError, StoreCorruptError

from ._disk_errors import disk_trouble
from ._transaction import Transaction

__all__ = ["BatchWriter", "Numbers"]

T = TypeVar("T")

_BATCH = 512
"""Writes that go to disk together at most."""


class Numbers:
    """The numbers in ``meta``, each read and written once in a batch. For the writer's thread."""

    def __init__(self, meta: Any) -> None:
        self._meta = meta
        self._values: dict[bytes, int] = {}
        self._changed: set[bytes] = set()

    def get(self, txn: Transaction, name: bytes) -> int:
        """A number, with what this batch has made of it."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = int(txn.get(name, b"0", db=self._meta))
        return found

    def set(self, name: bytes, value: int) -> None:
        """It is written at the end of the batch."""
        self._values[name] = value
        self._changed.add(name)

    def write(self, txn: Transaction) -> None:
        """Write them now, for somebody who looks into ``meta`` itself."""
        for name in self._changed:
            txn.put(name, b"%d" % self._values[name], db=self._meta)
        self.forget()

    def forget(self) -> None:
        """Begin again with what is written."""
        self._values.clear()
        self._changed.clear()


@attrs.define(eq=False)
class _Job:
    work: Callable[[Transaction], Any]
    after: Callable[[Any], None] | None
    task: trio.lowlevel.Task
    waiting: bool = True
    """Until the writer takes it, or its caller is cancelled; under the lock."""


class BatchWriter:
    """Commits what comes, in one thread, while :meth:`serve` runs.

    :param still: held while another thread reads: the map must not move then.
    """

    def __init__(
        self, env: lmdb.Environment, folder: Path, numbers: Numbers, *, still: threading.Lock
    ) -> None:
        self._env = env
        self._folder = folder
        self._numbers = numbers
        self._still = still
        self._jobs: queue.SimpleQueue[_Job | Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._token = trio.lowlevel.current_trio_token()
        self.batches = 0
        """Commits so far; each is one flush to disk at most."""

    async def write(self, work: Callable[[Transaction], T], after: Callable[[T], None] | None) -> T:
        """As :meth:`._environment.Environment.write`."""
        job = _Job(work, after, trio.lowlevel.current_task())
        self._jobs.put(job)

        def abort(raise_cancel: Any) -> trio.lowlevel.Abort:
            with self._lock:
                withdrawn, job.waiting = job.waiting, False
            return trio.lowlevel.Abort.SUCCEEDED if withdrawn else trio.lowlevel.Abort.FAILED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def later(self, chore: Callable[[], None]) -> None:
        """Do that in the thread, before the next write is answered. It raises nothing."""
        self._jobs.put(chore)

    def stop(self) -> None:
        """End when all that was given is done."""
        self._jobs.put(None)

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

    def _commit(self, batch: Sequence[_Job]) -> list[outcome.Outcome[Any]]:
        """The outcome of each job, in one transaction for all; again while the map is too small."""
        broken: dict[int, outcome.Outcome[Any]] = {}
        while True:
            number = -1
            results: list[outcome.Outcome[Any]] = []
            self._numbers.forget()
            try:
                with self._env.begin(write=True) as begun:
                    txn = cast(Transaction, begun)
                    for number, job in enumerate(batch):
                        results.append(broken.get(number) or self._attempt(job, txn))
                    number = -1
                    self._numbers.write(txn)
                self.batches += 1
                return results
            except lmdb.MapFullError:
                with self._still:
                    trio.from_thread.run_sync(self._grow)
            except Exception as exc:  # barrier: one job, or the disk
                if number < 0 or isinstance(exc, (lmdb.Error, OSError)):
                    return [outcome.Error(disk_trouble(exc, self._folder))] * len(batch)
                # with the traceback, where it is a bug
                refusal = isinstance(exc, SpearError)
                broken[number] = _refused(exc) if refusal else outcome.Error(exc)

    @staticmethod
    def _attempt(job: _Job, txn: Transaction) -> outcome.Outcome[Any]:
        try:
            return outcome.Value(job.work(txn))
        except StoreCorruptError:
            raise  # perhaps in the midst of its changes: all of them go, and then the others again
        except SpearError as exc:
            return _refused(exc)

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


def _refused(error: Exception) -> outcome.Outcome[Any]:
    """Without the traceback: its frames have this outcome, and the value that was to be written,
    which would all stay until the garbage collector comes by."""
    return outcome.Error(error.with_traceback(None))


def _copied(error: BaseException) -> BaseException:
    if not isinstance(error, SpearError):
        return error
    copy = type(error)(error.message, code=error.code, retryable=error.retryable)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
