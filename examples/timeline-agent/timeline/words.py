"""Puts a distance in time into words, which a package from PyPI knows how to do."""

from __future__ import annotations

import humanize

from timeline.dates import Event


def between(first: Event, second: Event) -> str:
    """``Explorer 1: 3 months after Sputnik``."""
    distance = humanize.naturaldelta(second.day - first.day)
    return f"{second.what}: {distance} after {first.what}"
