"""``spear node``."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.cli._client import state_dir
from spear_core.cli._options import Options, common_options, pass_options, setup_options
from spear_core.cli._setup import load, show_log
from spear_core.cli._terminal import write_line
from spear_core.node import Node, serve_node

_COLLECT_EVERY = (20_000, 20, 50)
"""Python's usual (700, 10, 10) looks for garbage after every 50 calls or so, and through all that
the node has loaded, with every hundredth of those looks. Calls leave no cycles behind."""


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
    gc.freeze()  # what is here now stays
    gc.set_threshold(*_COLLECT_EVERY)
    write_line(f"ready: {' '.join(node.urls)}")
