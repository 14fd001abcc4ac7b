"""``spear backup``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.api import BackupReport
from spear_core.cli._backing_up import make_backup
from spear_core.cli._client import state_dir
from spear_core.cli._listing import print_json, size
from spear_core.cli._options import (
    Options,
    common_options,
    json_option,
    pass_options,
    setup_options,
)
from spear_core.cli._setup import load
from spear_core.cli._terminal import visible, warn, write_line


@click.command("backup")
@click.argument("target", metavar="DIR|FILE.tar", type=click.Path(path_type=Path))
@click.option("--logs", is_flag=True, help="The logs of the node and of its tasks, too.")
@json_option
@setup_options
@common_options(node=True)
@pass_options
def command(
    options: Options,
    /,
    target: Path,
    logs: bool,
    as_json: bool,
    config: Path | None,
    only: Sequence[str] | None,
) -> None:
    """Write all that a node keeps to a new directory or archive.

    A node that runs does it itself, and goes on working; the state directory of one that does not
    is opened for it. Tasks, artifacts, objects and the node's identity are in it, and whatever one
    of them refers to. The backup appears under its name when it is whole and on the disk; Ctrl-C
    leaves nothing. `spear restore` is the way back.

    \b
    spear backup /backups/spear-monday
    spear backup /backups/spear-monday.tar --logs
    """
    work = functools.partial(
        make_backup,
        options,
        target.absolute(),
        state_dir=state_dir(options),
        logs=logs,
        load=lambda: load(config, only),
    )
    report = trio.run(work)
    if as_json:
        print_json(report)
        return
    write_line(visible(f"{report.path}: {_facts(report)}"))
    if report.records is None or report.objects is None:
        what = " and ".join(
            name
            for name, count in (("tasks", report.records), ("objects", report.objects))
            if count is None
        )
        warn(f"the node has its {what} in memory only: the backup is without them")


def _facts(report: BackupReport) -> str:
    counts = [
        ("artifact", report.artifacts),
        ("record", report.records),
        ("object", report.objects),
        ("file", report.files),
    ]
    told = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts if n is not None]
    return f"{', '.join(told)}, {size(report.bytes)}"
