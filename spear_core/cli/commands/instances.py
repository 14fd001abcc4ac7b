"""``spear instances``."""

from __future__ import annotations

import click

from spear_core.api import InstanceInfo
from spear_core.cli._client import ask
from spear_core.cli._listing import Column, age, duration, show, size
from spear_core.cli._options import Options, common_options, json_option, pass_options

_COLUMNS: tuple[Column[InstanceInfo], ...] = (
    Column("INSTANCE", lambda i: i.instance_id),
    Column("ARTIFACT", lambda i: i.artifact),
    Column("RUNTIME", lambda i: i.runtime),
    Column("STATE", lambda i: i.state.value),
    Column("AGE", lambda i: age(i.created_at), right=True),
    Column("BUSY", lambda i: f"{i.outstanding}/{i.concurrency}", right=True),
    Column("IDLE", lambda i: duration(i.idle_s), right=True),
    Column("CALLS", lambda i: str(i.executions), right=True),
    Column("PID", lambda i: "-" if i.pid is None else str(i.pid), right=True),
    Column("CPU", lambda i: duration(i.cpu_seconds), right=True),
    Column("MEMORY", lambda i: size(i.memory_bytes), right=True),
)


@click.command("instances")
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, as_json: bool) -> None:
    """List live instances: what is running or kept warm.

    \b
    spear instances
    """
    found = ask(options, lambda api: api.list_instances())
    show(found, _COLUMNS, as_json=as_json, nothing="no live instances")
