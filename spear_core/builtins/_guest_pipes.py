"""The pipe through which running code sends a value."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from spear_core.api import OwnedFd
from spear_core.errors import InvalidRequestError, ResourceExhaustedError

__all__ = ["open_guest_pipe", "takes_pipes"]


def takes_pipes() -> bool:
    """Whether pipes can be taken here: :func:`open_guest_pipe` needs ``/proc``."""
    return Path("/proc/self/fd").is_dir()


@contextmanager
def open_guest_pipe(fd: OwnedFd) -> Generator[int]:
    """Another open file of the same pipe, for reading, that does not block.

    What came is shared with whoever sent it, who could make it blocking at any time.

    **Raises** :exc:`~spear_core.errors.InvalidRequestError` unless it is an end of a pipe. A named
    one is refused, too: it may lie on a disk that makes us wait.
    """
    name = f"/proc/self/fd/{fd.fileno()}"
    try:
        if not os.readlink(name).startswith("pipe:["):
            raise InvalidRequestError("objects.write: the file is no pipe")
        pipe = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ResourceExhaustedError(f"objects.write: no pipe: {exc.strerror}") from exc
    fd.close()  # or a pipe that nobody reads would look as if somebody did
    try:
        yield pipe
    finally:
        os.close(pipe)
