"""Objects from and to files, stdin and stdout: with a bar on a terminal, and never by half."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import trio

from spear_core.api import NodeApi, ObjectReader, ObjectStat, TaskInfo
from spear_core.cli._input import Pieces
from spear_core.cli._partial_file import Part, open_part, where_to_write
from spear_core.cli._terminal import note, on_terminal, write_through
from spear_core.errors import NodeUnreachableError, StoreCorruptError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Put", "copy_to_stdout", "fetch_output", "get_into_file"]

_COMMIT_S = 60.0
"""A node may have to hash and flush a very large object."""
_LOOK_S = 1.0
_BAR_FROM = 4 << 20
"""Bytes from which on a person may want to see how far it is."""


class Bar:
    """How far a transfer is; made by :func:`_progress`."""

    def __init__(self, progress: Progress | None = None, task: TaskID | None = None) -> None:
        self._progress = progress
        self._task = task

    def moved(self, count: int) -> None:
        """So many bytes more."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def _progress(name: str, size: int | None, *, done: int = 0) -> Iterator[Bar]:
    """A bar on stderr, if that is a terminal and there is enough to move."""
    if not on_terminal(sys.stderr) or (size is not None and size < _BAR_FROM):
        yield Bar()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        f"{escape(name)}", *columns, console=Console(stderr=True), transient=True
    ) as progress:
        yield Bar(progress, progress.add_task("", total=size, completed=done))


@attrs.define(eq=False)
class Put:
    """Writes an object out of a file, or out of stdin for ``-``."""

    api: NodeApi
    key: str
    source: str
    stat: ObjectStat | None = None
    """Set once it is written."""
    committing: bool = False
    """All was sent, and the node was asked to make it the new version."""

    async def _next(self, pieces: Pieces) -> bytes:
        """What is there next; a source that is silent must not hide that the node is gone."""
        while True:
            with trio.move_on_after(_LOOK_S):
                return await pieces.next()
            if not self.api.is_connected:
                raise NodeUnreachableError(f"the node went away; {self.key} was not written")

    async def run(self, **options: Any) -> None:
        """Do it, with the options of :meth:`~spear_core.api.ObjectApi.create`.

        **Raises** :exc:`click.UsageError` when the source cannot be read to the end that it had.
        **Cancellation**: nothing is written, unless it is ``committing``; then the answer is waited
        for, for a while.
        """
        with Pieces(None, self.source) as pieces:
            size = _size_of(self.source)
            async with self.api.objects.create(self.key, size=size, **options) as writer:
                with _progress(self.key, size) as bar:
                    left = size
                    while left != 0 and (piece := await self._next(pieces)):
                        if left is not None:  # a file that grows meanwhile is taken as it was
                            piece = piece[:left]
                            left -= len(piece)
                        await writer.write(piece)
                        bar.moved(len(piece))
                if left:
                    raise click.UsageError(
                        f"{self.source} has become {left} bytes shorter while it was read; "
                        f"{self.key} was not written"
                    )
                await trio.lowlevel.checkpoint_if_cancelled()
                self.committing = True
                with trio.move_on_after(_COMMIT_S, shield=True) as patience:
                    self.stat = await writer.commit()
                if patience.cancelled_caught:
                    raise NodeUnreachableError(
                        f"the node has not answered for {_COMMIT_S:g} s; `spear objects stat "
                        f"{self.key}` shows whether it was written"
                    )


def _size_of(source: str) -> int | None:
    """Bytes of a regular file; of anything else nobody knows beforehand, nor of one that the kernel
    makes up as it is read (``/proc``), which says that it is empty."""
    if source == "-":
        return None
    found = os.stat(source)
    return (found.st_size or None) if stat.S_ISREG(found.st_mode) else None


async def copy_to_stdout(api: NodeApi, key: str, version: int | None = None) -> None:
    """Write the object to stdout, as it comes."""
    async with api.objects.read(key, version=version) as reader:
        with _progress(key, 0 if on_terminal(sys.stdout) else reader.stat.size) as bar:
            async for piece in reader:
                await trio.to_thread.run_sync(write_through, piece, abandon_on_cancel=True)
                bar.moved(len(piece))


async def fetch_output(api: NodeApi, task: TaskInfo, *, as_json: bool) -> TaskInfo:
    """See to the output of a task where that is an object: write it to stdout, or put it into the
    task, which has it then for whoever prints JSON."""
    result = task.result
    if result is None or not result.object_key:
        return task
    if not as_json:
        await copy_to_stdout(api, result.object_key)
        return task
    _, output = await api.objects.get(result.object_key)
    return attrs.evolve(task, result=attrs.evolve(result, output=output))


async def get_into_file(
    api: NodeApi, key: str, path: Path, *, version: int | None = None, resume: bool = False
) -> ObjectStat:
    """Read the object into a file that is there only when it is whole, and then replaces what was
    there before.

    :param resume: go on with what an earlier attempt has left, and leave it when this one fails.
    :raises StoreCorruptError: it is not what its checksum says.
    """
    path = where_to_write(path)
    wanted = await _stat_of(api, key, version)
    with open_part(path, wanted, resume=resume) as part:
        return await _fetch(api, wanted, part)


async def _stat_of(api: NodeApi, key: str, version: int | None) -> ObjectStat:
    if version is None:
        return await api.objects.stat(key)
    async with api.objects.read(key, version=version) as reader:
        return reader.stat


async def _fetch(api: NodeApi, wanted: ObjectStat, part: Part) -> ObjectStat:
    """The object, from where the part ends."""
    key, offset = wanted.key, part.offset
    async with api.objects.read(key, version=wanted.version, offset=offset) as reader:
        found = reader.stat
        digest = hashlib.sha256() if found.sha256 else None
        if offset:
            note(f"going on after {offset} bytes of {found.size}")
            await trio.to_thread.run_sync(part.hash, digest)
        with _progress(key, found.size, done=offset) as bar:
            await _copy(reader, part, digest, bar)
        if digest is not None and digest.hexdigest() != found.sha256:
            raise StoreCorruptError(
                f"object {key!r}: what came is not what was stored (sha256 {digest.hexdigest()}, "
                f"expected {found.sha256}); nothing was kept. Get it again; if that does not help, "
                "the node's store is damaged"
            )
    return found


async def _copy(reader: ObjectReader, part: Part, digest: Any, bar: Bar) -> None:
    async for piece in reader:
        await trio.to_thread.run_sync(part.write, digest, piece)
        bar.moved(len(piece))
