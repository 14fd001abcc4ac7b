"""A large value on its way to the node, which takes it out of a pipe.

While this process copies one part of it into the pipe, the node copies the part before to where it
is kept, and no memory is needed in between but the pipe's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Feeding"]

_ROOM = 1 << 20
"""What a pipe holds at most where nobody has changed ``/proc/sys/fs/pipe-max-size``."""
_LOOK_MS = 100
"""A pipe that is full and that nobody wants: whether it is so is asked this often."""


class Feeding:
    """A thread that fills a pipe from a buffer for as long as the block lasts.

    Raises: OSError without descriptors, RuntimeError when this process may have no more threads.
    """

    pipe: int
    """The end for reading, which is the node's."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._unwanted = False
        self.pipe, self._end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._feed, name="spear-feeding", daemon=True)
        with contextlib.suppress(OSError):  # this user has much in pipes; a small one is slower
            fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, _ROOM)
        try:
            self._thread.start()
        except BaseException:
            os.close(self.pipe)
            os.close(self._end)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._unwanted = True  # and soon seen, should a child that was forked keep the pipe open
        os.close(self.pipe)
        self._thread.join()

    def _feed(self) -> None:
        """In the thread: all of it, unless nobody reads it any more."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})  # an error is enough
        try:
            poll = select.poll()
            poll.register(self._end, select.POLLOUT)
            view, at = self._view, 0
            while at < len(view):
                try:
                    at += os.write(self._end, view[at : at + _ROOM])
                except BlockingIOError:
                    while not poll.poll(_LOOK_MS):
                        if self._unwanted:
                            return
        except OSError:
            pass  # BrokenPipeError: the node says why; anything else makes its answer an error
        finally:
            os.close(self._end)
