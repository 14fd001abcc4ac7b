"""``spear artifacts``."""

from __future__ import annotations

import click

from spear_core.api import ArtifactInfo
from spear_core.cli._client import ask
from spear_core.cli._listing import Column, age, show, size
from spear_core.cli._options import Options, common_options, json_option, pass_options
from spear_core.cli._terminal import write_line

_COLUMNS: tuple[Column[ArtifactInfo], ...] = (
    Column("NAME", lambda a: a.name),
    Column("VERSION", lambda a: str(a.version), right=True),
    Column("RUNTIME", lambda a: a.runtime),
    Column("SHAPE", lambda a: a.shape),
    Column("FILE", lambda a: a.filename + (f":{a.entry}" if a.entry else "")),
    Column("SIZE", lambda a: size(a.size), right=True),
    Column("AGE", lambda a: age(a.created_at), right=True),
    Column("IN USE", lambda a: str(a.in_use), right=True),
    Column("SHA256", lambda a: a.digest[:12]),
)


@click.group("artifacts", invoke_without_command=True)
@json_option
@common_options(node=True)
@pass_options
@click.pass_context
def command(context: click.Context, options: Options, as_json: bool) -> None:
    """List or delete what is deployed.

    \b
    spear artifacts
    spear artifacts --json
    spear artifacts delete hello@1
    spear artifacts delete hello
    """
    if context.invoked_subcommand is None:
        found = ask(options, lambda api: api.list_artifacts())
        show(found, _COLUMNS, as_json=as_json, nothing="nothing is deployed yet")


@command.command("delete")
@click.argument("name", metavar="NAME[@VERSION]")
@common_options(node=True)
@pass_options
def delete(options: Options, name: str) -> None:
    """Delete one version, or with NAME alone all of them.

    Nothing is deleted while a task or an instance uses it.
    """
    name, at, number = name.partition("@")
    if at and not number.isdecimal():
        raise click.UsageError(f"{number!r} is no version; write {name}@1")
    version = int(number) if at else None
    count = ask(options, lambda api: api.delete_artifact(name, version=version))
    write_line(f"deleted {count} version{'' if count == 1 else 's'} of {name}")
