"""Reading a node's own log from its state directory, also while the node writes it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import trio

from spear_core.cli._terminal import on_terminal, visible, write_line
from spear_core.errors import InvalidRequestError

__all__ = ["copy_system_log"]

_POLL_S = 0.2


async def copy_system_log(path: Path, *, follow: bool, as_json: bool) -> None:
    """Print the log; with ``follow``, for ever, through rotations.

    :raises InvalidRequestError: there is none that can be read.
    """
    older = path.with_name(path.name + ".1")
    if older.exists():
        with older.open("rb") as rotated:
            _copy(rotated, as_json=as_json)
    try:
        file: BinaryIO = path.open("rb")
    except OSError as exc:
        raise InvalidRequestError(
            f"no system log at {path}: {exc.strerror}; has a node run on this state directory?",
            code="not_found",
        ) from exc
    try:
        _copy(file, as_json=as_json)
        while follow:
            await trio.sleep(_POLL_S)
            _copy(file, as_json=as_json)
            if (fresh := _rotated(path, file)) is not None:
                _copy(file, as_json=as_json)
                file.close()
                file = fresh
    finally:
        file.close()


def _rotated(path: Path, file: BinaryIO) -> BinaryIO | None:
    """The new file, when ``path`` is no longer the one that is open."""
    try:
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return None
        return path.open("rb")
    except FileNotFoundError:
        return None


def _copy(file: BinaryIO, *, as_json: bool) -> None:
    """Print the whole lines from here on; a line that is not finished yet waits."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        text = line.decode(errors="replace").rstrip("\n")
        write_line(text if as_json else _readable(text))


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["ts"]))
        text = f"{when} {entry['level']:<7} {entry['message']}"
        if trace := entry.get("traceback"):
            text += "\n" + str(trace).rstrip("\n")
    except (ValueError, KeyError, TypeError):
        text = line
    return visible(text) if on_terminal(sys.stdout) else text
