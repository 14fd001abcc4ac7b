"""Inline values that were read last, so that what was found sound is not summed again."""

from __future__ import annotations

from collections import OrderedDict

from ._records import inline_value, inline_view

__all__ = ["VerifiedValues"]

_LEAST = 8 << 10
"""Bytes of a record from which on it is much quicker to compare than to sum."""

_MOST = 4 << 20
"""Bytes of records that are kept to compare with."""


class VerifiedValues:
    """Gives the values out of records. For one thread.

    The checksum of 64 KiB takes as long as all else of reading them. A record that is, byte for
    byte, one whose sums were right is right as well, so the last ones are kept to compare with.
    """

    def __init__(self, *, most: int = _MOST) -> None:
        self._most = most
        self._bytes = 0
        self._records: OrderedDict[bytes, bytes] = OrderedDict()

    def value(self, key: bytes, raw: bytes) -> bytes | None:
        """The value that is inline in a record; ``None``: it is elsewhere.

        **Raises** :exc:`~spear_core.errors.StoreCorruptError`, and what a record that is too short
        leads to, as :func:`._records.inline_value` does.
        """
        if len(raw) < _LEAST:
            return inline_value(key, raw)
        view = self.view(key, raw)
        return None if view is None else bytes(view)

    def view(self, key: bytes, raw: bytes) -> memoryview | None:
        """The same without a copy."""
        if len(raw) >= _LEAST and self._records.get(key) == raw:
            self._records.move_to_end(key)
            return inline_view(key, raw, verified=True)
        view = inline_view(key, raw)
        if len(raw) >= _LEAST and view is not None:
            self._keep(key, raw)
        return view

    def _keep(self, key: bytes, raw: bytes) -> None:
        self._bytes += len(raw) - len(self._records.pop(key, b""))
        self._records[key] = raw
        while self._bytes > self._most:
            _, oldest = self._records.popitem(last=False)
            self._bytes -= len(oldest)
