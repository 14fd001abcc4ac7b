"""The log files of tasks: one JSON line an entry, one file a task, made by its first entry."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import attrs
import msgspec
import trio

from spear_core.api import LogChunk, LogConfig, LogEntry
from spear_core.node._log_space import LogSpace, OldLog

__all__ = ["TaskLog", "TaskLogDirectory"]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(LogEntry)

_CHUNK_ENTRIES = 1000
_CHUNK_BYTES = 1 << 20


class TaskLog:
    """One task's log. Appending never blocks for long and never fails; what can't be written is
    counted, and the reader is told at the end."""

    # Of the class as long as they are as they began: most tasks log nothing.
    _descriptor = -1
    _size = 0
    _entries = 0
    _dropped = 0
    _drop_reason = ""
    _closed = False
    _gave_way = False
    _changed: trio.Event | None = None

    def __init__(self, path: str, *, max_bytes: int, space: LogSpace) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._space = space

    def append(
        self, execution_id: str, message: str, *, level: str, source: str, trace_id: str = ""
    ) -> None:
        """Add one entry, or count it as dropped.

        :param trace_id: 32 hex digits, or empty.
        """
        if self._closed:
            return
        entry = LogEntry(
            seq=self._entries + 1,
            ts=time.time(),
            level=level,
            source=source,
            message=message.removesuffix("\n"),
            execution_id=execution_id,
            trace_id=trace_id,
        )
        try:
            line = _encoder.encode(entry) + b"\n"
        except UnicodeEncodeError:  # a guest's text may hold what is no character
            text = entry.message.encode("utf-8", "replace").decode()
            line = _encoder.encode(attrs.evolve(entry, message=text)) + b"\n"
        if not trace_id:
            # Most logs have none, and every byte counts against their limit. Within a message the
            # quotes would have backslashes.
            line = line.replace(b',"trace_id":""', b"", 1)
        if self._size + len(line) > self._max_bytes:
            self._drop(f"the task's log may have {self._max_bytes} bytes (logs.max_task_log_bytes)")
            return
        if not self._space.make_room(len(line)):
            most = self._space.max_bytes
            self._drop(f"all task logs together may have {most} bytes (logs.max_total_bytes)")
            return
        try:
            self._write(line)
        except OSError as error:
            self._drop(f"{self._path}: {error.strerror}")
            return
        self._entries += 1
        self._wake()

    def _write(self, line: bytes) -> None:
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        written = os.write(self._descriptor, line)
        try:
            while written < len(line):  # cut short: the next write goes on, or says why not
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written
        self._space.used += written

    def _drop(self, reason: str) -> None:
        self._dropped += 1
        self._drop_reason = reason

    def close(self, *, final: bool = True) -> None:
        """No more entries come; readers that wait are told.

        :param final: nor in a later run of the node.
        """
        if self._closed:
            return
        self._closed = True
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with suppress(OSError):
                os.close(descriptor)
        if final:
            self.offer()
        self._wake()

    def offer(self) -> None:
        """Let the file of a finished task go when others need the space."""
        if self._size:
            self._space.closed(self)

    def give_way(self) -> int:
        size, self._size = self._size, 0
        self._gave_way = True
        with suppress(OSError):
            os.unlink(self._path)
        return size

    def remove(self) -> None:
        """Delete the file, if the disk lets us; :meth:`TaskLogDirectory.prune` tries again."""
        self.close()
        if self._size:
            with suppress(OSError):
                os.unlink(self._path)
            self._space.removed(self, self._size)

    def take_up(self, *, finished: bool) -> None:
        """Go on with a file that is there. A line that a crash has cut is cut off.

        :param finished: nothing comes any more; :meth:`offer` it in its turn.
        """
        self._take_up(finished)
        self._space.used += self._size

    def _take_up(self, finished: bool) -> None:
        self._closed = finished
        try:
            with suppress(FileNotFoundError), open(self._path, "rb+") as file:
                self._size = file.seek(0, os.SEEK_END) if finished else self._whole_lines(file)
        except OSError:
            self._size = 1  # so that who reads it is told why that is not possible

    def _whole_lines(self, file: BinaryIO) -> int:
        """Cut off a line that has no end; the size without it."""
        whole = 0
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
                self._entries += 1
        file.truncate(whole)
        return whole

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, cursor: int, *, wait: bool) -> LogChunk:
        """Entries from the byte ``cursor`` on; with ``wait``, at least one unless it is closed."""
        while wait and not self._closed and cursor >= self._size:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
        if self._gave_way:
            why = "the log was deleted to make room for newer ones (logs.max_total_bytes)"
            return LogChunk(entries=(self._remark(why),), cursor=cursor, finished=True)
        chunk = self._read(cursor) if cursor < self._size else _nothing(cursor)
        entries = chunk.entries
        # A file that somebody cut ends before our size does; nobody may read that end for ever.
        cursor = max(chunk.cursor, self._size) if chunk.finished else chunk.cursor
        finished = cursor >= self._size and self._closed
        if finished and self._dropped:
            reason = f"{self._dropped} log entries were dropped: {self._drop_reason}"
            entries += (self._remark(reason),)
        return LogChunk(entries=entries, cursor=cursor, finished=finished)

    def _read(self, cursor: int) -> LogChunk:
        try:
            return read_entries(self._path, cursor)
        except OSError as error:
            remark = self._remark(f"the log cannot be read: {self._path}: {error.strerror}")
            return LogChunk(entries=(remark,), cursor=cursor, finished=True)

    def _remark(self, message: str) -> LogEntry:
        return LogEntry(
            seq=self._entries + 1,
            ts=time.time(),
            level="warn",
            source="node",
            message=message,
            execution_id="",
        )


def _nothing(cursor: int) -> LogChunk:
    return LogChunk(entries=(), cursor=cursor, finished=True)


def read_entries(path: str, cursor: int) -> LogChunk:
    """Whole entries of a log file from the byte ``cursor`` on; ``finished`` at its end.

    A line that is no entry (a crash cut it, somebody edited it) is passed over, and so is one
    without an end.
    """
    entries: list[LogEntry] = []
    with open(path, "rb") as file:
        file.seek(cursor)
        block = file.read(_CHUNK_BYTES)
        if b"\n" not in block and len(block) == _CHUNK_BYTES:
            block += file.readline()
    position = 0
    while len(entries) < _CHUNK_ENTRIES and (end := block.find(b"\n", position)) >= 0:
        with suppress(msgspec.DecodeError):
            entries.append(_decoder.decode(block[position:end]))
        position = end + 1
    at_end = len(block) < _CHUNK_BYTES or b"\n" not in block
    if at_end and block.find(b"\n", position) < 0:
        position = len(block)
    finished = at_end and position >= len(block)
    return LogChunk(entries=tuple(entries), cursor=cursor + position, finished=finished)


class TaskLogDirectory:
    """Makes the logs of tasks, and still reads those of an earlier run of the node."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        warn: Callable[[str], None],
        max_total_bytes: float = math.inf,
    ) -> None:
        self._directory = str(directory)
        self._max_bytes = max_bytes
        self._space = LogSpace(max_total_bytes)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            warn(f"task logs cannot be written: {directory}: {error.strerror}")

    def open(self, task_id: str) -> TaskLog:
        """The log of a new task; the file is made by its first entry."""
        path = f"{self._directory}/{task_id}.log"
        return TaskLog(path, max_bytes=self._max_bytes, space=self._space)

    def reopen(self, task_id: str, *, finished: bool) -> TaskLog:
        """The log of a task that an earlier run of the node had; it goes on where it was, unless
        the task is finished."""
        log = self.open(task_id)
        log.take_up(finished=finished)
        return log

    def reconfigure(self, config: LogConfig) -> None:
        """Take other limits: of each, for the logs of tasks to come; of all together, now."""
        self._max_bytes = config.max_task_log_bytes
        self._space.max_bytes = config.max_total_bytes
        self._space.make_room(0)

    def read_old(self, task_id: str, cursor: int) -> LogChunk | None:
        """Entries of a task that an earlier run of the node had; ``None``: no such log."""
        if not task_id.replace("-", "").isalnum():
            return None
        try:
            return read_entries(f"{self._directory}/{task_id}.log", cursor)
        except OSError:
            return None

    def prune(self, keep: int, known: Container[str] = ()) -> None:
        """Keep the newest ``keep`` files that an earlier run left, and those of ``known`` tasks,
        as far as all of them together may have the space; to be called once, at the start."""
        with suppress(OSError):
            found = (path for path in Path(self._directory).glob("*.log") if path.stem not in known)
            files = sorted(found, key=lambda path: path.stat().st_mtime)
            gone = max(0, len(files) - keep)
            for path in files[:gone]:
                path.unlink(missing_ok=True)
            for path in reversed(files[gone:]):
                old = OldLog(str(path), path.stat().st_size)
                self._space.used += old.size
                self._space.closed(old, oldest=True)
        self._space.make_room(0)
