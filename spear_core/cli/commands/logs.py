"""``spear logs``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click
import trio

from spear_core.api import LogEntry
from spear_core.cli._client import ask, state_dir
from spear_core.cli._listing import plain
from spear_core.cli._options import Options, common_options, pass_options
from spear_core.cli._system_log import copy_system_log
from spear_core.cli._tasks import copy_log, format_entry
from spear_core.cli._terminal import on_terminal, write_line
from spear_core.node.paths import StatePaths


def _writer(*, as_json: bool, times: bool) -> Callable[[LogEntry], None]:
    terminal = on_terminal(sys.stdout)

    def write(entry: LogEntry) -> None:
        if as_json:
            write_line(json.dumps(plain(entry), ensure_ascii=False))
        else:
            write_line(format_entry(entry, times=times, terminal=terminal))

    return write


@click.command("logs")
@click.argument("task_id", metavar="[TASK]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until the task has ended.")
@click.option("--times", "-t", is_flag=True, help="Put the time of day before each entry.")
@click.option("--system", is_flag=True, help="The node's own log, from the state directory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@common_options(node=True)
@pass_options
def command(
    options: Options,
    task_id: str | None,
    follow: bool,
    times: bool,
    system: bool,
    as_json: bool,
) -> None:
    """Print the log of a task, or the node's own.

    \b
    spear logs t-0123456789abcdef
    spear logs t-0123456789abcdef -f --times
    spear logs --system -f
    """
    if system == bool(task_id):
        raise click.UsageError("name one task, or give --system for the node's own log")
    if task_id:
        write = _writer(as_json=as_json, times=times)
        ask(options, lambda api: copy_log(api, task_id, write, follow=follow))
        return
    path = StatePaths(state_dir(options)).system_log
    trio.run(lambda: copy_system_log(path, follow=follow, as_json=as_json))
