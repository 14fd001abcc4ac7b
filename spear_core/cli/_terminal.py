"""Writing to the user: messages on stderr, and a stdout that may go away."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TextIO

import click

__all__ = [
    "OutputClosedError",
    "OutputFailedError",
    "error",
    "flush_stdout",
    "note",
    "on_terminal",
    "one_line",
    "visible",
    "warn",
    "write_bytes",
    "write_line",
    "write_through",
]

_CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class OutputClosedError(Exception):
    """Who read our stdout has gone; nothing is left to say."""


class OutputFailedError(Exception):
    """Our stdout cannot be written, for example because the disk is full."""


def on_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches; a stream that was closed by whoever started us is ``None``."""
    return stream is not None and not stream.closed and stream.isatty()


def visible(text: str) -> str:
    """Text from elsewhere, fit for a terminal: colours stay, other control characters are shown."""
    return _CONTROL.sub(lambda m: m[0] if len(m[0]) > 1 else ascii(m[0])[1:-1], text)


def one_line(text: str) -> str:
    """A name or a fact from elsewhere as one line that says what it is: whatever is not printed as
    itself (an end of a line, a colour, what turns the direction of writing round) is shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        click.echo(text, err=True, color=False if os.environ.get("NO_COLOR") else None)


def error(text: str) -> None:
    """Something kept the command from doing what it was asked."""
    _say(f"{click.style('error:', fg='red', bold=True)} {text}")


def warn(text: str) -> None:
    """The command goes on, but the user should know."""
    _say(f"{click.style('warning:', fg='yellow', bold=True)} {text}")


def note(text: str) -> None:
    """For a person who watches."""
    _say(text)


def write_bytes(data: bytes) -> None:
    """Exactly these bytes on stdout; on a terminal the prompt comes on a new line after them."""
    if sys.stdout is None:
        raise OutputFailedError("standard output is closed")
    try:
        sys.stdout.flush()
        left = memoryview(data)
        while left:  # with PYTHONUNBUFFERED a write may take a part only
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except OSError as exc:
        raise _lost(exc) from exc
    if data and not data.endswith(b"\n") and on_terminal(sys.stdout) and on_terminal(sys.stderr):
        _say("")


def write_through(data: bytes) -> None:
    """Exactly these bytes on stdout, at once. It waits while nobody reads, and may be left to wait
    in a thread: nothing of Python's own output is locked meanwhile."""
    if sys.stdout is None:
        raise OutputFailedError("standard output is closed")
    try:
        sys.stdout.flush()
        left = memoryview(data)
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
    except OSError as exc:
        raise _lost(exc) from exc


def write_line(text: str) -> None:
    """One line on stdout, visible at once."""
    if sys.stdout is None:
        raise OutputFailedError("standard output is closed")
    try:
        click.echo(text)
    except OSError as exc:
        raise _lost(exc) from exc


def flush_stdout() -> None:
    """Write out what is buffered, so that a failure is seen while we can still say so."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as exc:
        raise _lost(exc) from exc


def _lost(exc: OSError) -> Exception:
    """Keep the interpreter from trying again at its end, and say what became of stdout."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(exc, BrokenPipeError):
        return OutputClosedError()
    return OutputFailedError(f"standard output cannot be written: {exc.strerror or exc}")
