"""What ``spear top`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spear_core.cli._listing import Column, age, size
from spear_core.cli._rates import History, Row
from spear_core.cli._terminal import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["COLUMNS", "heading", "screen"]

_MOST_ERRORS = 3


def _brief(seconds: float | None) -> str:
    """``85us``, ``1.2ms``, ``12ms``, ``3.4s``, ``5m``."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 100 else f"{seconds / 60:.0f}m"


def _rate(per_s: float) -> str:
    if per_s == 0:
        return "-"
    return f"{per_s:.2f}" if per_s < 1 else f"{per_s:.1f}" if per_s < 100 else f"{per_s:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _count(number: int) -> str:
    return str(number) if number else "-"


COLUMNS: tuple[Column[Row], ...] = (
    Column("ARTIFACT", lambda row: row.artifact),
    Column("RATE/S", lambda row: _rate(row.rates.per_s), right=True),
    Column("RUN", lambda row: _count(row.now.running), right=True),
    Column("QUEUE", lambda row: _count(row.now.queue_length), right=True),
    Column("P50", lambda row: _brief(row.rates.p50_s), right=True),
    Column("P95", lambda row: _brief(row.rates.p95_s), right=True),
    Column("ERR", lambda row: _count(row.rates.errors), right=True),
    Column("COLD", lambda row: _percent(row.rates.cold_share), right=True),
    Column("INST", lambda row: _count(row.now.active_instances), right=True),
    Column("CPU", lambda row: _percent(row.rates.cpu_share), right=True),
    Column("MEMORY", lambda row: size(row.memory_bytes).replace("iB", ""), right=True),
)


def heading(history: History) -> list[str]:
    """The lines about the node."""
    node, rates = history.newest, history.total()
    total = node.total
    errors = ", ".join(f"{code} {count}" for code, count in node.errors[:_MOST_ERRORS]) or "none"
    more = len(node.errors) - _MOST_ERRORS
    return [
        f"node {node.node_id} (spear {node.version}), up {age(node.started_at)}, "
        f"cpu {_percent(history.node_cpu_share())}, memory {size(node.memory_bytes)}",
        f"executions {_rate(rates.per_s)}/s, p50 {_brief(rates.p50_s)}, "
        f"p95 {_brief(rates.p95_s)}, in the queue p95 {_brief(rates.queued_p95_s)}",
        f"running {total.running}, queued {total.queue_length}, "
        f"instances {total.active_instances}, refused {node.rejected}",
        f"errors: {errors}" + (f" and {more} other codes" if more > 0 else ""),
    ]


def screen(history: History, *, width: int, height: int) -> RenderableType:
    """Everything, for a terminal of this size."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(visible(line), no_wrap=True, overflow="ellipsis") for line in heading(history)]
    lines[0].stylize("bold")
    rows = history.rows()
    space = max(1, height - len(lines) - 4)  # two empty lines, the titles, the last line
    hidden = len(rows) - space
    left = f"{hidden} more artifacts; " if hidden > 0 else ""
    foot = Text(f"{left}over {history.elapsed_s:.0f} s; q quits", style="dim")
    return Group(*lines, Text(), _table(rows[:space], width), Text(), foot)


def _table(rows: Sequence[Row], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    cells = [[visible(column.text(row)) for column in COLUMNS] for row in rows]
    lines = [[column.title for column in COLUMNS], *cells]
    figures = sum(max(len(line[i]) for line in lines) + 1 for i in range(1, len(COLUMNS)))
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(COLUMNS):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # the figures are shown whole, the name is cut
            max_width=None if number else max(len(column.title), width - figures),
        )
    for row, line in zip(rows, cells, strict=True):
        busy = row.rates.per_s or row.now.running or row.now.queue_length
        table.add_row(*map(Text, line), style="" if busy else "dim")
    return table
