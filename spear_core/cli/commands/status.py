"""``spear status``."""

from __future__ import annotations

import click

from spear_core.api import NodeStatus
from spear_core.cli._client import ask
from spear_core.cli._listing import age, duration, print_json
from spear_core.cli._options import Options, common_options, json_option, pass_options
from spear_core.cli._terminal import visible, write_line


@click.command("status")
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, as_json: bool) -> None:
    """Show how the node is doing.

    \b
    spear status
    spear status --json
    """
    status = ask(options, lambda api: api.status())
    if as_json:
        print_json(status)
        return
    for name, text in _facts(status):
        write_line(f"{name:<12} {visible(text)}")


def _facts(status: NodeStatus) -> list[tuple[str, str]]:
    average = duration(status.average_execution_time_ms / 1000)
    executions = (
        f"{status.total_executions} ({status.successful_executions} successful, "
        f"{status.failed_executions} failed), {average} on average"
    )
    return [
        ("node", f"{status.node_id} (spear {status.version}, pid {status.pid})"),
        ("up for", age(status.started_at)),
        ("state", status.state_dir),
        ("tasks", f"{status.running} running, {status.queued} queued"),
        ("executions", executions),
        ("instances", str(status.instances)),
        *((f"runtime {r.name}", f"{r.health} {r.message}".strip()) for r in status.runtimes),
    ]
