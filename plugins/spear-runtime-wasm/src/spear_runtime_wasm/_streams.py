"""Streamed executions: input and output calls that wait, instead of a whole input and output.

They are definitions of their own on a linker of their own, so that a plain call pays nothing for
them. None of them does its work in the callback, which may be on a worker's thread: all of it is
left for the trio task that polls the guest, while the guest lies still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio

from spear_core.api import MAX_CHUNK
from spear_core.errors import ChannelClosedError
from spear_core.rpc import FarEnd

from . import _wasi
from ._execution import Execution
from ._ffi import Guest, GuestMemoryError, Linker
from ._hostcalls import E2BIG, EFAULT, EPIPE, HOSTCALLS, HostCall, define_all, put
from ._hostcalls import MODULE as SPEAR

WASI_PIPE = 64


class TooMuchInputError(Exception):
    """A guest that takes its input whole was sent more than that may be."""


class GuestStream:
    """The far end of a stream, read as bytes or chunk by chunk."""

    def __init__(self, far: FarEnd) -> None:
        self._far = far
        self._chunk = b""
        self._ended = False

    @property
    def ready(self) -> bool:
        """Whether :meth:`fill` would not wait."""
        return bool(self._chunk) or self._ended or self._far.input_ready

    @property
    def available(self) -> int:
        """Bytes of the present chunk, or 1 when there is one that nobody has looked at."""
        return len(self._chunk) or int(self.ready and not self._ended)

    async def wait(self) -> None:
        """Wait until then."""
        if not self.ready:
            await self._far.wait_input()

    async def fill(self) -> bytes:
        """What is left of the present chunk, else the next one; empty at the end of the input."""
        while not self._chunk and not self._ended:
            try:
                self._chunk = await self._far.receive()
            except trio.EndOfChannel:
                self._ended = True
        return self._chunk

    def used(self, count: int) -> None:
        """So many bytes of the present chunk are read."""
        self._chunk = self._chunk[count:]

    async def send(self, data: bytes) -> bool:
        """Send a chunk; False when nobody wants it any more."""
        try:
            await self._far.send(data)
        except ChannelClosedError:
            return False
        return True


async def receive_all(far: FarEnd, limit: int) -> bytes:
    """The whole input. Raises TooMuchInputError."""
    parts, size = [], 0
    try:
        while True:
            parts.append(await far.receive())
            size += len(parts[-1])
            if size > limit:
                raise TooMuchInputError(
                    f"it takes its input whole, and that has more than {limit} bytes"
                )
    except trio.EndOfChannel:
        return b"".join(parts)


async def send_all(far: FarEnd, output: bytes) -> None:
    """An output as one chunk, or as few as it takes."""
    for start in range(0, len(output), MAX_CHUNK):
        await far.send(output[start : start + MAX_CHUNK])


def _stream(guest: Guest) -> GuestStream:
    execution: Execution = guest.host
    assert execution.stream is not None
    return execution.stream


# spear --------------------------------------------------------------------------------------------


def input_len(guest: Guest) -> object:
    async def work() -> int:
        return len(await _stream(guest).fill())

    return work


def input_read(guest: Guest, out_ptr: int, out_len_ptr: int) -> object:
    async def work() -> int:
        stream = _stream(guest)
        chunk = await stream.fill()
        result = put(guest, out_ptr, out_len_ptr, chunk)
        if result >= 0:
            stream.used(len(chunk))
        return result

    return work


def output_write(guest: Guest, ptr: int, length: int) -> object:
    if length > MAX_CHUNK:
        return E2BIG
    try:
        data = guest.read(ptr, length)
    except GuestMemoryError:
        return EFAULT

    async def work() -> int:
        return 0 if await _stream(guest).send(data) else EPIPE

    return work


# WASI ---------------------------------------------------------------------------------------------


def fd_read(guest: Guest, fd: int, vectors: int, count: int, read: int) -> object:
    if fd != _wasi.STDIN or not guest.host.stdio_is_payload:
        return _wasi.fd_read(guest, fd, vectors, count, read)
    try:
        wanted = _wasi.vectors_at(guest, vectors, count)
    except GuestMemoryError:
        return _wasi.FAULT
    except ValueError:
        return _wasi.INVAL

    async def work() -> int:
        stream = _stream(guest)
        chunk = await stream.fill() if any(length for _, length in wanted) else b""
        position = 0
        try:
            for ptr, length in wanted:
                part = chunk[position : position + length]
                guest.write(ptr, part)
                position += len(part)
            guest.write_u32(read & 0xFFFF_FFFF, position)
        except GuestMemoryError:
            return _wasi.FAULT
        stream.used(position)
        return _wasi.SUCCESS

    return work


def fd_write(guest: Guest, fd: int, vectors: int, count: int, written: int) -> object:
    if fd != _wasi.STDOUT or not guest.host.stdio_is_payload:
        return _wasi.fd_write(guest, fd, vectors, count, written)
    data = _wasi.gather(guest, vectors, count, written)
    if isinstance(data, int):
        return data
    if not data:
        return _wasi.SUCCESS

    async def work() -> int:
        return _wasi.SUCCESS if await _stream(guest).send(data) else WASI_PIPE

    return work


def poll_oneoff(guest: Guest, subscriptions: int, events: int, count: int, stored: int) -> object:
    """As without a stream, but stdin is ready only when there is something to read."""
    stream, where = _stream(guest), (events, stored)
    if stream.ready or not guest.host.stdio_is_payload:
        return _wasi.poll_oneoff(guest, subscriptions, events, count, stored)
    asked = _wasi.read_poll(guest, subscriptions, count, stdin=False)
    if isinstance(asked, int):
        return asked
    clocks, ready = asked
    if ready or len(clocks) == count:
        return _wasi.answer_poll(guest, asked, where)

    async def work() -> int:
        first = min((seconds for seconds, _ in clocks), default=math.inf)
        with trio.move_on_after(first):
            await stream.wait()
        now = _wasi.read_poll(guest, subscriptions, count) if stream.ready else asked
        if isinstance(now, int):
            return now
        due = [event for seconds, event in clocks if seconds <= first] if not stream.ready else []
        return _wasi.store_poll(guest, where, b"".join([*now[1], *due]))

    return work


CALLS: Mapping[str, HostCall] = {
    name: HOSTCALLS[name]._replace(function=function, waits=True)
    for name, function in (
        ("input_len", input_len),
        ("input_read", input_read),
        ("output_write", output_write),
    )
}
OVERRIDES: Mapping[str, HostCall] = {
    name: _wasi.OVERRIDES[name]._replace(function=function, waits=True)
    for name, function in (
        ("fd_read", fd_read),
        ("fd_write", fd_write),
        ("poll_oneoff", poll_oneoff),
    )
}


def define_streams(linker: Linker) -> None:
    """Put them over the plain ones."""
    define_all(linker, SPEAR, CALLS)
    define_all(linker, _wasi.MODULE, OVERRIDES)
