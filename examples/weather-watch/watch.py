"""Tell of each new record while the measurements are still coming in."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator

from spear_sdk import Context, function


async def lines_of(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Chunks are cut anywhere; lines are not."""
    rest = ""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield line
    if rest:
        yield rest


@function
async def watch(chunks: AsyncIterator[str], ctx: Context) -> AsyncIterator[str]:
    """Lines of `date,precipitation,temp_max,…` in, one line for each record out."""
    days = 0
    warmest = wettest = 0.0
    async for line in lines_of(chunks):
        date, rain, warm, *_ = next(csv.reader([line]))
        if date == "date":
            continue
        days += 1
        if float(warm) > warmest:
            warmest = float(warm)
            yield f"{date}: {warm} °C, the warmest day so far\n"
        if float(rain) > wettest:
            wettest = float(rain)
            yield f"{date}: {rain} mm, the wettest day so far\n"
    ctx.log.info("%d days seen", days)
