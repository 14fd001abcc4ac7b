"""From a completion queue to trio."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from spear_transport_grpc._bridge._core import cygrpc

__all__ = ["Poller", "Waiter"]

Event = Any
"""``cygrpc``'s description of something that is complete; its ``tag`` is what we gave it."""
_MOST_AT_ONCE = 32
"""Events that are handled before other tasks have a turn."""
_EMPTY_LOOKS = 2
"""How often trio looks in vain, with a turn of the other tasks in between, before it sleeps."""
_BURST = 8
"""Events in one go, after which as many are expected the next time: two calls have no more."""
_log = logging.getLogger("spear.transport-grpc")


class Poller:
    """Takes events off a completion queue and calls their tags within trio.

    A thread of ours waits in C-core and hands what it finds to trio, in batches: waking trio costs
    more than the work. When many calls are under way, trio looks into the queue by itself and the
    thread rests until there is nothing more for a while: two threads that both want the interpreter
    at every event would cost each call much of its time.

    :param wait: waits for the next event.
    :param last: whether this event is the queue's last one.
    :param look: the next event, or one of the type ``queue_timeout``; never waits.
    :param crowded: whether many calls are under way.
    """

    def __init__(
        self,
        wait: Callable[[], Event],
        last: Callable[[Event], bool],
        *,
        look: Callable[[], Event] | None = None,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._wait = wait
        self._last = last
        self._look = look
        self._crowded = crowded
        self._token = trio.lowlevel.current_trio_token()
        self._events: deque[Event] = deque()
        self._called = False
        self._looking = False
        self._in_vain = 0
        self._burst = self._handled = 0
        self._rest = threading.Semaphore(0)
        self._finished = False
        self._over = trio.Event()
        self._thread = threading.Thread(target=self._run, name="spear-grpc", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the queue's last event."""
        self._thread.start()

    async def wait_over(self) -> None:
        """Wait until every event has been delivered and the thread has ended."""
        await self._over.wait()
        self._thread.join()  # it has nothing left to do but return

    def _may_look(self) -> bool:
        return (
            self._look is not None
            and (self._burst > _BURST or self._crowded())
            and not self._finished
        )

    # ---- the thread

    def _run(self) -> None:
        timeout = cygrpc.CompletionType.queue_timeout
        while not self._finished:
            if self._looking:
                self._rest.acquire()
                continue
            event = self._wait()
            if event.completion_type == timeout:
                continue
            self._finished = self._last(event)
            self._events.append(event)
            if not self._called:
                # the rest of a crowd is trio's: taking it here, an event at a time, would wrest
                # the interpreter from the very work that trio does meanwhile
                self._looking = self._may_look()
                self._called = True
                self._call_trio(self._deliver)
        self._call_trio(self._over.set)

    def _call_trio(self, function: Callable[[], object]) -> None:
        # when trio is gone, go on emptying the queue, or C-core could not shut down
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    # ---- trio

    def _deliver(self) -> None:
        if self._looking:
            self._empty()
            self._look_around()
            return
        self._called = False  # before looking, so that what comes from now on calls again
        self._empty()
        if self._look is not None and not self._finished:
            self._take_complete()  # what was just begun often is, at once
        self._end_burst()
        if self._may_look():
            self._looking = self._called = True
            self._token.run_sync_soon(self._deliver)

    def _empty(self) -> None:
        while self._events:
            self._handle(self._events.popleft())

    def _look_around(self) -> None:
        """Take what there is, without waiting, and come again after a turn of the other tasks."""
        self._in_vain = 0 if self._take_complete() else self._in_vain + 1
        if self._in_vain < _EMPTY_LOOKS and not self._finished:
            self._token.run_sync_soon(self._deliver)
            return
        self._in_vain = 0
        self._end_burst()
        self._looking = self._called = False
        self._rest.release()
        self._empty()  # what the thread has put there meanwhile

    def _take_complete(self) -> int:
        """Handle what is complete, without waiting; how much that was."""
        assert self._look is not None
        for count in range(_MOST_AT_ONCE):
            event = self._look()
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                return count
            self._handle(event)
            self._finished = self._finished or self._last(event)
        return _MOST_AT_ONCE

    def _end_burst(self) -> None:
        self._burst, self._handled = self._handled, 0

    def _handle(self, event: Event) -> None:
        self._handled += 1
        if event.tag is None:
            return
        try:
            event.tag(event)
        except Exception:  # barrier: one event; raising here would end the whole trio run
            _log.exception("an event of gRPC could not be handled")


class Waiter:
    """Where at most one task waits to be woken from within trio's own thread."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self, what: str) -> None:
        """Wait for :meth:`wake`. **Raises** :exc:`trio.BusyResourceError` when somebody does."""
        if self._task is not None:
            raise trio.BusyResourceError(f"another task is {what}")
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Let the waiting task go on, if there is one."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
