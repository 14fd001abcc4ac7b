"""``spear cancel``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from spear_core.api import NodeApi, TaskState
from spear_core.cli._client import ask
from spear_core.cli._exit_codes import OK, exit_code
from spear_core.cli._options import Options, common_options, pass_options
from spear_core.cli._tasks import leave
from spear_core.cli._terminal import error, write_line
from spear_core.errors import TaskNotFoundError


@click.command("cancel")
@click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
@click.option("--reason", default="", metavar="TEXT", help="For the task's result and its log.")
@common_options(node=True)
@pass_options
def command(options: Options, task_ids: Sequence[str], reason: str) -> None:
    """Cancel tasks, and wait until nothing of them runs.

    A task that has ended already stays as it is.

    \b
    spear cancel t-0123456789abcdef --reason "wrong input"
    """

    async def cancel(api: NodeApi) -> int:
        code = OK
        for task_id in task_ids:
            try:
                task = await api.cancel_task(task_id, reason=reason)
            except TaskNotFoundError as exc:
                error(exc.message)
                code = exit_code(exc.code)
                continue
            ended = "" if task.state is TaskState.CANCELLED else " (it had ended already)"
            write_line(f"{task.task_id} {task.state.value}{ended}")
        return code

    leave(ask(options, cancel))
