"""Which files of a directory belong to an artifact."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["matcher", "walk"]

_LEFT_OUT = frozenset({"__pycache__", "node_modules"})
_LEFT_OUT_SUFFIXES = (".pyc", ".pyo")


def matcher(pattern: str) -> re.Pattern[str]:
    """For paths with ``/`` below the directory, in a whole match.

    ``*`` and ``?`` stand for anything but ``/``, ``**`` for any number of directories. A pattern
    without ``/`` is looked for in every directory, and one that means a directory takes all that
    is below it.

    :raises ValueError: the pattern leads out of the directory.
    """
    parts = pattern.removesuffix("/").removeprefix("./").split("/")
    if not pattern or pattern.startswith("/") or ".." in parts or "" in parts:
        raise ValueError("expected a pattern for paths below the directory of spear.toml")
    expression = "" if len(parts) > 1 else "(?:.*/)?"
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            expression += ".*" if last else "(?:.*/)?"
        else:
            expression += _segment(part) + ("" if last else "/")
    return re.compile(f"{expression}(?:/.*)?", re.DOTALL)


def _segment(part: str) -> str:
    special = {"*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(character) or re.escape(character) for character in part)


def walk(root: Path, excluded: Sequence[re.Pattern[str]]) -> Iterator[tuple[str, bool]]:
    """Every path below ``root`` that may belong to an artifact, in order, and whether it is a
    symbolic link to a directory, which is not followed.

    Left out are hidden files, caches, virtual environments and what is excluded.

    :raises OSError: a directory cannot be read.
    """
    for directory, names, files in os.walk(root, onerror=_raise):
        base = Path(directory)
        below = base.relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        links = []
        for name in sorted(names):
            path = f"{prefix}{name}"
            inner = base / name
            out = _is_left_out(name) or any(p.fullmatch(path) for p in excluded)
            if out or (inner / "pyvenv.cfg").exists():
                names.remove(name)
            elif inner.is_symlink():
                names.remove(name)
                links.append(path)
        names.sort()
        yield from ((path, True) for path in links)
        for name in sorted(files):
            path = f"{prefix}{name}"
            if not _is_left_out(name) and not any(p.fullmatch(path) for p in excluded):
                yield path, False


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_OUT or name.endswith(_LEFT_OUT_SUFFIXES)


def _raise(error: OSError) -> None:
    raise error
