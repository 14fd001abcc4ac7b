"""The `spear` imports of this version: log, time, input, output, context, calls, objects (guest ABI
4 and 17).

Every function takes the guest and plain integers and answers a number: 0 or more is success, less
is `-errno` of the ABI's own table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import trio

from ._calls import Call
from ._execution import MAX_LINE, Execution, random_i64
from ._ffi import Guest, GuestMemoryError, Linker

MODULE = "spear"
LEVELS = ("trace", "debug", "info", "warn", "error")
MAX_CONTENT_TYPE = 256
MAX_CONTEXT_NAME = 256
MAX_KEY = 4096

ENOENT, E2BIG, EBADF, EFAULT, EINVAL, ENOSPC, EPIPE = -2, -7, -9, -14, -22, -28, -32
ERRNO_NAMES = {
    1: "EPERM", 2: "ENOENT", 5: "EIO", 7: "E2BIG", 9: "EBADF", 11: "EAGAIN", 12: "ENOMEM",
    13: "EACCES", 14: "EFAULT", 17: "EEXIST", 22: "EINVAL", 28: "ENOSPC", 32: "EPIPE",
    38: "ENOSYS", 104: "ECONNRESET", 107: "ENOTCONN", 110: "ETIMEDOUT", 116: "ESTALE",
}  # fmt: skip

I32, I64 = "i32", "i64"
NOTHING: tuple[str, ...] = ()


class HostCall(NamedTuple):
    params: tuple[str, ...]
    results: tuple[str, ...]
    function: Callable[..., object]
    waits: bool = False


def put(guest: Guest, out_ptr: int, out_len_ptr: int, data: bytes) -> int:
    """The out-buffer protocol (guest ABI 2.3)."""
    try:
        needed = len(data)
        if guest.read_u32(out_len_ptr) < needed:
            guest.write_u32(out_len_ptr, needed)
            return ENOSPC
        guest.write(out_ptr, data)
        guest.write_u32(out_len_ptr, needed)
    except GuestMemoryError:
        return EFAULT
    return needed


def log(guest: Guest, level: int, ptr: int, length: int) -> int:
    if not 0 <= length <= MAX_LINE:
        return EINVAL
    try:
        text = guest.read(ptr, length).decode("utf-8", "replace")
    except GuestMemoryError:
        return EFAULT
    execution: Execution = guest.host
    execution.add_log(text, LEVELS[level] if 0 <= level < len(LEVELS) else "info")
    return 0


def time_now_ms(guest: Guest) -> int:
    return time.time_ns() // 1_000_000


def wall_time_s(guest: Guest) -> int:
    return time.time_ns() // 1_000_000_000


def random_number(guest: Guest) -> int:
    return random_i64()


def sleep_ms(guest: Guest, milliseconds: int) -> object:
    return partial(sleep, milliseconds / 1000) if milliseconds > 0 else 0


async def sleep(seconds: float) -> int:
    await trio.sleep(seconds)
    return 0


def input_len(guest: Guest) -> int:
    return len(guest.host.request.payload)


def input_read(guest: Guest, out_ptr: int, out_len_ptr: int) -> int:
    return put(guest, out_ptr, out_len_ptr, guest.host.request.payload)


def input_content_type(guest: Guest, out_ptr: int, out_len_ptr: int) -> int:
    return put(guest, out_ptr, out_len_ptr, guest.host.request.content_type.encode())


def output_write(guest: Guest, ptr: int, length: int) -> int:
    execution: Execution = guest.host
    if length > execution.room:
        return E2BIG
    try:
        execution.output += guest.read(ptr, length)
    except GuestMemoryError:
        return EFAULT
    return 0


def output_content_type(guest: Guest, ptr: int, length: int) -> int:
    if length > MAX_CONTENT_TYPE:
        return EINVAL
    try:
        text = guest.read(ptr, length).decode("utf-8", "replace")
    except GuestMemoryError:
        return EFAULT
    if not text.isprintable():
        return EINVAL
    guest.host.content_type = text
    return 0


def context_get(guest: Guest, name_ptr: int, name_len: int, out_ptr: int, out_len_ptr: int) -> int:
    if name_len > MAX_CONTEXT_NAME:
        return ENOENT
    try:
        name = guest.read(name_ptr, name_len).decode("utf-8", "replace")
    except GuestMemoryError:
        return EFAULT
    value = guest.host.context(name)
    return ENOENT if value is None else put(guest, out_ptr, out_len_ptr, value.encode())


def call_start(guest: Guest, fn_ptr: int, fn_len: int, in_ptr: int, in_len: int) -> object:
    try:
        function = guest.read(fn_ptr, fn_len).decode("utf-8", "replace")
        payload = guest.read(in_ptr, in_len)
    except GuestMemoryError:
        return EFAULT
    return partial(guest.host.calls.start, function, payload)


def call_result(guest: Guest, fd: int, out_ptr: int, out_len_ptr: int) -> object:
    call = guest.host.calls.get(fd)
    if call is None:
        return EBADF
    return partial(_call_result, guest, call, (out_ptr, out_len_ptr))


async def _call_result(guest: Guest, call: Call, where: tuple[int, int]) -> int:
    if not call.ended:
        await guest.host.calls.finish(call)
    return call.errno if call.output is None else put(guest, *where, call.output)


def call_close(guest: Guest, fd: int) -> object:
    return partial(guest.host.calls.close, fd)


def obj_put(
    guest: Guest, key_ptr: int, key_len: int, value_ptr: int, value_len: int, expect: int
) -> object:
    key = read_key(guest, key_ptr, key_len)
    if isinstance(key, int):
        return key
    if expect < -1:
        return EINVAL
    try:
        value = guest.view(value_ptr, value_len)
    except GuestMemoryError:
        return EFAULT
    return partial(guest.host.objects.put, guest, key, value, expect)


def obj_get(guest: Guest, key_ptr: int, key_len: int, out_ptr: int, out_len_ptr: int) -> object:
    key = read_key(guest, key_ptr, key_len)
    if isinstance(key, int):
        return key
    return partial(guest.host.objects.get, guest, key, (out_ptr, out_len_ptr))


def obj_stat(guest: Guest, key_ptr: int, key_len: int, out_ptr: int, out_len_ptr: int) -> object:
    key = read_key(guest, key_ptr, key_len)
    if isinstance(key, int):
        return key
    return partial(guest.host.objects.stat, guest, key, (out_ptr, out_len_ptr))


def obj_list(guest: Guest, ptr: int, length: int, out_ptr: int, out_len_ptr: int) -> object:
    prefix = read_key(guest, ptr, length)
    if isinstance(prefix, int):
        return prefix
    return partial(guest.host.objects.list, guest, prefix, (out_ptr, out_len_ptr))


def obj_change(verb: str, guest: Guest, key_ptr: int, key_len: int) -> object:
    key = read_key(guest, key_ptr, key_len)
    return key if isinstance(key, int) else partial(guest.host.objects.change, verb, key)


def read_key(guest: Guest, ptr: int, length: int) -> str | int:
    """A key, or `-errno`. How long it may be, the store says."""
    if length > MAX_KEY:
        return EINVAL
    try:
        return guest.read(ptr, length).decode("utf-8", "replace")
    except GuestMemoryError:
        return EFAULT


HOSTCALLS: Mapping[str, HostCall] = {
    "log": HostCall((I32, I32, I32), (I32,), log),
    "time_now_ms": HostCall(NOTHING, (I64,), time_now_ms),
    "wall_time_s": HostCall(NOTHING, (I64,), wall_time_s),
    "random_i64": HostCall(NOTHING, (I64,), random_number),
    "sleep_ms": HostCall((I32,), NOTHING, sleep_ms, waits=True),
    "input_len": HostCall(NOTHING, (I32,), input_len),
    "input_read": HostCall((I32, I32), (I32,), input_read),
    "input_content_type": HostCall((I32, I32), (I32,), input_content_type),
    "output_write": HostCall((I32, I32), (I32,), output_write),
    "output_content_type": HostCall((I32, I32), (I32,), output_content_type),
    "context_get": HostCall((I32, I32, I32, I32), (I32,), context_get),
    "call_start": HostCall((I32, I32, I32, I32), (I32,), call_start, waits=True),
    "call_result": HostCall((I32, I32, I32), (I32,), call_result, waits=True),
    "call_close": HostCall((I32,), (I32,), call_close, waits=True),
    "obj_put": HostCall((I32, I32, I32, I32, I64), (I64,), obj_put, waits=True),
    "obj_get": HostCall((I32, I32, I32, I32), (I32,), obj_get, waits=True),
    "obj_stat": HostCall((I32, I32, I32, I32), (I32,), obj_stat, waits=True),
    "obj_list": HostCall((I32, I32, I32, I32), (I32,), obj_list, waits=True),
    **{
        name: HostCall((I32, I32), (I32,), partial(obj_change, verb), waits=True)
        for name, verb in (
            ("obj_ref", "add_ref"),
            ("obj_unref", "remove_ref"),
            ("obj_pin", "pin"),
            ("obj_unpin", "unpin"),
            ("obj_delete", "delete"),
        )
    },
}
PAYLOAD_CALLS = frozenset(name for name in HOSTCALLS if name.startswith(("input_", "output_")))
"""A guest that imports one of these has no use for stdin and stdout as input and output."""


def define_hostcalls(linker: Linker) -> None:
    define_all(linker, MODULE, HOSTCALLS)


def define_all(linker: Linker, module: str, calls: Mapping[str, HostCall]) -> None:
    for name, call in calls.items():
        bind = linker.define_waiting if call.waits else linker.define
        bind(module, name, call.params, call.results, call.function)  # type: ignore[arg-type]
