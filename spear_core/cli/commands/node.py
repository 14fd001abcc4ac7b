"""``spear node``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.cli._client import state_dir
from spear_core.cli._options import Options, common_options, pass_options, setup_options
from spear_core.cli._setup import load, show_log
from spear_core.cli._terminal import write_line
from spear_core.node import Node, serve_node


@click.command("node")
@setup_options
@common_options()
@pass_options
def command(options: Options, config: Path | None, only: Sequence[str] | None) -> None:
    """Run a node on this machine.

    It prints one line on stdout when it is ready, and its log on stderr. SIGTERM or Ctrl-C stops
    it in order: nothing new is taken, running tasks may finish for a while
    (execution.shutdown_grace_ms). A second signal cuts that short.

    \b
    spear node
    spear node --state-dir /var/lib/spear --config /etc/spear.toml
    spear node --plugins runtime-wasm
    """
    settings, plugins = load(config, only)
    serve = functools.partial(
        serve_node, settings, plugins, state_dir=state_dir(options), ready=_announce
    )
    with show_log("DEBUG"):
        trio.run(serve)


def _announce(node: Node) -> None:
    write_line(f"ready: {' '.join(node.urls)}")
