"""sha256 beside what else is done with a value."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["hashed_beside"]

_WORTH_A_THREAD = 1 << 20
_PIECE = 4 << 20
"""Bytes after which it is asked whether anybody still wants to know."""


@contextmanager
def hashed_beside(value: memoryview, *, wanted: bool) -> Generator[Callable[[], str]]:
    """Hash it while the block runs, in a thread of its own if it is large; both block.

    What it yields gives the sha256 in hexadecimal, empty unless it is wanted: call it last, it
    waits. The value must not change meanwhile. When the block has ended, the thread has, too.
    """
    if not wanted:
        yield lambda: ""
        return
    if len(value) <= _WORTH_A_THREAD:
        yield lambda: hashlib.sha256(value).hexdigest()
        return
    digest = hashlib.sha256()
    unwanted = threading.Event()

    def work() -> None:
        for start in range(0, len(value), _PIECE):
            if unwanted.is_set():
                return
            with value[start : start + _PIECE] as piece:
                digest.update(piece)

    thread = threading.Thread(target=work, name="spear-sha256")
    try:
        thread.start()
    except RuntimeError:  # no more threads here: in this one, then
        yield lambda: hashlib.sha256(value).hexdigest()
        return

    def result() -> str:
        thread.join()
        return digest.hexdigest()

    try:
        yield result
    finally:
        unwanted.set()
        thread.join()
