"""An agent that asks three functions at once and joins their answers."""

import asyncio
import csv
import io
import statistics
from typing import Any

from spear_sdk import Context, FunctionError, HostcallError, function


@function
async def report(table: str, ctx: Context) -> dict[str, Any]:
    """Hand the table to three functions side by side; each is a task of its own."""
    names = ("warmest", "wettest", "kinds")
    try:
        answers = await asyncio.gather(
            *(ctx.ainvoke(f"{ctx.artifact}:{name}", table) for name in names)
        )
    except HostcallError as error:
        raise FunctionError(f"no report: {error}", code=error.code) from error
    ctx.log.info("joined %d answers", len(answers))
    return dict(zip(names, answers, strict=True))


def _days(table: str) -> list[dict[str, str]]:
    days = list(csv.DictReader(io.StringIO(table)))
    if not days or "temp_max" not in days[0]:
        raise FunctionError("this is no weather table", code="invalid_argument")
    return days


@function
def warmest(table: str) -> dict[str, Any]:
    """The day with the highest temperature, and the usual one."""
    days = _days(table)
    best = max(days, key=lambda day: float(day["temp_max"]))
    usual = statistics.mean(float(day["temp_max"]) for day in days)
    return {"date": best["date"], "celsius": float(best["temp_max"]), "usual": round(usual, 1)}


@function
def wettest(table: str) -> dict[str, Any]:
    """The day with the most rain."""
    best = max(_days(table), key=lambda day: float(day["precipitation"]))
    return {"date": best["date"], "millimetres": float(best["precipitation"])}


@function
def kinds(table: str, ctx: Context) -> dict[str, int]:
    """How many days of each kind."""
    days = _days(table)
    ctx.log.info("counting %d days", len(days))
    return {kind: sum(day["weather"] == kind for day in days) for kind in ("rain", "snow", "sun")}
