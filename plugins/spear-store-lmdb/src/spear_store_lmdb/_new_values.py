"""Values on their way into the store: small ones for the record, large ones in a file."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from spear_core.api import PutObject, SealedFile
from spear_core.stores import check_sealed

from ._blobs import Blobs
from ._object_changes import Prepared

__all__ = ["NewValues", "held_source"]


class NewValues:
    """Prepares values for their records.

    :param inline_bytes: what is longer goes into a file.
    """

    def __init__(self, blobs: Blobs, *, inline_bytes: int, threads: trio.CapacityLimiter) -> None:
        self._blobs = blobs
        self._inline_bytes = inline_bytes
        self._threads = threads

    def inline(self, operation: PutObject) -> Prepared | None:
        """The value, if it is a small one; and nothing awaits anything."""
        value = operation.value
        if isinstance(value, SealedFile):
            return None
        if not isinstance(value, bytes):
            with memoryview(value) as view:
                if view.nbytes > self._inline_bytes:
                    return None
                value = bytes(view)
        if len(value) > self._inline_bytes:
            return None
        digest = hashlib.sha256(value).hexdigest() if operation.hashed else ""
        return Prepared(len(value), digest, value)

    async def prepare(self, operation: PutObject, source: int | None) -> Prepared:
        """Any value. The file of a large one is the caller's, to be settled or removed.

        :param source: the descriptor, where the value is a sealed file.
        """
        given = operation.value
        if isinstance(given, SealedFile):
            assert source is not None
            if given.size <= self._inline_bytes:
                value = os.pread(source, given.size, 0)
                digest = hashlib.sha256(value).hexdigest() if operation.hashed else ""
                return Prepared(len(value), digest, value)
            size = given.size
            work = partial(self._blobs.copy, source, size, hashed=operation.hashed)
        else:
            if (small := self.inline(operation)) is not None:
                return small
            view = memoryview(given).cast("B")
            size = len(view)
            work = partial(self._blobs.write, view, hashed=operation.hashed)
        # a thread that cannot be stopped: when it is done, a cancelled caller is told
        name, digest = await trio.to_thread.run_sync(work, limiter=self._threads)
        return Prepared(size, digest, blob=name)


@contextmanager
def held_source(value: object) -> Iterator[int | None]:
    """A descriptor of our own for a sealed file, once it is found to be one."""
    if not isinstance(value, SealedFile):
        yield None
        return
    check_sealed(value)
    descriptor = fcntl.fcntl(value.fd, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
