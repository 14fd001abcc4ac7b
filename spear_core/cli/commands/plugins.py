"""``spear plugins``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.api import PluginInfo
from spear_core.cli._client import state_dir
from spear_core.cli._listing import Column, show
from spear_core.cli._options import (
    Options,
    common_options,
    config_option,
    json_option,
    pass_options,
)
from spear_core.cli._setup import default_config
from spear_core.cli._terminal import warn
from spear_core.config import NodeSettings, load_config
from spear_core.errors import SpearError
from spear_core.node import open_node
from spear_core.plugins import Plugins, load_plugins

_COLUMNS: tuple[Column[PluginInfo], ...] = (
    Column("PLUGIN", lambda p: p.name),
    Column("DISTRIBUTION", lambda p: f"{p.distribution} {p.version}"),
    Column("STATE", lambda p: p.state),
    Column("HEALTH", lambda p: p.health or "-"),
    Column("PROVIDES", lambda p: ", ".join(_families(p.provides)) or "-", names=True),
)
_REASON: Column[PluginInfo] = Column("REASON", lambda p: p.reason)


def _families(provides: Sequence[str]) -> Sequence[str]:
    """What a plugin provides, with the hostcalls of one family in one word."""
    return list(
        dict.fromkeys(
            f"{name.partition('.')[0]}.*" if name.startswith("hostcall:") else name
            for name in provides
        )
    )


@click.command("plugins")
@config_option
@json_option
@common_options()
@pass_options
def command(options: Options, config: Path | None, as_json: bool) -> None:
    """List the installed plugins and what they provide.

    Needs no node. A plugin that cannot be used is listed with the reason.

    \b
    spear plugins
    spear plugins --json
    """
    plugins = load_plugins()
    try:
        settings = load_config(config or default_config(os.environ), plugins)
        listed = trio.run(_ask, settings, plugins, state_dir(options))
    except SpearError as exc:
        warn(f"health is not known: {exc.message}")
        listed = [
            PluginInfo(
                name=plugin.name,
                distribution=plugin.distribution,
                version=plugin.version,
                provides=plugin.provides,
                state=plugin.state,
                reason=plugin.reason,
                health="",
            )
            for plugin in plugins.plugins
        ]
    troubled = any(plugin.reason for plugin in listed)
    show(listed, (*_COLUMNS, _REASON) if troubled else _COLUMNS, as_json=as_json)


async def _ask(settings: NodeSettings, plugins: Plugins, state: Path) -> Sequence[PluginInfo]:
    async with open_node(settings, plugins, state_dir=state, serve=False, ephemeral=True) as node:
        return await node.api.list_plugins()
