"""How much of the disk all task logs take together."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

import attrs

__all__ = ["LogSpace", "OldLog"]


class ClosedLog(Protocol):
    """A log to which nothing is added any more."""

    def give_way(self) -> int:
        """Delete the file, for others need the space; the number of its bytes."""


@attrs.define(eq=False)
class LogSpace:
    """Counts the bytes of every log; when there are too many, those go that were closed first."""

    max_bytes: float = math.inf
    used: int = 0
    _closed: OrderedDict[ClosedLog, None] = attrs.field(factory=OrderedDict, init=False)

    def make_room(self, size: int) -> bool:
        """Whether so many more bytes may be written, perhaps in place of closed logs."""
        while self.used + size > self.max_bytes and self._closed:
            oldest, _ = self._closed.popitem(last=False)
            self.used -= oldest.give_way()
        return self.used + size <= self.max_bytes

    def closed(self, log: ClosedLog, *, oldest: bool = False) -> None:
        """This one may go from now on, after all that were closed before.

        :param oldest: before all others instead.
        """
        self._closed[log] = None
        if oldest:
            self._closed.move_to_end(log, last=False)

    def removed(self, log: ClosedLog, size: int) -> None:
        """This closed one, of so many bytes, is deleted; twice is fine."""
        if log in self._closed:
            del self._closed[log]
            self.used -= size


@attrs.frozen(eq=False)
class OldLog:
    """The file of a task that nobody remembers."""

    path: str
    size: int

    def give_way(self) -> int:
        with suppress(OSError):
            os.unlink(self.path)
        return self.size
