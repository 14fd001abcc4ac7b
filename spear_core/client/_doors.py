"""Which front door speaks a URL's scheme, and where a node is when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from spear_core.api import FrontDoorSpec
from spear_core.errors import InvalidRequestError
from spear_core.node.paths import StatePaths, default_state_dir
from spear_core.plugins import BUILTINS, load_plugins

__all__ = ["door_for", "node_url"]


def node_url(state_dir: Path | None) -> str:
    """The local socket of the node on this state directory, or on the user's own."""
    return StatePaths(state_dir or default_state_dir(os.environ)).url


def door_for(url: str) -> FrontDoorSpec[object]:
    """The front door whose client reaches ``url``.

    :raises InvalidRequestError: no installed plugin speaks its scheme.
    """
    scheme = url.partition("://")[0]
    found: dict[str, FrontDoorSpec[object]] = {}
    for only in ([BUILTINS], None):  # the core's own are quick to load and usually enough
        found = {
            s: door.spec
            for door in load_plugins(only).front_doors.values()
            for s in door.spec.schemes
        }
        if scheme in found:
            return found[scheme]
    raise InvalidRequestError(
        f"the node's address {url!r} should begin with one of "
        f"{', '.join(f'{s}://' for s in sorted(found))}; no installed plugin speaks another scheme"
    )
