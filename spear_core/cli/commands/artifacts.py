"""``spear artifacts``."""

from __future__ import annotations

import attrs
import click

from spear_core.api import ArtifactDetails, ArtifactInfo, ArtifactState, NodeApi
from spear_core.cli._client import ask
from spear_core.cli._listing import Column, age, plain, print_json, show, size
from spear_core.cli._options import Options, common_options, json_option, pass_options
from spear_core.cli._terminal import visible, write_line
from spear_core.errors import ArtifactNotFoundError

_COLUMNS: tuple[Column[ArtifactInfo], ...] = (
    Column("NAME", lambda a: a.name),
    Column("VERSION", lambda a: str(a.version), right=True),
    Column("LATEST", lambda a: "*" if a.latest else ""),
    Column("STATE", lambda a: a.state.value + (f": {a.message}" if a.message else "")),
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
    """List what is deployed, and choose between versions.

    \b
    spear artifacts
    spear artifacts describe hello
    spear artifacts rollback hello
    spear artifacts delete hello@1
    """
    if context.invoked_subcommand is None:
        found = ask(options, lambda api: api.list_artifacts())
        show(found, _COLUMNS, as_json=as_json, nothing="nothing is deployed yet")


def _parse(ref: str) -> tuple[str, int | None]:
    name, at, number = ref.partition("@")
    if at and not number.isdecimal():
        raise click.UsageError(f"{number!r} is no version; write {name}@1")
    return name, int(number) if at else None


def _parse_version(ref: str) -> tuple[str, int]:
    name, version = _parse(ref)
    if version is None:
        raise click.UsageError(f"say which version: {name}@1")
    return name, version


@command.command("list")
@json_option
@common_options(node=True)
@pass_options
def list_(options: Options, as_json: bool) -> None:
    """List every version, newest first."""
    found = ask(options, lambda api: api.list_artifacts())
    show(found, _COLUMNS, as_json=as_json, nothing="nothing is deployed yet")


@command.command("describe")
@click.argument("name", metavar="NAME[@VERSION]")
@json_option
@common_options(node=True)
@pass_options
def describe(options: Options, name: str, as_json: bool) -> None:
    """Show a version with its settings: the latest, or the one named.

    Secrets are shown by name; nobody but the code sees their values.
    """
    _parse(name)
    details = ask(options, lambda api: api.get_artifact(name))
    if as_json:
        print_json(details)
        return
    for key, value in _facts(details):
        write_line(visible(f"{key:<20} {value}".rstrip()))


def _facts(details: ArtifactDetails) -> list[tuple[str, str]]:
    """What there is to say, leaving out settings that were left at their defaults."""
    info = details.info
    facts = [
        ("name", info.name),
        ("version", f"{info.version}{' (latest)' if info.latest else ''}"),
        ("state", info.state.value),
        ("runtime", f"{info.runtime}, {info.shape}"),
        ("file", info.filename + (" (of a bundle)" if details.bundle else "")),
        ("size", size(info.size)),
        ("sha256", info.digest),
        ("deployed", f"{age(info.created_at)} ago"),
        ("in use", str(info.in_use)),
        ("reuse", "yes" if details.reuse else "no"),
    ]
    if details.dependents:
        facts.append(("needed by", ", ".join(details.dependents)))
    default = type(details.settings)()
    for field in attrs.fields(type(details.settings)):
        value = getattr(details.settings, field.name)
        if value != getattr(default, field.name):
            facts += _lines(field.name, plain(value))
    return facts


def _lines(key: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            line
            for name, inner in value.items()
            if inner is not None
            for line in _lines(f"{key}.{name}", inner)
        ]
    if isinstance(value, list):
        return [(key if number == 0 else "", str(item)) for number, item in enumerate(value)]
    if isinstance(value, bool):
        return [(key, "yes" if value else "no")]
    return [(key, str(value))]


@command.command("promote")
@click.argument("ref", metavar="NAME@VERSION")
@common_options(node=True)
@pass_options
def promote(options: Options, ref: str) -> None:
    """Make a version the latest: what its name alone means."""
    name, version = _parse_version(ref)
    artifact = ask(options, lambda api: api.set_latest(name, version))
    write_line(f"{artifact.name}@{artifact.version}")


@command.command("rollback")
@click.argument("name", metavar="NAME")
@common_options(node=True)
@pass_options
def rollback(options: Options, name: str) -> None:
    """Make the version before the latest the latest.

    Disabled versions are passed over. The next deploy, or `promote`, goes forward again.
    """
    artifact = ask(options, lambda api: _roll_back(api, name))
    write_line(f"{artifact.name}@{artifact.version}")


async def _roll_back(api: NodeApi, name: str) -> ArtifactInfo:
    latest = (await api.get_artifact(name)).info
    for artifact in await api.list_artifacts():  # newest first
        if (
            artifact.name == name
            and artifact.version < latest.version
            and artifact.state is ArtifactState.READY
        ):
            return await api.set_latest(name, artifact.version)
    raise ArtifactNotFoundError(
        f"{name}@{latest.version} is the latest, and there is no version before it that is ready"
    )


@command.command("disable")
@click.argument("ref", metavar="NAME@VERSION")
@common_options(node=True)
@pass_options
def disable(options: Options, ref: str) -> None:
    """Let a version take no new tasks. Those that it has run to their end."""
    _set_state(options, ref, ArtifactState.DISABLED)


@command.command("enable")
@click.argument("ref", metavar="NAME@VERSION")
@common_options(node=True)
@pass_options
def enable(options: Options, ref: str) -> None:
    """Let a disabled version run again."""
    _set_state(options, ref, ArtifactState.READY)


def _set_state(options: Options, ref: str, state: ArtifactState) -> None:
    name, version = _parse_version(ref)
    artifact = ask(options, lambda api: api.set_artifact_state(name, version, state))
    write_line(f"{artifact.name}@{artifact.version} is {artifact.state.value}")


@command.command("delete")
@click.argument("name", metavar="NAME[@VERSION]")
@common_options(node=True)
@pass_options
def delete(options: Options, name: str) -> None:
    """Delete one version, or with NAME alone all of them.

    Nothing is deleted while a task uses it or another artifact depends on it. When the latest
    version goes, the newest that is left becomes the latest.
    """
    name, version = _parse(name)
    count = ask(options, lambda api: api.delete_artifact(name, version=version))
    write_line(f"deleted {count} version{'' if count == 1 else 's'} of {name}")
