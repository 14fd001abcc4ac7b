"""Sizes and durations as people write them, on a command line and in ``spear.toml``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

__all__ = ["parse_duration", "parse_size"]

_UNITS: Mapping[str, float] = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: object) -> float:
    """Seconds, from ``1.5``, ``500ms``, ``30s``, ``2m`` or ``1h``. :raises ValueError: no such."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ms|s|m|h|)", str(text).strip().lower())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no duration; write 1.5, 500ms, 30s, 2m or 1h")
    return seconds


def parse_size(text: object) -> int:
    """Bytes, from ``1000``, ``64MiB``, ``64M`` (the same) or ``64MB`` (decimal).

    :raises ValueError: no such, or nothing.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(?:([KMGT]?)(I?B?))", str(text).strip().upper())
    if not match or match[3] == "I" or (match[3] == "IB" and not match[2]):
        raise ValueError(f"{text!r} is no size; write 1000, 64KiB, 64MiB or 2GiB")
    base = 1000 if match[3] == "B" else 1024
    size = int(float(match[1]) * base ** " KMGT".index(match[2] or " "))
    if size <= 0:
        raise ValueError("a size must be more than 0")
    return size
