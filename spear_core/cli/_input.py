"""The input of a function: given on the command line, in a file, or on stdin."""

from __future__ import annotations

import mimetypes
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from spear_core.cli._terminal import note

__all__ = ["Input", "Pieces", "input_options"]

F = TypeVar("F", bound=Callable[..., Any])

_PATIENCE_S = 2.0
"""How long we wait for stdin in silence; somebody may have started us with a pipe that nobody
closes, and would wonder why nothing happens."""
_BLOCK = 1 << 20
_PIECE = 1 << 16


def input_options(command: F) -> F:
    """``--input``, ``--input-file`` and ``--content-type``."""
    command = click.option(
        "--content-type",
        metavar="TYPE",
        help="What the input is. Default: text for --input, by its suffix for a file.",
    )(command)
    command = click.option(
        "--input-file",
        metavar="FILE",
        help="Read the input from a file (`-`: stdin).",
    )(command)
    return click.option(
        "--input", "-i", "input_text", metavar="TEXT", help="The input. Default: stdin."
    )(command)


class Input:
    """Where the input comes from. Nothing is read before :meth:`read`."""

    def __init__(self, text: str | None, file: str | None, content_type: str | None = None) -> None:
        if text is not None and file is not None:
            raise click.UsageError("--input and --input-file cannot both be given")
        if file not in (None, "-"):
            path = Path(file)
            if path.is_dir() or not path.exists():
                what = "is a directory" if path.is_dir() else "no such file"
                raise click.UsageError(f"--input-file {file}: {what}")
        self._text = text
        self._file = file
        self.content_type = content_type or _guess_type(text, file)

    async def read(self, limit: int) -> bytes:
        """All of it. stdin only when nothing else was given, and never a terminal unless asked
        for by ``-``; without a stdin the input is empty.

        :raises click.UsageError: it is longer than ``limit`` bytes, or cannot be read.
        """
        if self._text is not None:
            return _checked(os.fsencode(self._text), limit, "--input")
        return await trio.to_thread.run_sync(self._read, limit, abandon_on_cancel=True)

    def pieces(self) -> Pieces:
        """The same piece by piece, as it comes; a terminal too, for whoever streams may type."""
        return Pieces(self._text, self._file)

    def _read(self, limit: int) -> bytes:
        try:
            if self._file is None:
                return _checked(b"" if _no_stdin() else _read_stdin(limit), limit, "stdin")
            if self._file == "-":
                return _checked(_read_stdin(limit), limit, "stdin")
            with open(self._file, "rb") as file:
                return _checked(file.read(limit + 1), limit, self._file)
        except OSError as exc:
            raise click.UsageError(
                f"{'stdin' if self._file in (None, '-') else self._file} cannot be read: "
                f"{exc.strerror or exc}"
            ) from exc


class Pieces:
    """An input that is read as it is wanted; open it with ``with``."""

    def __init__(self, text: str | None, file: str | None) -> None:
        self._text = None if text is None else os.fsencode(text)
        self._file = file
        self._descriptor = -1
        self._pollable = True

    def __enter__(self) -> Pieces:
        try:
            if self._text is None:
                if self._file not in (None, "-"):
                    self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
                elif sys.stdin is not None and not sys.stdin.closed:
                    self._descriptor = os.dup(sys.stdin.fileno())
        except OSError as exc:
            raise self._unreadable(exc) from exc
        return self

    def __exit__(self, *exc: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def next(self) -> bytes:
        """What is there next, at most 64 KiB; empty at the end.

        :raises click.UsageError: it cannot be read.
        """
        if self._text is not None or self._descriptor < 0:
            data, self._text = (self._text or b"")[:_PIECE], (self._text or b"")[_PIECE:]
            await trio.lowlevel.checkpoint()
            return data
        while True:
            try:
                if self._pollable:
                    await trio.lowlevel.wait_readable(self._descriptor)
            except PermissionError:  # a file is always readable, and epoll does not take it
                self._pollable = False
            try:
                return os.read(self._descriptor, _PIECE)
            except BlockingIOError:  # somebody else was quicker
                continue
            except OSError as exc:
                raise self._unreadable(exc) from exc

    def _unreadable(self, exc: OSError) -> click.UsageError:
        name = "stdin" if self._file in (None, "-") else self._file
        return click.UsageError(f"{name} cannot be read: {exc.strerror or exc}")


def _guess_type(text: str | None, file: str | None) -> str:
    if text is not None:
        return "text/plain; charset=utf-8"
    guessed = mimetypes.guess_type(file)[0] if file is not None else None
    return guessed or "application/octet-stream"


def _checked(data: bytes, limit: int, source: str) -> bytes:
    if len(data) > limit:
        raise click.UsageError(
            f"the input ({source}) is longer than {limit} bytes, the most that is taken"
        )
    return data


def _no_stdin() -> bool:
    return sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()


def _read_stdin(limit: int) -> bytes:
    descriptor = sys.stdin.fileno()
    if not sys.stdin.isatty() and not select.select([descriptor], [], [], _PATIENCE_S)[0]:
        note("reading the input from stdin (if there is none: --input '')")
    blocks = []
    size = 0
    while size <= limit and (block := os.read(descriptor, _BLOCK)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)
