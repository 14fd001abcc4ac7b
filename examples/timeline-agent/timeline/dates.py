"""Reads events: one to a line, a date, then what happened."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from spear_sdk import FunctionError


class Event(NamedTuple):
    """What happened, and when."""

    day: datetime.date
    what: str


def read_events(text: str) -> list[Event]:
    """The events, oldest first. Raises: FunctionError for a line without a date."""
    events = []
    for line in filter(str.strip, text.splitlines()):
        day, _, what = line.strip().partition(" ")
        try:
            events.append(Event(datetime.date.fromisoformat(day), what))
        except ValueError:
            raise FunctionError(f"no date at the beginning of {line!r}") from None
    return sorted(events)
