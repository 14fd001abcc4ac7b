"""A thread in which trio runs, for callers who have no trio of their own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import attrs
import trio

from spear_core.errors import NodeUnreachableError

__all__ = ["Held", "Job", "TrioThread"]

T = TypeVar("T")


def _closed() -> NodeUnreachableError:
    return NodeUnreachableError("the client is closed", retryable=False)


class Job(Generic[T]):
    """Something that runs in the trio thread."""

    def __init__(self, thread: TrioThread) -> None:
        self.future: Future[T] = Future()
        """Its end. Cancelling the future has no effect; :meth:`cancel` is there for that."""
        self.future.set_running_or_notify_cancel()
        self._thread = thread
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Ask it to stop, from any thread. It has stopped when ``future`` is done."""
        self._thread.soon(self._scope.cancel)

    async def run(self, work: Callable[[Job[T]], Awaitable[None]]) -> None:
        """In the trio thread: do the work, which sets the result."""
        try:
            with self._scope:
                await work(self)
        except Exception as exc:  # barrier: raised where the caller waits for it
            if self.future.done():  # a block that breaks when it is left has nobody to tell
                return
            self.future.set_exception(exc)
        finally:
            if not self.future.done():
                asked = self._scope.cancelled_caught
                self.future.set_exception(CancelledError() if asked else _closed())


@attrs.frozen(eq=False)
class Held(Generic[T]):
    """A context manager's block, held open in the trio thread."""

    value: T
    _thread: TrioThread
    _leave: trio.Event
    _left: Future[None]

    def leave(self) -> Future[None]:
        """Leave the block normally; the future is done when that has happened."""
        self._thread.soon(self._leave.set)
        return self._left


class TrioThread:
    """Runs trio until :meth:`close`; any thread may hand it work.

    A daemon thread: a program that ends without closing it does not hang.
    """

    def __init__(self) -> None:
        ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._thread = threading.Thread(
            target=trio.run, args=(self._main, ready), name="spear-client", daemon=True
        )
        self._thread.start()
        ready.wait()

    async def _main(self, ready: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            ready.set()
            await trio.sleep_forever()

    def soon(self, act: Callable[..., object], *args: Any) -> bool:
        """Call ``act`` in the trio thread. Returns whether that still runs."""
        try:
            self._token.run_sync_soon(act, *args)
        except trio.RunFinishedError:
            return False
        return True

    def start(self, work: Callable[[], Awaitable[T]]) -> Job[T]:
        """Run ``work`` there; its result is the job's."""

        async def whole(job: Job[T]) -> None:
            job.future.set_result(await work())

        return self._started(whole)

    def hold(self, manager: AbstractAsyncContextManager[T]) -> Job[Held[T]]:
        """Enter ``manager`` there and hold its block open; the job's result is there once it is.

        Cancelling the job leaves the block by a cancellation, or enters nothing.
        """
        leave, left = trio.Event(), Future[None]()

        async def block(job: Job[Held[T]]) -> None:
            try:
                async with manager as value:
                    job.future.set_result(Held(value, self, leave, left))
                    await leave.wait()
            finally:
                left.set_result(None)

        return self._started(block)

    def _started(self, work: Callable[[Job[T]], Awaitable[None]]) -> Job[T]:
        job: Job[T] = Job(self)
        if not self.soon(self._begin, job, work):
            job.future.set_exception(_closed())
        return job

    def _begin(self, job: Job[T], work: Callable[[Job[T]], Awaitable[None]]) -> None:
        try:
            self._nursery.start_soon(job.run, work)
        except RuntimeError:  # the nursery has just closed
            job.future.set_exception(_closed())

    def close(self) -> None:
        """Cancel all that runs there, and wait until the thread has ended."""
        self.soon(lambda: self._nursery.cancel_scope.cancel())
        self._thread.join()
