"""Random names, that nobody can guess and that cost no system call each."""

from __future__ import annotations

import os

__all__ = ["TokenSource"]

_BYTES = 8
_AT_ONCE = 128


class TokenSource:
    """Tokens of 16 hex digits, from the operating system's randomness.

    It is asked for many at once: a system call for each is several microseconds. A process that
    forks must not go on with its parent's.
    """

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def next(self) -> str:
        """Another one, used by nobody before."""
        at = self._at
        if at == len(self._digits):
            self._digits = os.urandom(_BYTES * _AT_ONCE).hex()
            at = 0
        self._at = end = at + 2 * _BYTES
        return self._digits[at:end]
