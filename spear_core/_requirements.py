"""Python requirements, as far as the core looks at them: one plain line each.

What a requirement means is for the installer to say. Here only that is kept out which would be
something else to an installer: an option, a path, an address.
"""

from __future__ import annotations

import re

__all__ = ["check_requirement", "parse_requirements"]

_PLAIN = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*"  # name
    r"\s*(?:\[[A-Za-z0-9._,\s-]*\])?"  # extras
    r"\s*(?:\(?[<>=!~][^;@\s][^;@]*\)?)?"  # versions
    r"(?:;[^@]*)?"  # marker
)
_HASHES = re.compile(r"((?:\s+--hash=\w+:[0-9a-fA-F]+)+)\s*$")


def check_requirement(text: str) -> None:
    """:raises ValueError: it is no requirement of a package by name; says what is wrong."""
    if text != text.strip() or not text.isprintable() or len(text) > 4096:
        raise ValueError("expected one line without spaces around it")
    plain = _HASHES.sub("", text)
    if re.search(r"(^|\s)-", plain):
        raise ValueError("options for the installer have no place here")
    if "@" in plain:
        raise ValueError("only packages of an index are installed, not those of an address or file")
    if not _PLAIN.fullmatch(plain):
        raise ValueError("is no requirement such as `name`, `name>=1.2` or `name[extra]==1.2`")


def parse_requirements(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    """The requirements in a ``requirements.txt``, and what is wrong: line number, text.

    Comments, empty lines and continued lines are understood, options other than ``--hash`` are not.
    """
    found: list[str] = []
    problems: list[tuple[int, str]] = []
    collected, first = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        first = first if collected else number
        collected = f"{collected} {line.removesuffix(chr(92)).strip()}".strip()
        if line.endswith("\\") or not collected:
            continue
        try:
            check_requirement(collected)
        except ValueError as error:
            problems.append((first, f"{collected}: {error}"))
        else:
            found.append(collected)
        collected = ""
    if collected:
        problems.append((first, f"{collected}: the line goes on, and the file ends"))
    return found, problems
