"""What every benchmark prints: figures, each with its floor, their ratio and its target.

A floor is what the same work costs with nothing of ours around it, measured in the same run, so
that a ratio means the same on a slow machine and on a loaded one.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import TypedDict


class Row(TypedDict):
    name: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None
    target: str | None


class Report:
    """Rows of one benchmark; a table as they come, or one JSON document at the end.

    Use it as a block. `--json` on the command line asks for JSON.
    """

    def __init__(self, title: str, argv: list[str] | None = None) -> None:
        self.title = title
        self.rows: list[Row] = []
        self._json = "--json" in (sys.argv[1:] if argv is None else argv)

    def __enter__(self) -> Report:
        if not self._json:
            print(f"{self.title}  (Python {platform.python_version()})")
            print(f"  {'':<52}{'value':>12} {'':<7}{'floor':>10}{'ratio':>8}  target")
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._json and error is None:
            python = platform.python_version()
            json.dump({"title": self.title, "python": python, "rows": self.rows}, sys.stdout)
            print()

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        target: str | None = None,
    ) -> None:
        """One figure. `target` is the requirement as text, such as `<= 15`; see `meets`."""
        ratio = value / floor if floor else None
        self.rows.append(
            Row(name=name, value=value, unit=unit, floor=floor, ratio=ratio, target=target)
        )
        if self._json:
            return
        shown = f"{'' if floor is None else f'{floor:,.2f}':>10}"
        shown += f"{'' if ratio is None else f'{ratio:.2f}':>8}"
        verdict = ""
        if target is not None:
            verdict = f"  {target}" if meets(value, target) else f"  {target}  MISSED"
        print(f"  {name:<52}{value:>12,.2f} {unit:<7}{shown}{verdict}", flush=True)


def meets(value: float, target: str) -> bool:
    """Whether a value keeps a target written as `<= number` or `>= number`."""
    comparison, number = target.split()
    wanted = float(number.replace(",", ""))
    return value <= wanted if comparison == "<=" else value >= wanted


def percentile(values: list[float], percent: float) -> float:
    """The smallest of `values` that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
