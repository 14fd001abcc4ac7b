"""From a completion queue's thread to trio."""

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
_log = logging.getLogger("spear.transport-grpc")


class Poller:
    """A thread that takes events off a completion queue and has trio call their tags.

    Events that come close together cross in one batch: waking trio costs more than the work.

    :param poll: waits for the next event.
    :param last: whether this event is the queue's last one.
    """

    def __init__(self, poll: Callable[[], Event], last: Callable[[Event], bool]) -> None:
        self._poll = poll
        self._last = last
        self._token = trio.lowlevel.current_trio_token()
        self._events: deque[Event] = deque()
        self._called = False
        self._over = trio.Event()
        self._thread = threading.Thread(target=self._run, name="spear-grpc", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the queue's last event."""
        self._thread.start()

    async def wait_over(self) -> None:
        """Wait until every event has been delivered and the thread has ended."""
        await self._over.wait()
        self._thread.join()  # it has nothing left to do but return

    def _run(self) -> None:
        timeout = cygrpc.CompletionType.queue_timeout
        over = False
        while not over:
            event = self._poll()
            if event.completion_type == timeout:
                continue
            over = self._last(event)
            self._events.append(event)
            if not self._called:
                self._called = True
                self._call_trio(self._deliver)
        self._call_trio(self._over.set)

    def _call_trio(self, function: Callable[[], object]) -> None:
        # when trio is gone, go on emptying the queue, or C-core could not shut down
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def _deliver(self) -> None:
        self._called = False  # before looking, so that what comes from now on calls again
        while self._events:
            event = self._events.popleft()
            if event.tag is None:
                continue
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
