"""Runs handlers for the peer's requests."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs
import trio

from spear_core.api import MessageFlag, OwnedFd
from spear_core.errors import ChannelError, SpearError, TaskCancelledError
from spear_core.rpc.codec import encode_small_head, error_to_head

__all__ = ["Answer", "Call", "Job", "Payload", "Reply", "Servants"]

Payload = bytes | bytearray | memoryview
Answer: TypeAlias = tuple[int, bytes, Payload, OwnedFd | None]
"""Flags, head, payload and a file of a RESPONSE."""

_KEPT = 128
"""Tasks that stay for the next request. Waking one costs half of what a new one does, with its
cancel scope."""

_log = logging.getLogger("spear.rpc")


@attrs.frozen
class Call:
    """A request or a notice from the peer."""

    method: str
    args: dict[str, Any] = attrs.field(factory=dict)
    payload: Payload = b""
    fd: OwnedFd | None = None
    """A file that came with a request; closed when the handler has ended."""


@attrs.frozen
class Reply:
    """The answer to a request."""

    head: dict[str, Any] = attrs.field(factory=dict)
    payload: Payload = b""
    fd: OwnedFd | None = None
    """A file that goes with it, closed once it has gone; for whoever asked, it is his to close."""


@attrs.frozen
class Job:
    """One request and what answers it."""

    id: int
    method: str
    work: Callable[[], Awaitable[Reply]]


class _Servant:
    """A task that serves one request after the other."""

    __slots__ = ("job", "scope", "task")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None


class Servants:
    """The peer's requests under way, each in a task that its cancellation reaches alone.

    :param respond: sends the answer to the request with this id.
    """

    def __init__(self, respond: Callable[[int, Answer], Awaitable[None]]) -> None:
        self._respond = respond
        self._under_way: dict[int, trio.CancelScope | None] = {}
        self._free: list[_Servant] = []
        self._nursery: trio.Nursery | None = None
        self._none_left = trio.lowlevel.ParkingLot()

    def __contains__(self, id_: object) -> bool:
        return id_ in self._under_way

    def __len__(self) -> int:
        return len(self._under_way)

    def open(self, nursery: trio.Nursery) -> None:
        """Where the tasks live; called once, before the first :meth:`start`."""
        self._nursery = nursery

    def start(self, job: Job) -> None:
        """Serve a request whose id is not under way."""
        if self._free:
            servant = self._free.pop()
            servant.job = job
            assert servant.task is not None
            trio.lowlevel.reschedule(servant.task)
            servant.task = None
        else:
            assert self._nursery is not None
            servant = _Servant(job)
            self._nursery.start_soon(self._serve_all, servant)
        self._under_way[job.id] = servant.scope

    def cancel(self, id_: int) -> bool:
        """Cancel the handler of this request; False when there is no such request."""
        if (scope := self._under_way.get(id_)) is not None:
            scope.cancel()
        return id_ in self._under_way

    def cancel_all(self) -> None:
        """Cancel every handler."""
        for scope in self._under_way.values():
            if scope is not None:
                scope.cancel()

    async def wait_idle(self) -> None:
        """Wait until no request is under way and every answer is sent."""
        while self._under_way:
            await self._none_left.park()
        await trio.lowlevel.checkpoint()

    async def _serve_all(self, servant: _Servant) -> None:
        answer: Answer | None = None
        with servant.scope:
            while True:
                answer = None
                answer = await self._answer(servant.job)
                if servant.scope.cancel_called:
                    break
                await self._finish(servant.job.id, answer)
                if len(self._free) >= _KEPT:
                    return
                self._free.append(servant)
                servant.task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(_only_the_end)
        if answer is None:
            error = TaskCancelledError(f"{servant.job.method} was cancelled by its caller")
            answer = MessageFlag.ERROR, error_to_head(error), b"", None
        await self._finish(servant.job.id, answer)

    async def _answer(self, job: Job) -> Answer:
        error: Exception
        try:
            reply = await job.work()
            return 0, encode_small_head(reply.head), reply.payload, reply.fd
        except SpearError as exc:
            error = exc
        except Exception as exc:  # barrier: one request
            _log.exception("the handler of %s failed", job.method)
            error = exc
        return MessageFlag.ERROR, error_to_head(error), b"", None

    async def _finish(self, id_: int, answer: Answer) -> None:
        self._under_way[id_] = None  # a cancellation that comes now comes too late
        try:
            await self._respond(id_, answer)
        except ChannelError:
            pass  # nobody is left to hear the answer
        finally:
            if (fd := answer[3]) is not None:
                fd.close()
            del self._under_way[id_]
            if not self._under_way:
                self._none_left.unpark_all()


def _only_the_end(raise_cancel: object) -> trio.lowlevel.Abort:
    """A waiting servant is cancelled only when its session ends."""
    return trio.lowlevel.Abort.SUCCEEDED
