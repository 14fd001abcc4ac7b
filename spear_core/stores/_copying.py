"""Copying large values to an address, with several threads and without the interpreter's lock."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

__all__ = ["Window", "copy_to"]

_LEAST = 2 << 20
"""Bytes of the smallest piece; half of what another thread is worth waking for."""

_MOST_THREADS = 6
"""As many as Ray has. They are no quicker than as many as there are cores, unless others want the
cores as well."""

_AROUND = 16 * mmap.PAGESIZE

Window = ctypes.c_ubyte * (sys.maxsize >> 1)
"""An array over an address. It has no end, because there would be a type for each size
otherwise, which Python keeps for ever; of it only slices are used."""


class _Buffer(ctypes.Structure):
    """``Py_buffer``, whose layout is part of CPython's stable ABI since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int
)(("PyObject_GetBuffer", ctypes.pythonapi))
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_Buffer))(
    ("PyBuffer_Release", ctypes.pythonapi)
)
_PLAIN = 0
"""``PyBUF_SIMPLE``: bytes in one piece, which need not be writable."""


@contextmanager
def _address_of(source: memoryview) -> Iterator[int]:
    """Where it lies; it stays there for the block's duration."""
    buffer = _Buffer()
    _get_buffer(source, ctypes.byref(buffer), _PLAIN)
    try:
        yield buffer.buf or 0
    finally:
        _release_buffer(ctypes.byref(buffer))


def copy_to(target: int, source: memoryview, *, touched: bool = True) -> None:
    """Copy all of it to where there is room for it. Blocks; a large one belongs into a thread.

    When it returns, no other thread writes there any more.

    :param source: C-contiguous. It must not change meanwhile.
    :param touched: false where pages of a file are mapped that this mapping was never used for.
    """
    size = source.nbytes
    with _address_of(source) as start:

        def move(place: int, count: int) -> None:
            if not touched:
                _touch(target + place, count)
            ctypes.memmove(target + place, start + place, count)

        threads = min(_MOST_THREADS, size // (2 * _LEAST))
        if threads < 2 or len(os.sched_getaffinity(0)) < 2:
            move(0, size)
        else:
            _share(move, size, threads)


def _touch(address: int, size: int) -> None:
    """Read a byte here and there: the kernel then maps sixteen pages at a time (its
    ``fault_around_bytes``), for writing, too, while each page that is written to first is a page
    fault of its own."""
    memoryview(Window.from_address(address)).cast("B")[:size:_AROUND].tobytes()


def _share(move: Callable[[int, int], None], size: int, threads: int) -> None:
    """Have several threads move pieces. Whichever is free takes the next one, so that none waits
    for one that is late."""
    pieces = deque(_pieces(size, threads))
    count = len(pieces)
    helped = threading.Semaphore(0)

    def move_next() -> bool:
        try:
            piece = pieces.popleft()
        except IndexError:
            return False
        move(*piece)
        return True

    def help_out() -> None:
        while move_next():
            helped.release()

    with suppress(RuntimeError):  # no more threads: then with those that there are
        for _ in range(threads - 1):
            trio.lowlevel.start_thread_soon(help_out, lambda result: None)
    mine = 0
    while move_next():
        mine += 1
    for _ in range(count - mine):
        helped.acquire()


def _pieces(size: int, threads: int) -> Iterator[tuple[int, int]]:
    """Places and sizes: large pieces first, as each needs the interpreter's lock to begin, then
    smaller ones, so that all threads end at about the same time."""
    place = 0
    while place < size:
        piece = max(_LEAST, (size - place) // (2 * threads) // mmap.PAGESIZE * mmap.PAGESIZE)
        yield place, min(piece, size - place)
        place += piece
