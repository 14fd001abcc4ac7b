"""Worker threads for guests that compute for long, so that the trio thread is not theirs.

A suspended guest may be resumed from another thread (checked for wasmtime 50: its stack goes with
it), one thread at a time. A job is handed over with the guest suspended, is polled here slice by
slice, in turn with the other jobs, and is handed back when it has ended, waits for the host, has
written something to its log, has used up its time, or is cancelled.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from contextlib import suppress

import trio

from ._ffi import Guest
from ._slice import Meter, poll
from ._ticker import Ticker

HANDOVER = 0.002
"""Seconds that a cancellation may hold up the trio thread; the usual time is a tenth of one."""
IDLE = 1.0
"""Seconds without work after which a worker ends."""
TURN = 4
"""Slices in a row for one job while others wait."""


class _State(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    BACK = "back"


class _Job:
    __slots__ = (
        "back", "cancelled", "ended", "error", "guest", "meter", "reschedule", "state", "task",
        "token",
    )  # fmt: skip

    def __init__(self, guest: Guest, meter: Meter) -> None:
        self.guest = guest
        self.meter = meter
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()
        self.back = threading.Event()
        self.state = _State.QUEUED
        self.cancelled = False
        self.reschedule = True
        """Whether the worker that is done with it wakes its task; one that is being cancelled waits
        for `back` instead."""
        self.ended = False
        self.error: Exception | None = None

    def is_due(self) -> bool:
        """Whether it must go back to its task."""
        if self.ended or self.cancelled or self.error is not None:
            return True
        return self.guest.pending is not None or self.meter.spent or self.meter.urgent


class HogPool:
    """At most `threads` workers, started when first needed and ended by `close` or idleness."""

    def __init__(self, ticker: Ticker, threads: int) -> None:
        self._ticker = ticker
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    async def run(self, guest: Guest, meter: Meter) -> bool:
        """Let a worker poll it. True when the guest has ended, False when it is to be looked at.

        **Cancellation**: the guest is suspended when Cancelled comes out. Should the worker not
        let go of it at once, this returns when it does, and the next checkpoint raises.
        """
        job = _Job(guest, meter)
        if not self._submit(job):
            await trio.lowlevel.checkpoint()
            return False
        await trio.lowlevel.wait_task_rescheduled(lambda _: self._abort(job))
        if job.error is not None:
            raise job.error
        return job.ended

    def close(self) -> None:
        """End the workers. No job may be left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _submit(self, job: _Job) -> bool:
        """Queue it; False when there is no worker, and none can be started."""
        with self._changed:
            if self._idle > len(self._jobs):
                self._changed.notify()
            elif len(self._threads) < self._limit:
                name = f"spear-wasm-worker-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                with suppress(RuntimeError):  # this process may have no more threads
                    thread.start()
                    self._threads.append(thread)  # it waits for the lock, which we hold
            if self._threads:
                self._jobs.append(job)
            return bool(self._threads)

    def _abort(self, job: _Job) -> trio.lowlevel.Abort:
        """On the trio thread: get the job back, now if possible."""
        with self._changed:
            if job.state is _State.QUEUED:
                self._jobs.remove(job)
                return trio.lowlevel.Abort.SUCCEEDED
            if job.state is _State.BACK:  # its task is about to be woken
                return trio.lowlevel.Abort.FAILED
            job.cancelled = True
            job.reschedule = False
        # Its slice ends now. Waiting for that, briefly, hands the interpreter lock to the worker,
        # which would else get it some milliseconds later from a busy trio thread.
        self._ticker.tick()
        if not job.back.wait(HANDOVER) and not self._is_back(job):
            return trio.lowlevel.Abort.FAILED
        return trio.lowlevel.Abort.SUCCEEDED

    def _is_back(self, job: _Job) -> bool:
        """Whether it is; if not, the worker will wake its task."""
        with self._changed:
            job.reschedule = job.state is not _State.BACK
            return not job.reschedule

    def _work(self) -> None:
        poller = self._ticker.add_poller(time.thread_time)
        try:
            while (job := self._take()) is not None:
                try:
                    for _ in range(TURN):
                        job.ended = poll(self._ticker, poller, job.guest, job.meter)
                        if job.is_due():
                            break
                except Exception as exc:  # barrier: a job must come back, whatever happens
                    job.error = exc
                self._put_back(job)
        finally:
            self._ticker.remove_poller(poller)

    def _take(self) -> _Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs or self._closed, IDLE)
            self._idle -= 1
            if self._closed or not self._jobs:
                self._threads.remove(threading.current_thread())
                return None
            job = self._jobs.popleft()
            job.state = _State.RUNNING
            return job

    def _put_back(self, job: _Job) -> None:
        with self._changed:
            if not job.is_due():
                job.state = _State.QUEUED
                self._jobs.append(job)
                return
            job.state = _State.BACK
            reschedule = job.reschedule
        job.back.set()
        if reschedule:
            job.token.run_sync_soon(trio.lowlevel.reschedule, job.task)
