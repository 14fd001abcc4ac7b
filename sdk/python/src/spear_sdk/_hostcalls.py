"""What running code asks of the node: log entries and hostcalls."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading

from spear_sdk import _frames as f
from spear_sdk._context import Running
from spear_sdk._errors import HostcallError, TaskCancelledError, hostcall_error
from spear_sdk._msgpack import pack, unpack
from spear_sdk._report import shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from spear_sdk._channel import WorkerChannel
    from spear_sdk._context import Context

    Answer: TypeAlias = tuple[bytes, f.Descriptor | None]

__all__ = ["Hostcalls", "async_event"]

_MAX_LOG = 60_000


class _Pending:
    """A hostcall that waits for its answer."""

    __slots__ = ("blocking", "context", "done", "error", "fd", "payload", "wake")

    def __init__(
        self, context: Context, wake: Callable[[], object] | None, *, blocking: bool
    ) -> None:
        self.context = context
        self.wake = wake
        self.blocking = blocking
        self.done = False
        self.error: BaseException | None = None
        self.payload: f.Buffer = b""
        self.fd: f.Descriptor | None = None

    def finish(self) -> None:
        """The answer is there."""
        self.done = True
        if self.wake is not None:
            self.wake()

    def result(self) -> Answer:
        """The answer. Raises: HostcallError, TaskCancelledError."""
        if self.error is not None:
            raise self.error
        return bytes(self.payload), self.fd


class Hostcalls:
    """The worker's side of them; the host of its contexts."""

    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel
        self._main_thread = threading.get_ident()
        self._numbers = itertools.count(2, 2)
        self._pending: dict[int, _Pending] = {}

    def log(self, context: Context, level: str, message: str, *, source: str = "") -> None:
        """Send one log entry; what is too long for one is cut.

        :param source: ``stdout`` or ``stderr`` for what was printed.
        """
        entry = {
            "execution_id": context.execution_id,
            "level": level,
            "message": shortened(message, _MAX_LOG),
        }
        if source:
            entry["source"] = source
        self._channel.send(f.NOTICE, 0, pack({"method": "log", "args": entry}))

    @property
    def passes_fds(self) -> bool:
        """Whether file descriptors can go along."""
        return self._channel.passes_fds

    def hostcall(self, context: Context, name: str, payload: bytes) -> bytes:
        """Make a hostcall; the main thread reads the channel itself while it waits."""
        return self.exchange(context, name, payload, None)[0]

    async def ahostcall(self, context: Context, name: str, payload: bytes) -> bytes:
        """The same on the event loop that runs here, which is asyncio's or trio's."""
        return (await self.aexchange(context, name, payload, None))[0]

    def exchange(self, context: Context, name: str, payload: bytes, fd: int | None) -> Answer:
        """:meth:`hostcall` with a file going along, and perhaps one coming back."""
        if threading.get_ident() == self._main_thread:
            pending = _Pending(context, None, blocking=True)
            number = self._begin(pending, name, payload, fd)
            self._read_until(pending, number)
        else:
            answered = threading.Event()
            pending = _Pending(context, answered.set, blocking=True)
            self._begin(pending, name, payload, fd)
            answered.wait()
        return pending.result()

    async def aexchange(
        self, context: Context, name: str, payload: bytes, fd: int | None
    ) -> Answer:
        """:meth:`exchange` on the event loop."""
        wait, wake = async_event()
        pending = _Pending(context, wake, blocking=False)
        number = self._begin(pending, name, payload, fd)
        try:
            await wait()
        finally:
            self._abandon(number)
        return pending.result()

    def on_response(self, number: int, flags: int, head: bytes, payload: f.Buffer) -> None:
        """The node has answered."""
        pending = self._pending.pop(number, None)
        if pending is None:
            return  # nobody waits any more
        if flags & f.ERROR:
            pending.error = hostcall_error(unpack(head))
        pending.payload = payload
        pending.fd = self._channel.take_fd()
        if pending.fd is not None and pending.fd.number < 0:
            pending.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pending.finish()

    def cancel(self, context: Context, *, only_blocking: bool) -> None:
        """End the hostcalls of a cancelled execution."""
        for number, pending in list(self._pending.items()):
            if pending.context is context and (pending.blocking or not only_blocking):
                pending.error = TaskCancelledError("the task was cancelled")
                pending.done = True  # before it is off the list, where its own thread looks for it
                self._abandon(number)
                pending.finish()

    def _begin(self, pending: _Pending, name: str, payload: bytes, fd: int | None) -> int:
        context = pending.context
        if not Running.has(context):
            raise RuntimeError(f"hostcall {name}: the execution it belongs to has ended")
        if len(payload) > self._channel.max_payload:
            raise HostcallError(
                f"{name}: {len(payload)} bytes are more than the node takes",
                name="ResourceExhaustedError",
                code="resource_exhausted",
            )
        number = next(self._numbers)
        self._pending[number] = pending
        args: dict[str, object] = {"execution_id": context.execution_id, "name": name}
        if self.passes_fds:
            args["takes_fd"] = True
        head = pack({"method": "hostcall", "args": args})
        try:
            if fd is None:
                self._channel.send(f.REQUEST, number, head, payload)
            else:
                self._channel.send_with_fd(number, head, payload, fd)
        except BaseException:
            self._pending.pop(number, None)
            raise
        if context.cancelled:  # it may have come before the call was on the list
            self.cancel(context, only_blocking=True)
        return number

    def _read_until(self, pending: _Pending, number: int) -> None:
        watched = self._channel.unwatch()
        try:
            while not pending.done:
                self._channel.read()
        finally:
            self._abandon(number)
            if watched:
                self._channel.watch()

    def _abandon(self, number: int) -> None:
        """Tell the node that nobody waits for this answer, if it is still to come."""
        if self._pending.pop(number, None) is not None:
            self._channel.send(f.CANCEL, number, pack({"reason": "cancelled"}))


def async_event() -> tuple[Callable[[], Any], Callable[[], object]]:
    """A coroutine function that waits, and a function for any thread that ends the wait."""
    asyncio: Any = sys.modules.get("asyncio")
    with contextlib.suppress(RuntimeError):  # another kind of loop runs here
        if asyncio is not None:
            loop, event = asyncio.get_running_loop(), asyncio.Event()
            return event.wait, lambda: loop.call_soon_threadsafe(event.set)
    import trio

    token = trio.lowlevel.current_trio_token()
    trio_event = trio.Event()
    return trio_event.wait, lambda: token.run_sync_soon(trio_event.set)
