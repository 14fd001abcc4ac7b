"""A channel over any connected stream socket.

The system call comes first and trio only when it would block, which costs a quarter of what
``trio.SocketStream`` does for small messages.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

import attrs
import trio

from spear_core.api import Channel, ChannelStatistics, Message, MessageFlag, OwnedFd
from spear_core.errors import ChannelBrokenError, ChannelClosedError, ProtocolError
from spear_core.rpc._fd_passing import FdsInFlightError, IncomingFds, send_with_fd
from spear_core.rpc.framing import HEADER_SIZE, MAX_FRAME, FrameParser, encode_header

__all__ = ["SocketChannel"]

_JOIN_UP_TO = 16 << 10
"""Up to this size copying into one buffer is cheaper than a gathering write."""
_YIELD_EVERY = 32
"""Calls that need not wait between two that let other tasks run; a pass of trio's scheduler costs
more than moving a small message."""
_FDS_PAUSE_S = 0.01
"""Between two tries when the kernel takes no more descriptors: nothing tells when it would."""
_TAIL_GRACE_S = 1.0
"""How long closing waits for the rest of a frame whose sender was cancelled."""

_Buffer = bytes | bytearray | memoryview


class SocketChannel(Channel):
    """Messages over a connected ``SOCK_STREAM`` socket, which it owns from now on.

    A send that is cancelled in the middle of a frame hands the rest to a background task, so that
    the caller leaves at once and the stream stays whole; later sends queue up behind it.
    """

    def __init__(self, sock: socket.socket, *, max_frame: int = MAX_FRAME) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_frame = max_frame
        self._parser = FrameParser(max_frame=max_frame)
        self._closed = False
        self._broken = ""
        self._ended = False
        self._receiving = False
        self._taken = 0
        """Messages out of what was read last, …"""
        self._read_all = False
        """… which was all there was then."""
        self._writing = False
        self._turns = trio.lowlevel.ParkingLot()
        self._tail: trio.Event | None = None
        self._calls = 0
        self._fds: IncomingFds | None = None
        self._sent = self._received = self._bytes_sent = self._bytes_received = 0

    @property
    def socket(self) -> socket.socket:
        """The socket, to ask it who is at the other end; not for reading, writing or closing."""
        return self._sock

    async def send(self, message: Message) -> None:
        await self._checkpoint()
        if message.fd is not None or self._fds is not None:
            message = self._announced(message)
        if message.fd is not None:
            await self._send_with(message, message.fd)
            return
        header = encode_header(message, max_frame=self._max_frame)
        head, payload = message.head, message.payload
        size = len(head) + len(payload)
        if self._writing:
            await self._turns.park()  # whoever wakes us hands the writing side over
        self._writing = True
        try:
            self._check_writable()
            if size <= _JOIN_UP_TO:
                data = b"".join((header, head, payload))
                if (done := self._write(data)) < len(data):
                    await self._write_rest([data], done)
            else:
                first = header + head
                if (done := self._write(first, payload)) < HEADER_SIZE + size:
                    await self._write_rest([first, payload], done)
        finally:
            if self._tail is None:
                self._pass_on()
        self._sent += 1
        self._bytes_sent += size

    async def send_many(self, messages: Sequence[Message]) -> None:
        parts: list[_Buffer] = []
        size = 0
        for message in messages:
            if message.fd is not None or message.flags & MessageFlag.FD:
                await super().send_many(messages)
                return
            parts += (encode_header(message, max_frame=self._max_frame), message.head)
            parts.append(message.payload)
            size += len(message.head) + len(message.payload)
        if size > _JOIN_UP_TO:
            await super().send_many(messages)
            return
        await self._checkpoint()
        if self._writing:
            await self._turns.park()
        self._writing = True
        try:
            self._check_writable()
            data = b"".join(parts)
            if (done := self._write(data)) < len(data):
                await self._write_rest([data], done)
        finally:
            if self._tail is None:
                self._pass_on()
        self._sent += len(messages)
        self._bytes_sent += size

    async def receive(self) -> Message:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        await self._checkpoint()
        self._receiving = True
        try:
            while (message := self._next_message()) is None:
                await self._fill()
        finally:
            self._receiving = False
        self._taken += 1
        self._received += 1
        self._bytes_received += len(message.head) + len(message.payload)
        return message

    async def aclose(self) -> None:
        if not self._closed:
            try:
                if self._tail is not None:
                    with trio.move_on_after(_TAIL_GRACE_S):
                        await self._tail.wait()
            finally:
                self._close()
        await trio.lowlevel.checkpoint()

    @property
    def is_connected(self) -> bool:
        if self._closed or self._broken or self._ended:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return not poll.poll(0)

    @property
    def can_pass_fds(self) -> bool:
        return self._sock.family == socket.AF_UNIX

    @property
    def passes_fds(self) -> bool:
        return self._fds is not None

    def pass_fds(self) -> None:
        if not self.can_pass_fds:
            raise ValueError("file descriptors pass through Unix sockets only")
        if self._fds is None:
            self._fds = IncomingFds()

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            messages_sent=self._sent,
            messages_received=self._received,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )

    async def _checkpoint(self) -> None:
        self._calls += 1
        if self._calls % _YIELD_EVERY:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            if self._fds is not None:
                self._fds.close()

    def _check_writable(self) -> None:
        if self._closed:
            raise ChannelClosedError("this side has closed the channel")
        if self._broken:
            raise ChannelBrokenError(self._broken)

    def _break(self, reason: str) -> ChannelBrokenError:
        self._broken = self._broken or reason
        return ChannelBrokenError(self._broken)

    def _pass_on(self) -> None:
        """Let the next sender write; it sees for itself whether the channel still lives."""
        if self._turns:
            self._turns.unpark()
        else:
            self._writing = False

    def _announced(self, message: Message) -> Message:
        """The message as its frame has it. **Raises** :exc:`ValueError` where that cannot be."""
        if message.fd is None:
            if message.flags & MessageFlag.FD:
                raise ValueError("the flag FD, and no file descriptor")
            return message
        if self._fds is None:
            raise ValueError("file descriptors do not pass through this channel")
        return attrs.evolve(message, flags=message.flags | MessageFlag.FD)

    async def _send_with(self, message: Message, fd: OwnedFd) -> None:
        header = encode_header(message, max_frame=self._max_frame)
        buffers: list[_Buffer] = [header, message.head, message.payload]
        size = len(message.head) + len(message.payload)
        while True:
            if self._writing:
                await self._turns.park()
            self._writing = True
            try:
                self._check_writable()
                done = await self._write_with(fd, buffers)
                if done < HEADER_SIZE + size:
                    await self._write_rest(buffers, done)
                break
            except FdsInFlightError:
                pass  # perhaps other peers' doing, so everything else goes on meanwhile
            finally:
                if self._tail is None:
                    self._pass_on()
            await trio.sleep(_FDS_PAUSE_S)
        self._sent += 1
        self._bytes_sent += size

    async def _write_with(self, fd: OwnedFd, buffers: list[_Buffer]) -> int:
        """Write the beginning of a frame, the descriptor with its first byte."""
        while True:
            try:
                return send_with_fd(self._sock, buffers, fd)
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError:
                    raise ChannelClosedError("this side has closed the channel") from None
            except OSError as exc:
                raise self._break(f"the other side is gone ({exc.strerror})") from exc

    def _write(self, *buffers: _Buffer) -> int:
        """Write what fits without waiting and return its size."""
        try:
            if len(buffers) == 1:
                return self._sock.send(buffers[0])
            return self._sock.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._break(f"the other side is gone ({exc.strerror})") from exc

    async def _write_rest(self, buffers: list[_Buffer], done: int) -> None:
        try:
            while rest := _after(buffers, done):
                await trio.lowlevel.wait_writable(self._sock)
                done += self._write(*rest)
        except trio.Cancelled:
            if done and not self._closed:
                self._tail = trio.Event()
                data = b"".join(_after(buffers, done))  # the caller may reuse its buffers now
                trio.lowlevel.spawn_system_task(self._finish, data, self._tail)
            raise
        except trio.ClosedResourceError:
            raise ChannelClosedError("this side has closed the channel") from None

    async def _finish(self, data: bytes, finished: trio.Event) -> None:
        """Write the rest of a frame whose sender is gone."""
        view = memoryview(data)
        try:
            while view:
                await trio.lowlevel.wait_writable(self._sock)
                view = view[self._write(view) :]
        except (ChannelBrokenError, trio.ClosedResourceError):
            pass  # the next send or receive finds out
        finally:
            self._tail = None
            finished.set()
            self._pass_on()

    def _next_message(self) -> Message | None:
        if self._closed:
            raise ChannelClosedError("this side has closed the channel")
        try:
            message = self._parser.next_message()
            if self._fds is not None:
                return self._fds.attach(message, mid_frame=self._parser.mid_frame)
            return message
        except ProtocolError as exc:
            self._refuse(exc)
            raise

    def _refuse(self, exc: ProtocolError) -> None:
        self._break(f"the other side broke the protocol: {exc.message}")

    async def _fill(self) -> None:
        """Read something; wait only when there is nothing.

        Who sent one message only will hardly have sent another meanwhile.
        """
        if not self._ended:
            if self._read_all and self._taken == 1:
                self._read_all = False
                await self._wait_readable()
            buffer = self._parser.get_buffer()
            try:
                if self._fds is None:
                    count = self._sock.recv_into(buffer)
                else:
                    count = self._fds.receive(self._sock, buffer)
            except ProtocolError as exc:
                self._refuse(exc)
                raise
            except BlockingIOError:
                await self._wait_readable()
                return
            except ConnectionResetError:
                count = 0
            except OSError as exc:
                raise self._break(f"reading failed ({exc.strerror})") from exc
            self._taken, self._read_all = 0, count < len(buffer)
            self._parser.received(count)
            if count:
                return
            self._ended = True
        if self._parser.mid_frame:
            raise self._break("the other side vanished in the middle of a message")
        raise trio.EndOfChannel

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            raise ChannelClosedError("this side has closed the channel") from None


def _after(buffers: list[_Buffer], done: int) -> list[_Buffer]:
    """The buffers without their first ``done`` bytes."""
    rest: list[_Buffer] = []
    for buffer in buffers:
        if done < len(buffer):
            rest.append(memoryview(buffer)[done:])
        done = max(0, done - len(buffer))
    return rest
