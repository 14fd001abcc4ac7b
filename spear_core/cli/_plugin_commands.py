"""Commands that plugins add, found without importing a plugin that adds none.

Importing every plugin would take longer than all of ``spear --help`` may. A hook implementation
has to be called ``spear_commands``, so a plugin whose module does not contain that word has none.
"""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

from spear_core.cli._terminal import warn

if TYPE_CHECKING:
    import click

__all__ = ["add_plugin_commands"]

_HOOK = b"spear_commands"


def add_plugin_commands(cli: click.Group, *, ours: frozenset[str]) -> None:
    """Let the plugins add their commands; one that fails is reported and adds nothing.

    :param ours: commands of the core, which no plugin replaces.
    """
    entries = importlib.metadata.entry_points(group="spear")
    if not any(_may_have_commands(e.module) for e in entries if not e.value.startswith(_CORE)):
        return
    from spear_core.plugins import load_plugins

    plugins = load_plugins()
    for line in [*plugins.failures, *plugins.add_commands(cli)]:
        warn(line)
    for name in sorted(ours & cli.commands.keys()):
        warn(f"a plugin adds the command {name!r}, which the core has; the core's own is used")


_CORE = "spear_core."


def _may_have_commands(module: str) -> bool:
    """Whether the module's source mentions the hook; true when that cannot be told."""
    try:
        spec = _find(module)
        if spec is None:
            return False
        get_data = getattr(spec.loader, "get_data", None)
        if get_data is None or not spec.origin or not spec.origin.endswith(".py"):
            return True
        return _HOOK in get_data(spec.origin)
    except Exception:  # barrier: the plugin loader will say what is wrong with this plugin
        return True


def _find(module: str) -> ModuleSpec | None:
    """The spec of a module; unlike ``importlib.util.find_spec``, imports none of its packages."""
    path = None
    spec = None
    names = module.split(".")
    for count in range(1, len(names) + 1):
        name = ".".join(names[:count])
        found = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((one for one in found if one is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec
