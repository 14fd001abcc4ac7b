"""``spear ps``."""

from __future__ import annotations

import time

import click

from spear_core.api import TaskInfo
from spear_core.cli._client import ask
from spear_core.cli._listing import Column, age, duration, show
from spear_core.cli._options import Options, common_options, json_option, pass_options


def _took(task: TaskInfo) -> str:
    if task.started_at is None:
        return "-"
    return duration((task.completed_at or time.time()) - task.started_at)


def _error(task: TaskInfo) -> str:
    error = task.result.error if task.result else None
    return error.message.partition("\n")[0][:80] if error else ""


_COLUMNS: tuple[Column[TaskInfo], ...] = (
    Column("TASK", lambda task: task.task_id),
    Column("FUNCTION", lambda task: task.function),
    Column("STATE", lambda task: task.state.value),
    Column("AGE", lambda task: age(task.created_at), right=True),
    Column("TOOK", _took, right=True),
    Column("INSTANCE", lambda task: (task.result.instance_id if task.result else "") or "-"),
    Column("ERROR", _error),
)


@click.command("ps")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many, the newest first.",
)
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, limit: int, as_json: bool) -> None:
    """List the newest tasks.

    \b
    spear ps
    spear ps -n 100 --json
    """
    tasks = ask(options, lambda api: api.list_tasks(limit=limit))
    show(tasks, _COLUMNS, as_json=as_json, nothing="no tasks yet")
