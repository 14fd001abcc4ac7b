"""Listings: a table for people, JSON for programs."""

from __future__ import annotations

import base64
import enum
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import attrs

from spear_core.cli._terminal import note, on_terminal, one_line, write_line

__all__ = ["Column", "age", "duration", "plain", "print_json", "show", "size"]

T = TypeVar("T")


@attrs.frozen
class Column(Generic[T]):
    """One column of a listing."""

    title: str
    text: Callable[[T], str]
    right: bool = False
    names: bool = False
    """``a, b, c``, which a terminal gets below each other, and unbroken."""


def show(
    rows: Sequence[T], columns: Sequence[Column[T]], *, as_json: bool, nothing: str = ""
) -> None:
    """Print rows: as JSON, as a table on a terminal, as plain aligned columns elsewhere.

    :param nothing: said on stderr when there are no rows and a person asks.
    """
    if as_json:
        print_json(rows)
        return
    cells = [[one_line(column.text(row)) for column in columns] for row in rows]
    if not rows and nothing:
        note(nothing)
    elif on_terminal(sys.stdout):
        _show_table(cells, columns)
    else:
        _show_plain(cells, columns)


def _show_table(cells: Sequence[Sequence[str]], columns: Sequence[Column[T]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        whole = number == 0 or column.right or column.names  # a name to copy, or a figure
        table.add_column(column.title, justify=justify, overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(
            *(
                Text(cell.replace(", ", "\n") if column.names else cell)
                for cell, column in zip(row, columns, strict=True)
            )
        )
    Console().print(table)


def _show_plain(cells: Sequence[Sequence[str]], columns: Sequence[Column[T]]) -> None:
    lines = [[column.title for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        write_line("  ".join(padded).rstrip())


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    write_line(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: object) -> Any:
    """A value of ours as JSON has it: attrs classes as objects, enums by name, bytes as text when
    they are UTF-8, else as ``{"base64": …}``."""
    cls = type(value)
    if attrs.has(cls):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(cls)}
    if isinstance(value, enum.IntEnum):
        return value.name.lower()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _plain_bytes(bytes(value))
    return value


def _plain_bytes(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def age(since: float | None) -> str:
    """``5s``, ``3m``, ``2h``, ``4d`` since a time in seconds of the Unix epoch."""
    if since is None:
        return "-"
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def duration(seconds: float | None) -> str:
    """``0.4 ms``, ``12 ms``, ``3.4 s``, ``5m 10s``, ``30h 5m``, ``3.5 days``."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)}m {int(seconds % 60)}s"
    if seconds < 2 * 86400:
        return f"{int(seconds // 3600)}h {int(seconds % 3600 // 60)}m"
    return f"{seconds / 86400:.3g} days"


def size(count: int | None) -> str:
    """``812 B``, ``1.5 KiB``, ``64 MiB``."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
