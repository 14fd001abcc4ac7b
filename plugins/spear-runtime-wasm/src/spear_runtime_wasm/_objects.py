"""The objects of one execution (guest ABI 17): from the node's store straight into guest memory.

A large value goes as a file descriptor each way, so it is copied once: between the guest's memory
and the store's.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import trio

from spear_core.api import Hostcalls, HostcallValue, OwnedFd
from spear_core.errors import ObjectConflictError, SpearError, StoreFullError

from ._ffi import Guest, GuestMemoryError

__all__ = ["ObjectCalls"]

_INLINE = 64 << 10
"""Up to this size a value goes in the hostcall itself."""
_IN_A_THREAD = 1 << 20
"""A copy of more than this would hold up every other task for too long."""
_PIECE = 4 << 20
_MOST_LISTED = 10_000
_LENGTH = struct.Struct("<I")
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_EIO, _E2BIG, _ENOMEM, _EFAULT, _EEXIST, _EINVAL, _ENOSPC, _ESTALE = (
    -5, -7, -12, -14, -17, -22, -28, -116,
)  # fmt: skip
_ERRNO: Mapping[str, int] = {
    "not_found": -2,
    "resource_exhausted": -11,
    "permission_denied": -13,
    "invalid_argument": _EINVAL,
    "deadline_exceeded": -110,
}
_EXPECTED = (_EEXIST, _ESTALE, -2)
"""What a guest has to reckon with in the normal course, and so is not worth a line in its log."""

Out = tuple[int, int]
"""Where a guest wants an answer: `out_ptr`, `out_len_ptr`."""


@attrs.frozen
class _Value:
    """What an `obj_get` found: bytes, a file, or a handle to read by."""

    key: str
    size: int
    data: memoryview | None = None
    file: OwnedFd | None = None
    handle: str = ""


class ObjectCalls:
    """What a guest does with objects.

    :param warn: gets a line for each failure that a guest need not reckon with.
    """

    def __init__(
        self, hostcalls: Hostcalls, execution_id: str, warn: Callable[[str], None]
    ) -> None:
        self._hostcalls = hostcalls
        self._execution_id = execution_id
        self._warn = warn
        self._kept: _Value | None = None
        """Found, but the guest's buffer was too small: it is there when the guest asks again."""

    async def put(self, guest: Guest, key: str, value: memoryview, expect: int) -> int:
        """Write a new version; its number, or `-errno`."""
        self._kept = None
        head: dict[str, object] = {"key": key}
        if expect >= 0:
            head["expect"] = expect
        try:
            if len(value) <= _INLINE:
                answer = await self._ask("put", head, bytes(value))
            else:
                file = OwnedFd(await _where_it_takes_long(value, partial(_sealed, value)))
                answer = await self._ask("put", head | {"size": len(value)}, fd=file)
        except SpearError as error:
            return self._failed("obj_put", key, error, expect=expect)
        except OSError as error:
            self._warn(f"obj_put of {key!r} failed: {error.strerror}")
            return _ENOMEM
        version: int = _head(answer)["stat"]["version"]
        return version

    async def get(self, guest: Guest, key: str, out: Out) -> int:
        """The current version into the guest's memory; its length, or `-errno`."""
        value, self._kept = self._kept, None
        if value is None or value.key != key:
            try:
                value = await self._find(key)
            except SpearError as error:
                return self._failed("obj_get", key, error)
        if value.size > 0x7FFF_FFFF:
            return _E2BIG
        try:
            if guest.read_u32(out[1]) < value.size:
                self._kept = value
                guest.write_u32(out[1], value.size)
                return _ENOSPC
            into = guest.view(out[0], value.size)
        except GuestMemoryError:
            self._kept = value
            return _EFAULT
        try:
            await self._fill(into, value)
        except SpearError as error:
            return self._failed("obj_get", key, error)
        finally:
            if value.file is not None:
                value.file.close()
        guest.write_u32(out[1], value.size)
        return value.size

    async def stat(self, guest: Guest, key: str, out: Out) -> int:
        """What is known about it, as JSON into the guest's memory."""
        self._kept = None
        try:
            answer = await self._ask("stat", {"key": key})
        except SpearError as error:
            return self._failed("obj_stat", key, error)
        return _put_json(guest, out, _head(answer)["stat"])

    async def list(self, guest: Guest, prefix: str, out: Out) -> int:
        """All objects whose keys begin so, as a JSON array of what is known about each."""
        self._kept = None
        found: list[object] = []
        after: str | None = None
        try:
            while True:
                answer = await self._ask("list", {"prefix": prefix, "after": after, "limit": 1000})
                page = _head(answer)
                found += page["objects"]
                after = page["next_key"]
                if after is None:
                    return _put_json(guest, out, found)
                if len(found) >= _MOST_LISTED:
                    return _E2BIG
        except SpearError as error:
            return self._failed("obj_list", prefix, error)

    async def change(self, verb: str, key: str) -> int:
        """`add_ref`, `remove_ref`, `pin`, `unpin` or `delete`; 0, or `-errno`."""
        self._kept = None
        try:
            await self._ask(verb, {"key": key})
        except SpearError as error:
            return self._failed(f"objects.{verb}", key, error)
        return 0

    async def _find(self, key: str) -> _Value:
        answer = await self._ask("get", {"key": key})
        head = _head(answer)
        size: int = head["stat"]["size"]
        if answer.fd is not None:
            return _Value(key, size, file=answer.fd)
        if head.get("whole", True):
            payload = memoryview(answer.payload)
            return _Value(key, size, data=payload[len(payload) - size :])
        head = _head(await self._ask("open", {"key": key}))
        return _Value(key, head["stat"]["size"], handle=head["handle"])

    async def _fill(self, into: memoryview, value: _Value) -> None:
        if value.data is not None:
            into[:] = value.data
        elif value.file is not None:
            await _where_it_takes_long(into, partial(_read_all, value.file, into))
        else:
            for at in range(0, value.size, _PIECE):
                wanted = {"handle": value.handle, "offset": at, "length": _PIECE}
                piece = (await self._ask("read", wanted)).payload
                into[at : at + len(piece)] = piece
            await self._ask("close", {"handle": value.handle})

    async def _ask(
        self, verb: str, head: Mapping[str, object], value: bytes = b"", fd: OwnedFd | None = None
    ) -> HostcallValue:
        data = json.dumps(head).encode()
        asked = HostcallValue(b"".join((_LENGTH.pack(len(data)), data, value)), fd)
        return await self._hostcalls.exchange(
            self._execution_id, f"objects.{verb}", asked, takes_fd=True
        )

    def _failed(self, what: str, key: str, error: SpearError, *, expect: int = -1) -> int:
        number = _ERRNO.get(error.code, _EIO)
        if isinstance(error, ObjectConflictError):
            number = _EEXIST if expect == 0 else _ESTALE
        elif isinstance(error, StoreFullError):
            number = _E2BIG
        if number not in _EXPECTED:
            self._warn(f"{what} of {key!r} failed: {error.code}: {error.message}")
        return number


