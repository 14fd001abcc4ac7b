"""Calls of other functions by one execution, behind file descriptors (guest ABI 5 and 17)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping

import attrs

from spear_core.api import Hostcalls
from spear_core.errors import SpearError

FIRST_FD = 1000
MAX_OPEN = 1024

_LENGTH = struct.Struct("<I")
_ERRNO: Mapping[str, int] = {
    "not_found": -2,
    "resource_exhausted": -11,
    "permission_denied": -13,
    "invalid_argument": -22,
    "deadline_exceeded": -110,
}
_EIO, _EBADF, _ENOMEM = -5, -9, -12


@attrs.define(eq=False)
class Call:
    """One call: its task, and its end once somebody has waited for that."""

    function: str
    task_id: str
    output: bytes | None = None
    errno: int = 0
    closed: bool = False

    @property
    def ended(self) -> bool:
        """Whether its end is known here."""
        return self.output is not None or self.errno != 0


class CallTable:
    """The calls of one execution.

    :param warn: gets one line for each failure; a guest only sees a number.
    """

    def __init__(
        self, hostcalls: Hostcalls, execution_id: str, warn: Callable[[str], None]
    ) -> None:
        self._hostcalls = hostcalls
        self._execution_id = execution_id
        self._warn = warn
        self._calls: dict[int, Call] = {}
        self._next = FIRST_FD
        self._open = 0

    def get(self, fd: int) -> Call | None:
        """The open call behind a descriptor."""
        call = self._calls.get(fd)
        return None if call is None or call.closed else call

    async def start(self, function: str, payload: bytes) -> int:
        """Start it; a descriptor, or ``-errno``."""
        if self._open >= MAX_OPEN:
            return _ENOMEM
        head = {"function": function}
        try:
            answer = await self._ask("functions.start", head, payload)
        except SpearError as error:
            return self._failed(function, error)
        call = Call(function, str(_head(answer)["task_id"]))
        fd, self._next = self._next, self._next + 1
        self._calls[fd] = call
        self._open += 1
        return fd

    async def finish(self, call: Call) -> None:
        """Wait for its end, and keep that."""
        try:
            answer = await self._ask("functions.wait", {"task_id": call.task_id})
        except SpearError as error:
            call.errno = self._failed(call.function, error)
        else:
            call.output = answer[_LENGTH.size + _LENGTH.unpack_from(answer)[0] :]

    async def close(self, fd: int) -> int:
        """Forget its result; one that still runs is cancelled. Closing again is fine."""
        call = self._calls.get(fd)
        if call is None:
            return _EBADF
        if call.closed:
            return 0
        call.closed = True
        self._open -= 1
        ended, call.output = call.ended, None
        if not ended:
            try:
                await self._ask("functions.cancel", {"task_id": call.task_id})
            except SpearError as error:
                self._failed(call.function, error)
        return 0

    async def _ask(self, name: str, head: Mapping[str, str], payload: bytes = b"") -> bytes:
        data = json.dumps(head).encode()
        whole = b"".join((_LENGTH.pack(len(data)), data, payload))
        return await self._hostcalls.call(self._execution_id, name, whole)

    def _failed(self, function: str, error: SpearError) -> int:
        self._warn(f"call of {function!r} failed: {error.code}: {error.message}")
        return _ERRNO.get(error.code, _EIO)


def _head(answer: bytes) -> Mapping[str, object]:
    end = _LENGTH.size + _LENGTH.unpack_from(answer)[0]
    head: Mapping[str, object] = json.loads(answer[_LENGTH.size : end])
    return head
