"""A directory for one node's copies of code and its guests' files, below a cache that others share.

`spear run` and other nodes may use the same cache at the same time. Each has a directory of its
own, with a lock beside it; what nobody holds was left by a node that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX, _SUFFIX = "w-", ".lock"


@contextlib.contextmanager
def open_workspace(cache: Path) -> Iterator[Path]:
    """A private directory below `cache`, gone afterwards. Blocking.

    Raises: OSError when there can be none.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(cache)
    lock, handle = _make_lock(cache)
    place = lock.with_suffix("")
    try:
        place.mkdir(mode=0o700)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(handle)


def _remove_abandoned(cache: Path) -> None:
    for lock in cache.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
            finally:
                os.close(handle)


def _make_lock(cache: Path) -> tuple[Path, int]:
    while True:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=cache)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # somebody took it for abandoned before it was locked
