"""``spear config``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from spear_core.cli._client import ask
from spear_core.cli._listing import print_json
from spear_core.cli._options import (
    Options,
    common_options,
    config_option,
    json_option,
    pass_options,
)
from spear_core.cli._setup import default_config
from spear_core.cli._terminal import warn, write_line
from spear_core.config import load_config
from spear_core.node._secrets import Secrets
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

    Reads those of the node and of every plugin, and names each mistake by its TOML path. A secret
    that has no value here is named, too: the node may have another environment, so that is no
    mistake.

    \b
    spear config check
    spear config check /etc/spear.toml
    """
    plugins = load_plugins()
    for line in plugins.failures:
        warn(line)
    path = file or config or default_config(os.environ)
    secrets = Secrets(load_config(path, plugins).spearlet.secrets, warn=warn)
    for line in secrets.unresolved():
        warn(line)
    write_line(f"{path}: no problems" if path else "no configuration file; the defaults apply")


@command.command("reload")
@json_option
@common_options(node=True)
@pass_options
def reload(options: Options, as_json: bool) -> None:
    """Have the node read its configuration file again.

    Limits, pools, what is kept and the log level change at once; what runs goes on. Everything
    else is named and waits for a restart. A file with mistakes changes nothing.

    \b
    spear config reload
    """
    answer = ask(options, lambda api: api.reload_config())
    if as_json:
        print_json(answer)
        return
    for line in answer.changed:
        write_line(line)
    if not answer.changed:
        write_line(f"{answer.path}: nothing has changed that a running node can take")
    for name in answer.restart:
        warn(f"{name} takes effect when the node is restarted")
