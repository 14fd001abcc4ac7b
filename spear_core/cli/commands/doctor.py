"""``spear doctor``."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
import click
import trio

from spear_core import __version__
from spear_core.api import RuntimeInfo
from spear_core.cli._client import open_client, state_dir
from spear_core.cli._exit_codes import FAILED, OK
from spear_core.cli._listing import print_json, size
from spear_core.cli._options import (
    Options,
    common_options,
    json_option,
    pass_options,
    setup_options,
)
from spear_core.cli._setup import default_config
from spear_core.cli._tasks import leave
from spear_core.cli._terminal import visible, write_line
from spear_core.config import NodeSettings, load_config
from spear_core.errors import SpearError
from spear_core.node import open_node
from spear_core.plugins import Plugins, load_plugins

_ANSWER_S = 3.0


@attrs.frozen(kw_only=True)
class Finding:
    """One line of the report."""

    part: str
    name: str
    text: str
    problem: bool = False
    """Something that should work does not."""


@click.command("doctor")
@setup_options
@json_option
@common_options()
@pass_options
def command(
    options: Options, config: Path | None, only: Sequence[str] | None, as_json: bool
) -> None:
    """Find out what this machine offers and what is missing.

    Opens every runtime and tries it: which isolation can be had, what is missing for more, and
    what helps. Needs no node. Exits with 1 when something that should work does not (marked
    with !).

    \b
    spear doctor
    spear doctor --json
    """
    state = state_dir(options)
    plugins = load_plugins(only)
    findings = [*_machine(), *_state(options, state), *_plugins(plugins)]
    path = config or default_config(os.environ)
    try:
        settings = load_config(path, plugins)
        findings.append(Finding(part="node", name="config", text=str(path or "none: defaults")))
        runtimes = trio.run(_probe, settings, plugins, state)
        findings += [finding for runtime in runtimes for finding in _runtime(runtime)]
    except SpearError as exc:
        findings.append(Finding(part="node", name="config", text=exc.message, problem=True))
    if as_json:
        print_json(findings)
    else:
        _report(findings)
    leave(FAILED if any(finding.problem for finding in findings) else OK)


def _report(findings: Sequence[Finding]) -> None:
    for part in dict.fromkeys(finding.part for finding in findings):
        write_line(click.style(part, bold=True))
        mine = [finding for finding in findings if finding.part == part]
        width = max(len(finding.name) for finding in mine)
        for finding in mine:
            mark = click.style("!", fg="red", bold=True) if finding.problem else " "
            text = visible(finding.text).replace("\n", "\n" + " " * (width + 5))
            write_line(f" {mark} {finding.name:<{width}}  {text}")


def _machine() -> list[Finding]:
    usable = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kernel = os.uname()
    facts = {
        "spear": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{kernel.sysname} {kernel.release} {kernel.machine}",
        "processors": f"{usable} usable of {os.cpu_count()}",
        "memory": size(memory),
    }
    return [Finding(part="machine", name=name, text=text) for name, text in facts.items()]


def _state(options: Options, state: Path) -> list[Finding]:
    existing = next(path for path in [state, *state.parents] if path.exists())
    writable = os.access(existing, os.W_OK | os.X_OK)
    text = str(state)
    if not writable:
        text += f" cannot be written ({existing}); choose another with --state-dir"
    return [
        Finding(part="node", name="state", text=text, problem=not writable),
        Finding(part="node", name="running", text=trio.run(_running, options)),
    ]


async def _running(options: Options) -> str:
    """The node on the state directory, if one answers."""
    with trio.move_on_after(_ANSWER_S):
        try:
            async with open_client(options) as api:
                status = await api.status()
                return f"yes: {status.node_id}, pid {status.pid}"
        except SpearError:
            return "no"
    return f"it does not answer within {_ANSWER_S:.0f} s"


def _plugins(plugins: Plugins) -> list[Finding]:
    found = [
        Finding(
            part="plugins",
            name=plugin.name,
            text=plugin.reason or f"{plugin.distribution} {plugin.version}",
            problem=plugin.state == "failed",
        )
        for plugin in plugins.plugins
    ]
    if not plugins.runtimes:
        text = "none; pip install spear-runtime-process, spear-runtime-wasm or both"
        found.append(Finding(part="plugins", name="runtimes", text=text, problem=True))
    return found


async def _probe(settings: NodeSettings, plugins: Plugins, state: Path) -> Sequence[RuntimeInfo]:
    async with open_node(settings, plugins, state_dir=state, serve=False, ephemeral=True) as node:
        return await node.probe()


def _runtime(runtime: RuntimeInfo) -> list[Finding]:
    part = f"runtime {runtime.name}"
    head = Finding(
        part=part,
        name=runtime.health,
        text=runtime.message,
        problem=runtime.health == "unhealthy",
    )
    return [
        head,
        *(Finding(part=part, name=name, text=text) for name, text in runtime.details.items()),
    ]
