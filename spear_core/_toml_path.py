"""How a place in a TOML document and a value in it are called in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs

__all__ = ["field_names", "join", "kind_of", "nearest"]


def join(path: str, key: str) -> str:
    """``path.key``, with the key quoted where TOML wants it."""
    part = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
    return f"{path}.{part}" if path else part


def kind_of(value: object) -> str:
    """What a value read from TOML is, in a word."""
    return "a table" if isinstance(value, dict) else type(value).__name__


def nearest(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing when no word is near."""
    import difflib

    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def field_names(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The keys that a section for this attrs class may have."""
    return {field.alias or field.name: field for field in attrs.fields(cls) if field.init}
