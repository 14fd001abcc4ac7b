"""``spear top``."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click
import trio

from spear_core.api import NodeApi, NodeMetrics
from spear_core.cli._client import ask, talk
from spear_core.cli._interrupt import Interrupt
from spear_core.cli._listing import print_json, show
from spear_core.cli._options import DURATION, Options, common_options, json_option, pass_options
from spear_core.cli._rates import History
from spear_core.cli._terminal import on_terminal, visible, write_line
from spear_core.cli._top_screen import COLUMNS, heading, screen

if TYPE_CHECKING:
    from rich.console import RenderableType

_SPAN_S = 10.0
"""What is shown are averages over so many seconds; over one, few executions say nothing."""


@click.command("top")
@click.option(
    "--interval",
    "-i",
    type=DURATION,
    default="1s",
    show_default=True,
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Print the figures since the node's start, and end.")
@json_option
@common_options(node=True)
@pass_options
def command(options: Options, interval: float, once: bool, as_json: bool) -> None:
    """Watch the node at work: rates, durations, errors, instances.

    Rates, durations and shares are those of the last 10 seconds, with --once or in a pipe those
    since the node's start. COLD is the share of executions that had to wait for a new instance,
    CPU what the executions used of one processor, MEMORY what the live instances hold.

    \b
    spear top
    spear top --once
    spear top --json
    """
    if as_json or once or not on_terminal(sys.stdout):
        metrics = ask(options, lambda api: api.metrics())
        print_json(metrics) if as_json else _print(metrics)
        return
    with _single_keys():
        talk(options, lambda api, interrupt: _watch(api, interrupt, interval))


def _print(metrics: NodeMetrics) -> None:
    history = History(span_s=_SPAN_S)
    history.add(metrics)
    for line in heading(history):
        write_line(visible(line))
    write_line("")
    show(history.rows(), COLUMNS, as_json=False, nothing="nothing has been executed yet")


async def _watch(api: NodeApi, interrupt: Interrupt, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    history = History(span_s=max(_SPAN_S, 2 * interval_s))
    history.add(await api.metrics())

    def shown() -> RenderableType:
        return screen(history, width=console.width, height=console.height)

    with Live(shown(), console=console, screen=True, auto_refresh=False) as live, interrupt.scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_quit_on_key, nursery.cancel_scope)
            while True:
                await trio.sleep(interval_s)
                history.add(await api.metrics())
                live.update(shown(), refresh=True)


async def _quit_on_key(scope: trio.CancelScope) -> None:
    """Cancel when ``q`` is pressed; for ever quiet where there is no keyboard."""
    if not sys.stdin or not sys.stdin.isatty():
        return
    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        keys = os.read(descriptor, 64)
        if b"q" in keys.lower() or not keys:
            scope.cancel()
            return


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys are there when pressed, and are not shown; the terminal is as before at the end."""
    if not sys.stdin or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