async def _where_it_takes_long(value: memoryview, work: Callable[[], Any]) -> Any:
    """Do it in a thread if there is much to copy. The guest lies still, so its memory stays."""
    if len(value) <= _IN_A_THREAD:
        return work()
    return await trio.to_thread.run_sync(work)


def _sealed(value: memoryview) -> int:
    """Memory with a copy of it that nobody can change any more. Raises OSError."""
    fd = os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while value:
            value = value[os.write(fd, value) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_all(file: OwnedFd, into: memoryview) -> None:
    at = 0
    while into:
        count = os.preadv(file.fileno(), [into], at)
        if not count:
            raise SpearError(f"an object's file ends at byte {at}", code="data_loss")
        into, at = into[count:], at + count


def _put_json(guest: Guest, out: Out, value: object) -> int:
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    try:
        if guest.read_u32(out[1]) < len(data):
            guest.write_u32(out[1], len(data))
            return _ENOSPC
        guest.write(out[0], data)
        guest.write_u32(out[1], len(data))
    except GuestMemoryError:
        return _EFAULT
    return len(data)


def _head(answer: HostcallValue) -> Any:
    end = _LENGTH.size + _LENGTH.unpack_from(answer.payload)[0]
    return json.loads(bytes(answer.payload[_LENGTH.size : end]))
