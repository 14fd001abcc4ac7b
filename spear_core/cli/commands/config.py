"""``spear config``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from spear_core.cli._options import common_options, config_option
from spear_core.cli._setup import default_config
from spear_core.cli._terminal import warn, write_line
from spear_core.config import load_config
from spear_core.plugins import load_plugins


@click.group("config", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Check the configuration."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("check")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@config_option
@common_options()
def check(file: Path | None, config: Path | None) -> None:
    """Report everything that is wrong with the settings.

    Reads those of the node and of every plugin, and names each mistake by its TOML path.

    \b
    spear config check
    spear config check /etc/spear.toml
    """
    plugins = load_plugins()
    for line in plugins.failures:
        warn(line)
    path = file or config or default_config(os.environ)
    load_config(path, plugins)
    write_line(f"{path}: no problems" if path else "no configuration file; the defaults apply")
