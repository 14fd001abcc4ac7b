"""How artifacts and their functions are called: ``artifact[@version][:entry]``."""

from __future__ import annotations

import re
from functools import lru_cache

from spear_core.errors import InvalidRequestError

__all__ = ["check_artifact_name", "parse_artifact", "parse_function"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FUNCTION = re.compile(r"(?P<name>[^@:]+)(?:@(?P<version>[0-9]{1,9}|latest))?(?::(?P<entry>.+))?")


def check_artifact_name(name: str) -> None:
    """:raises InvalidRequestError: nothing can be deployed under this name."""
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"artifact name {name!r}: use 1 to 100 letters, digits, '-', '_' and '.', "
            "beginning with a letter or digit"
        )


@lru_cache(maxsize=1024)  # a node is asked for the same few, over and over
def parse_function(function: str) -> tuple[str, int | None, str]:
    """``artifact[@version][:entry]`` → name, version (``None``: the latest), entry.

    :raises InvalidRequestError: it is not of that form.
    """
    match = _FUNCTION.fullmatch(function)
    if match is None:
        raise InvalidRequestError(
            f"function {function!r} is not of the form name[@version][:entry]"
        )
    version = match["version"]
    return (
        match["name"],
        int(version) if version and version != "latest" else None,
        match["entry"] or "",
    )


def parse_artifact(ref: str, *, what: str = "") -> tuple[str, int | None]:
    """``name[@version]`` → name and version (``None``: the latest).

    :param what: begins the message.
    :raises InvalidRequestError: it is not of that form.
    """
    name, number, entry = parse_function(ref)
    if entry:
        raise InvalidRequestError(f"{what}{ref!r} is not of the form name[@version]")
    return name, number
