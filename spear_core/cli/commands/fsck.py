"""``spear fsck``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.cli._backing_up import check
from spear_core.cli._client import state_dir
from spear_core.cli._exit_codes import FAILED, INTERNAL, OK
from spear_core.cli._listing import print_json, size
from spear_core.cli._options import (
    Options,
    common_options,
    json_option,
    pass_options,
    setup_options,
)
from spear_core.cli._setup import load
from spear_core.cli._terminal import note, visible, warn, write_line
from spear_core.node._fsck import StateProblem, StateReport


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Put right what can be without losing anything.")
@click.option(
    "--remove-damaged",
    is_flag=True,
    help="With --repair: remove what is damaged beyond repair, too.",
)
@json_option
@setup_options
@common_options()
@pass_options
def command(
    options: Options,
    /,
    repair: bool,
    remove_damaged: bool,
    as_json: bool,
    config: Path | None,
    only: Sequence[str] | None,
) -> None:
    """Check what a stopped node keeps, and put it right.

    Everything is compared with everything: records with their checksums, indexes and counts,
    objects and code with their hashes, tasks with their inputs and outputs, references with who
    holds them. It exits with 0 when all is well, or is again; with 1 when something is wrong and
    nothing is lost; with 7 when data is damaged or missing, which a backup may have.

    \b
    spear fsck
    spear fsck --repair
    """
    if remove_damaged and not repair:
        raise click.UsageError("--remove-damaged goes with --repair")
    work = functools.partial(
        check,
        state_dir=state_dir(options),
        repair=repair,
        remove_damaged=remove_damaged,
        load=lambda: load(config, only),
    )
    report = trio.run(work)
    if as_json:
        print_json(report)
    else:
        _show(report, repair=repair)
    raise SystemExit(exit_status(report))


def exit_status(report: StateReport) -> int:
    """How ``spear fsck`` ends."""
    if any(problem.lost for problem in report.open):
        return INTERNAL
    return OK if report.sound else FAILED


def _show(report: StateReport, *, repair: bool) -> None:
    for problem in report.problems:
        write_line(visible(f"{problem.where}: {problem.what}{_became(problem)}"))
    for text in report.unchecked:
        warn(visible(f"not checked: {text}"))
    counts = f"{report.records} records, {size(report.bytes)} of values"
    if report.sound:
        write_line(visible(f"{report.state_dir}: no problems ({counts})"))
        return
    lost = sum(problem.lost for problem in report.open)
    write_line(
        visible(
            f"{report.state_dir}: {len(report.open)} problems, {lost} of them lost data ({counts})"
        )
    )
    if lost:
        note(
            "restore a backup (`spear restore`), or let `spear fsck --repair --remove-damaged` "
            "remove what is damaged"
        )
    elif not repair and report.open:
        note("`spear fsck --repair` puts right what can be")


def _became(problem: StateProblem) -> str:
    if problem.repaired:
        return "; removed" if problem.lost else "; put right"
    return "; the node removes it when it starts" if problem.expected else ""
