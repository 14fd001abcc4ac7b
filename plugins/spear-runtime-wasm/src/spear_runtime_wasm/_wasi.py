"""WASI preview 1: wasmtime's own, with the functions that touch the outside replaced by ours.

stdin is the input, stdout the output, stderr the log; sleeping gives the thread up; the monotonic
clock starts at zero. There are no files, no directories and no sockets.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from functools import partial

import trio

from ._execution import Execution, ExitError, OutputLimitError
from ._ffi import Guest, GuestMemoryError, Linker
from ._hostcalls import I32, I64, NOTHING, HostCall, define_all

MODULE = "wasi_snapshot_preview1"

SUCCESS, BADF, FAULT, INVAL = 0, 8, 21, 28
STDIN, STDOUT, STDERR = 0, 1, 2
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU = 0, 1, 2, 3
ABSOLUTE = 1
MAX_VECTORS = 1024
MAX_WRITE = 4 << 20
"""Bytes taken by one call; the guest's libc writes the rest with the next."""
MAX_SUBSCRIPTIONS = 1024

_U32 = 0xFFFF_FFFF
_PAIR = struct.Struct("<II")
_SUBSCRIPTION = struct.Struct("<QB7xI4xQQH6x")
"""userdata, tag, then of a clock: id, timeout, precision, flags; of an fd: fd and nothing else."""
_EVENT = struct.Struct("<QHB5xQH6x")
_CLOCK = 0

Poll = tuple[list[tuple[float, bytes]], list[bytes]]
"""Clocks, each with its seconds and its event, and the events of what is ready."""


def fd_write(guest: Guest, fd: int, vectors: int, count: int, written: int) -> int:
    if fd not in (STDOUT, STDERR):
        return BADF
    data = gather(guest, vectors, count, written)
    if isinstance(data, int):
        return data
    execution: Execution = guest.host
    if fd == STDERR:
        execution.add_lines(data, "error", "stderr")
    elif not execution.stdio_is_payload:
        execution.add_lines(data, "info", "stdout")
    elif len(data) > execution.room:
        raise OutputLimitError(f"it wrote more than {execution.max_output} bytes of output")
    else:
        execution.output += data
    return SUCCESS


def gather(guest: Guest, vectors: int, count: int, written: int) -> bytes | int:
    """What a write call is about, its length noted for the guest; or an error number."""
    parts, room = [], MAX_WRITE
    try:
        for ptr, length in vectors_at(guest, vectors, count):
            parts.append(guest.read(ptr, min(length, room)))
            room -= len(parts[-1])
        data = b"".join(parts)
        guest.write_u32(written & _U32, len(data))
    except GuestMemoryError:
        return FAULT
    except ValueError:
        return INVAL
    return data


def fd_read(guest: Guest, fd: int, vectors: int, count: int, read: int) -> int:
    if fd != STDIN:
        return BADF
    execution: Execution = guest.host
    payload = execution.request.payload if execution.stdio_is_payload else b""
    start = position = execution.input_position
    try:
        for ptr, length in vectors_at(guest, vectors, count):
            part = payload[position : position + length]
            guest.write(ptr, part)
            position += len(part)
        guest.write_u32(read & _U32, position - start)
    except GuestMemoryError:
        return FAULT
    except ValueError:
        return INVAL
    execution.input_position = position
    return SUCCESS


def proc_exit(guest: Guest, code: int) -> int:
    raise ExitError(code & _U32)


def clock_time_get(guest: Guest, clock: int, precision: int, out: int) -> int:
    if not REALTIME <= clock <= THREAD_CPU:
        return INVAL
    try:
        guest.write(out & _U32, _clock(guest.host, clock).to_bytes(8, "little"))
    except GuestMemoryError:
        return FAULT
    return SUCCESS


def poll_oneoff(guest: Guest, subscriptions: int, events: int, count: int, stored: int) -> object:
    """Wait for the first of some clocks. stdin, stdout and stderr are always ready."""
    asked = read_poll(guest, subscriptions, count)
    return asked if isinstance(asked, int) else answer_poll(guest, asked, (events, stored))


def read_poll(guest: Guest, subscriptions: int, count: int, *, stdin: bool = True) -> Poll | int:
    """What a poll asks for: clocks, and the events of what is ready; or an error number.

    :param stdin: whether that is ready; otherwise it is left out.
    """
    if not 0 < count <= MAX_SUBSCRIPTIONS:
        return INVAL
    execution: Execution = guest.host
    try:
        raw = guest.read(subscriptions & _U32, count * _SUBSCRIPTION.size)
    except GuestMemoryError:
        return FAULT
    clocks, ready = [], []
    for userdata, tag, what, timeout, _, flags in _SUBSCRIPTION.iter_unpack(raw):
        if tag == _CLOCK:
            now = _clock(execution, what) if flags & ABSOLUTE else 0
            clocks.append((max(0, timeout - now) / 1e9, _EVENT.pack(userdata, SUCCESS, tag, 0, 0)))
        elif what != STDIN or stdin:
            errno = SUCCESS if what in (STDIN, STDOUT, STDERR) else BADF
            room = execution.input_left if what == STDIN else 1 << 16
            ready.append(_EVENT.pack(userdata, errno, tag, room, 0))
    return clocks, ready


def answer_poll(guest: Guest, asked: Poll, where: tuple[int, int]) -> object:
    """Store what is ready; if nothing is, the first of the clocks once it is due."""
    clocks, ready = asked
    if ready:
        clocks = [(seconds, event) for seconds, event in clocks if not seconds]
    else:
        first = min(seconds for seconds, _ in clocks)
        clocks = [(seconds, event) for seconds, event in clocks if seconds <= first]
        if first > 0:
            data = b"".join(event for _, event in clocks)
            return partial(_sleep_then_store, guest, first, where, data)
    return store_poll(guest, where, b"".join([*ready, *(event for _, event in clocks)]))


async def _sleep_then_store(
    guest: Guest, seconds: float, where: tuple[int, int], data: bytes
) -> int:
    await trio.sleep(seconds)
    return store_poll(guest, where, data)


def store_poll(guest: Guest, where: tuple[int, int], data: bytes) -> int:
    """Give the guest these events."""
    events, stored = where
    try:
        guest.write(events & _U32, data)
        guest.write_u32(stored & _U32, len(data) // _EVENT.size)
    except GuestMemoryError:
        return FAULT
    return SUCCESS


def _clock(execution: Execution, clock: int) -> int:
    if clock == REALTIME:
        return time.time_ns()
    if clock == MONOTONIC:
        return execution.monotonic_ns()
    return int(execution.meter.used * 1e9)


def vectors_at(guest: Guest, ptr: int, count: int) -> list[tuple[int, int]]:
    """The (pointer, length) pairs at `ptr`. Raises ValueError for too many."""
    if not 0 <= count <= MAX_VECTORS:
        raise ValueError(count)
    return list(_PAIR.iter_unpack(guest.read(ptr & _U32, count * _PAIR.size)))


OVERRIDES: Mapping[str, HostCall] = {
    "fd_write": HostCall((I32, I32, I32, I32), (I32,), fd_write),
    "fd_read": HostCall((I32, I32, I32, I32), (I32,), fd_read),
    "proc_exit": HostCall((I32,), NOTHING, proc_exit),
    "clock_time_get": HostCall((I32, I64, I32), (I32,), clock_time_get),
    "poll_oneoff": HostCall((I32, I32, I32, I32), (I32,), poll_oneoff, waits=True),
}


def define_wasi(linker: Linker) -> None:
    linker.define_wasi()
    define_all(linker, MODULE, OVERRIDES)
