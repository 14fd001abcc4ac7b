"""``spear`` itself: its commands are imported when they are used, not before."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from spear_core import __version__
from spear_core.cli._options import common_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "LazyGroup", "cli"]

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Write and run": {
        "new": "Start a project from a template.",
        "run": "Run code once, here and now, without a node.",
        "deploy": "Store code on a node, ready to be invoked.",
        "invoke": "Call a deployed function.",
    },
    "Look and act": {
        "ps": "List the newest tasks.",
        "result": "Print the result of a task.",
        "logs": "Print the log of a task, or the node's own.",
        "cancel": "Cancel tasks, and wait until nothing of them runs.",
        "artifacts": "List what is deployed, and choose between versions.",
        "objects": "Put objects on a node, get them, and see who keeps them.",
        "instances": "List live instances: what is running or kept warm.",
    },
    "Operate": {
        "node": "Run a node on this machine.",
        "status": "Show how the node is doing.",
        "top": "Watch the node at work: rates, durations, errors, instances.",
        "plugins": "List the installed plugins and what they provide.",
        "config": "Check the configuration.",
        "backup": "Write all that a node keeps to a new directory or archive.",
        "restore": "Put a backup into the state directory, for a node to start on.",
        "fsck": "Check what a stopped node keeps, and put it right.",
        "doctor": "Find out what this machine offers and what is missing.",
        "completion": "Print the completion script for a shell.",
    },
}
"""Section of the help → command → its first line of help. A command ``x`` is the object
``command`` of the module ``spear_core.cli.commands.x``."""

_OURS: Mapping[str, str] = {name: text for part in COMMANDS.values() for name, text in part.items()}


class LazyGroup(click.Group):
    """Imports a command's module when it is needed; knows the first line of its help without."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked_plugins = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._ask_plugins()
        return [*_OURS, *(name for name in sorted(self.commands) if name not in _OURS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OURS:
            module = importlib.import_module(f"spear_core.cli.commands.{cmd_name}")
            command = module.command
            assert isinstance(command, click.Command)
            return command
        self._ask_plugins()
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self._ask_plugins()
        added = {
            name: command.get_short_help_str()
            for name, command in sorted(self.commands.items())
            if name not in _OURS and not command.hidden
        }
        width = max(map(len, [*_OURS, *added]))
        for title, rows in [*COMMANDS.items(), ("From plugins", added)]:
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=_OURS.get(name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def _ask_plugins(self) -> None:
        if not self._asked_plugins:
            self._asked_plugins = True
            from spear_core.cli._plugin_commands import add_plugin_commands

            add_plugin_commands(self, ours=frozenset(_OURS))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`spear COMMAND --help` says more about each, with examples.",
)
@click.version_option(__version__, "-V", "--version", message="spear %(version)s")
@common_options(node=True)
@click.pass_context
def cli(context: click.Context) -> None:
    """Run functions and agents: fast, isolated, close by.

    \b
    spear run hello.py --input world           run a file once
    spear node                                 keep a node running
    spear deploy hello.py --name hello         ... give it the file
    spear invoke hello --input world           ... and call it
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
