"""``spear ps``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from spear_core.api import ExecutionUsage, NodeApi, TaskInfo
from spear_core.cli._client import ask
from spear_core.cli._listing import Column, age, duration, show, size
from spear_core.cli._options import Options, common_options, json_option, pass_options


def _took(task: TaskInfo) -> str:
    if task.started_at is None:
        return "-"
    return duration((task.completed_at or time.time()) - task.started_at)


def _usage(task: TaskInfo) -> ExecutionUsage:
    return task.result.usage if task.result else ExecutionUsage()


def _error(task: TaskInfo) -> str:
    error = task.result.error if task.result else None
    return error.message.partition("\n")[0][:80] if error else ""


_MOST = 10_000
"""Tasks looked through for one task's children."""


def _columns(tasks: Sequence[TaskInfo]) -> tuple[Column[TaskInfo], ...]:
    """What a person wants to see of these; parents and attempts only where there are any."""
    shown = list(_COLUMNS)
    if any(task.attempt > 1 for task in tasks):
        shown.insert(3, Column("ATTEMPT", lambda task: str(task.attempt), right=True))
    if any(task.parent_task_id for task in tasks):
        shown.insert(1, Column("PARENT", lambda task: task.parent_task_id or "-"))
    return tuple(shown)


_COLUMNS: tuple[Column[TaskInfo], ...] = (
    Column("TASK", lambda task: task.task_id),
    Column("FUNCTION", lambda task: task.function),
    Column("STATE", lambda task: task.state.value),
    Column("AGE", lambda task: age(task.created_at), right=True),
    Column("TOOK", _took, right=True),
    Column("CPU", lambda task: duration(_usage(task).cpu_seconds), right=True),
    Column("MEMORY", lambda task: size(_usage(task).peak_memory_bytes), right=True),
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
@click.option("--children", "parent", metavar="TASK", help="Only what this task has started.")
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, limit: int, parent: str | None, as_json: bool) -> None:
    """List the newest tasks.

    A task that another one has started shows that as its parent.

    \b
    spear ps
    spear ps -n 100 --json
    spear ps --children t-0123456789abcdef
    """
    if parent is None:
        tasks = ask(options, lambda api: api.list_tasks(limit=limit))
        nothing = "no tasks yet"
    else:
        tasks = ask(options, lambda api: _children(api, parent, limit))
        nothing = f"{parent} has started no task that is still kept"
    show(tasks, _columns(tasks), as_json=as_json, nothing=nothing)


async def _children(api: NodeApi, parent: str, limit: int) -> Sequence[TaskInfo]:
    task_id = (await api.get_task(parent)).task_id  # it may be an execution's, or wrong
    tasks = await api.list_tasks(limit=_MOST)
    return [task for task in tasks if task.parent_task_id == task_id][:limit]
