"""Says in words how long lies between the events of a timeline."""

from __future__ import annotations

import itertools
import os

from timeline.dates import read_events
from timeline.words import between

from spear_sdk import Context, function


@function
def main(text: str, context: Context) -> str:
    """One line for each event after the first: how long after the one before it came."""
    events = read_events(text)
    context.log.info("%d events", len(events))
    mark = "-" if os.environ.get("STYLE") == "plain" else "•"
    return "\n".join(
        f"{mark} {between(first, second)}" for first, second in itertools.pairwise(events)
    )
