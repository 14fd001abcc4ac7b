"""Runs handlers for the peer's requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from spear_core.api import Message, MessageFlag, MessageKind, OwnedFd
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


_FEW = 8
_SMALL = 4096
_SOON_S = 0.0005
"""Small answers go together, so many at once at most, and none of them waits for longer for others
that are about to be ready. A system call that wakes the peer takes a tenth of a small request."""
_MOST_UNREAD = 64 << 20
"""While large answers of so many bytes wait for the peer to read, no other request begins."""
_FILE_COUNTS = 1 << 20
"""As so many bytes: a process has few descriptors, and memory may go with each."""


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
    :param send_many: sends several small ones.
    """

    def __init__(
        self,
        respond: Callable[[int, Answer], Awaitable[None]],
        send_many: Callable[[Sequence[Message]], Awaitable[None]],
    ) -> None:
        self._respond = respond
        self._send_many = send_many
        self._starting = 0
        """Servants that have a request and were not scheduled since."""
        self._ready: list[Message] = []
        self._ready_since = 0.0
        self._sending = False
        self._sender = trio.lowlevel.ParkingLot()
        self._has_sender = False
        self._over = False
        self._under_way: dict[int, trio.CancelScope | None] = {}
        self._free: list[_Servant] = []
        self._unread = 0
        """Bytes of large answers that are not sent yet."""
        self._until_read = trio.lowlevel.ParkingLot()
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
        self._starting += 1

    def cancel(self, id_: int) -> bool:
        """Cancel the handler of this request; False when there is no such request."""
        if (scope := self._under_way.get(id_)) is not None:
            scope.cancel()
        return id_ in self._under_way

    def cancel_all(self) -> None:
        """Cancel every handler, at the session's end."""
        self._over = True
        self._answered(self._take_ready())
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
                self._starting -= 1
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
        if self._unread >= _MOST_UNREAD:
            await self._wait_read()
        try:
            reply = await job.work()
            return 0, encode_small_head(reply.head), reply.payload, reply.fd
        except SpearError as exc:
            error = exc
        except Exception as exc:  # barrier: one request
            _log.exception("the handler of %s failed", job.method)
            error = exc
        return MessageFlag.ERROR, error_to_head(error), b"", None

    async def _wait_read(self) -> None:
        """A peer that asks and does not read must not fill this process with answers."""
        while self._unread >= _MOST_UNREAD:
            await self._until_read.park()
        self._until_read.unpark()  # perhaps this one's answer is small, and wakes nobody

    async def _finish(self, id_: int, answer: Answer) -> None:
        self._under_way[id_] = None  # a cancellation that comes now comes too late
        flags, head, payload, fd = answer
        if fd is None and len(head) + len(payload) <= _SMALL:
            await self._send_soon(Message(MessageKind.RESPONSE, id_, flags, head, payload))
            return
        size = len(payload) + (_FILE_COUNTS if fd is not None else 0)
        self._unread += size
        try:
            await self._respond(id_, answer)
        except ChannelError:
            pass  # nobody is left to hear the answer
        finally:
            self._unread -= size
            self._until_read.unpark()
            if fd is not None:
                fd.close()
            self._forget(id_)

    def _forget(self, id_: int) -> None:
        del self._under_way[id_]
        if not self._under_way:
            self._none_left.unpark_all()

    async def _send_soon(self, answer: Message) -> None:
        """Send it now, or leave it to a servant that is about to have another one, or else to the
        sender."""
        now = time.perf_counter()
        if not self._ready:
            self._ready_since = now
        self._ready.append(answer)
        if (
            not self._starting
            or len(self._ready) >= _FEW
            or now - self._ready_since > _SOON_S
            or self._over
        ):
            await self._send_ready()
        elif self._has_sender:
            self._sender.unpark()
        else:
            assert self._nursery is not None
            self._has_sender = True
            self._nursery.start_soon(self._send_rest)

    async def _send_rest(self) -> None:
        """The sender: whoever was about to have another answer has to wait for it."""
        while True:
            await self._send_ready()
            await self._sender.park()

    async def _send_ready(self) -> None:
        if self._sending:
            return  # whoever does it takes these, too
        self._sending = True
        try:
            while self._ready:
                ready = self._take_ready()
                try:
                    await self._send_many(ready)
                except ChannelError:
                    pass  # nobody is left to hear the answers
                finally:
                    self._answered(ready)
        except trio.Cancelled:
            self._answered(self._take_ready())  # the session's end: nobody sends them now
            raise
        finally:
            self._sending = False

    def _take_ready(self) -> list[Message]:
        ready, self._ready = self._ready, []
        return ready

    def _answered(self, answers: Sequence[Message]) -> None:
        for answer in answers:
            self._forget(answer.id)


def _only_the_end(raise_cancel: object) -> trio.lowlevel.Abort:
    """A waiting servant is cancelled only when its session ends."""
    return trio.lowlevel.Abort.SUCCEEDED
