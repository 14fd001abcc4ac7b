"""A file that is there only when it is whole, and of which a part can wait for another attempt."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import click

from spear_core.api import ObjectStat
from spear_core.cli._terminal import OutputFailedError, note
from spear_core.errors import StoreCorruptError

__all__ = ["Part", "open_part", "part_name", "where_to_write"]

_BLOCK = 1 << 20
_TRIES = 100


@attrs.frozen
class Part:
    """What there is of a file so far."""

    path: Path
    file: BinaryIO
    """Not buffered."""
    offset: int
    """Bytes of it from which to go on."""

    def hash(self, digest: Any) -> None:
        """Take what is there into account, and go to its end."""
        while block := self.file.read(_BLOCK):
            if digest is not None:
                digest.update(block)

    def write(self, digest: Any, piece: bytes) -> None:
        """Append a piece. **Raises** :exc:`OutputFailedError`."""
        left = memoryview(piece)
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            raise OutputFailedError(f"{self.path} cannot be written: {error.strerror}") from error
        if digest is not None:
            digest.update(piece)


def where_to_write(path: Path) -> Path:
    """The file that is meant: a link goes on leading where it leads.

    **Raises** :exc:`click.UsageError` for what must not be replaced by a file.
    """
    if path.is_dir():
        raise click.UsageError(f"{path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise click.UsageError(
            f"{path} is no regular file; leave --output out, and write > {path} instead"
        )
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise click.UsageError(f"{path} cannot be written: its links lead nowhere") from error


def part_name(path: Path, stat: ObjectStat) -> str:
    """How the part of a file is called that is to be resumed.

    The same for nothing else than this version of this object: two objects have a version 1, and a
    store that begins anew gives the same numbers again.
    """
    written = f"{stat.key}\0{stat.updated_at!r}\0{stat.sha256}\0{stat.size}"
    tag = hashlib.sha256(written.encode()).hexdigest()[:8]
    return f".{path.name}.{stat.version}-{tag}.part"


@contextmanager
def open_part(path: Path, stat: ObjectStat, *, resume: bool) -> Iterator[Part]:
    """A file beside ``path`` that becomes it at the end of the block.

    :param resume: go on with the one that an earlier attempt has left, and leave it when this one
        fails.
    """
    name = part_name(path, stat) if resume else f".{path.name}.{secrets.token_hex(4)}.part"
    part = path.with_name(name)
    try:
        if resume:
            _forget_others(path, part)
            descriptor = _open_locked(part)
        else:
            descriptor = _open(part, os.O_EXCL)
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with file:
            yield Part(path, file, _prepared(path, file, stat))
            # Before the lock is gone: afterwards it may be somebody else's part.
            os.replace(part, path)
    except BaseException as error:
        if not resume or isinstance(error, StoreCorruptError):
            with suppress(OSError):
                part.unlink()
        raise


def _open(part: Path, flags: int = 0) -> int:
    return os.open(part, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _open_locked(part: Path) -> int:
    """Open the part for this process alone. **Raises** :exc:`click.UsageError`: it is in use."""
    for _ in range(_TRIES):
        descriptor = _open(part)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            break
        except OSError:  # a file system without locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(part)):
                return descriptor
        os.close(descriptor)  # whoever had it has just made it the file itself
    raise click.UsageError(
        f"{part} is being written by another `spear objects get`; wait until that has ended"
    )


def _prepared(path: Path, file: BinaryIO, stat: ObjectStat) -> int:
    """See to the part's mode and size; how many bytes of the value it has."""
    with suppress(OSError):
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
    offset = os.fstat(file.fileno()).st_size
    if offset > stat.size:
        note(f"what was left of {path.name} is longer than the object; starting anew")
        file.truncate(0)
        return 0
    return offset


def _forget_others(path: Path, part: Path) -> None:
    """Parts of other versions are of no use any more."""
    ours = re.compile(re.escape(f".{path.name}.") + r"\d+-[0-9a-f]{8}\.part")
    for other in path.parent.iterdir():
        if ours.fullmatch(other.name) and other != part:
            other.unlink()
            note(f"the object has changed since {other.name} was left; starting anew")


def _unwritable(path: Path, error: OSError) -> click.UsageError:
    return click.UsageError(f"{path} cannot be written: {error.strerror}")
