"""The node's own Python, which runs the launchers, agents and `.py` commands."""

from __future__ import annotations

import site
import sys
import sysconfig

_ISOLATED = ("-I", "-X", "utf8")
_ADD_PATH = "sys.path.extend(path for path in sys.argv[1:] if path not in sys.path); "


def import_path() -> list[str]:
    """Where its standard library and its installed packages are.

    That leaves out what stands before the standard library on `sys.path`: the current directory
    or that of a script, and `PYTHONPATH`, which are the node's own affair.
    """
    first = sysconfig.get_path("stdlib")
    start = sys.path.index(first) if first in sys.path else 0
    return [path for path in sys.path[start:] if path.startswith("/")]


def places() -> list[str]:
    """All directories it needs to be able to read."""
    prefixes = {sys.base_prefix, sys.prefix, sys.base_exec_prefix, sys.exec_prefix}
    return [*sorted(prefixes), *import_path()]


def environment() -> dict[str, str]:
    """What a `.py` command needs to find packages that were installed for this user only."""
    base = site.getuserbase() if site.ENABLE_USER_SITE else ""
    return {"PYTHONUSERBASE": base} if base else {}


def calling(module: str, function: str) -> list[str]:
    """A command line that calls `module.function()` in an interpreter with the same packages."""
    program = f"import sys; {_ADD_PATH}from {module} import {function}; sys.exit({function}())"
    return [sys.executable, *_ISOLATED, "-u", "-c", program, *import_path()]
