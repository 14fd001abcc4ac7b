"""``spear result``."""

from __future__ import annotations

import click

from spear_core.api import NodeApi, TaskInfo
from spear_core.cli._client import ask
from spear_core.cli._exit_codes import OK
from spear_core.cli._listing import print_json
from spear_core.cli._object_files import fetch_output
from spear_core.cli._options import Options, common_options, json_option, pass_options
from spear_core.cli._tasks import finish, leave, not_final, state_code


@click.command("result")
@click.argument("task_id", metavar="TASK")
@click.option("--wait", "-w", is_flag=True, help="Wait until the task has ended.")
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, task_id: str, wait: bool, as_json: bool) -> None:
    """Print the result of a task.

    Prints exactly its output; a task that failed says why and exits as `spear invoke` would have.
    Ctrl-C stops waiting and leaves the task alone.

    \b
    spear result t-0123456789abcdef --wait
    spear result t-0123456789abcdef --json
    """

    async def look(api: NodeApi) -> TaskInfo:
        task = await api.get_task(task_id, wait=wait)
        return await fetch_output(api, task, as_json=as_json)

    task = ask(options, look)
    if as_json:
        print_json(task)
        leave(state_code(task.state) if task.state.is_final else OK)
    elif task.state.is_final:
        leave(finish(task, hint=f"its log: spear logs {task.task_id}"))
    else:
        leave(not_final(task))
