"""File descriptors on their way from one owner to the next."""

from __future__ import annotations

import os

import attrs

__all__ = ["HostcallValue", "OwnedFd"]


class OwnedFd:
    """A file descriptor and the duty to close it.

    Whoever holds it closes it, hands it on, or takes the number out with :meth:`detach`. One that
    is merely dropped closes with its last reference, so that a message that nobody wants leaks
    nothing.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"<OwnedFd {'closed' if self._fd < 0 else self._fd}>"

    @property
    def closed(self) -> bool:
        """Whether it has been closed or detached."""
        return self._fd < 0

    def fileno(self) -> int:
        """The number; it stays ours. **Raises** :exc:`ValueError` when it is closed."""
        if self._fd < 0:
            raise ValueError("this file descriptor is closed")
        return self._fd

    def detach(self) -> int:
        """The number, which is the caller's to close from now on. **Raises** as :meth:`fileno`."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> OwnedFd:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@attrs.frozen
class HostcallValue:
    """What goes into a hostcall, or comes out of it."""

    payload: bytes | bytearray | memoryview = b""
    fd: OwnedFd | None = None
    """A file beside it. Who hands it over owns it no more."""
