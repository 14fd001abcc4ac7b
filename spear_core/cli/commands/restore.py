"""``spear restore``."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from spear_core.cli._backing_up import restore
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
from spear_core.cli._terminal import note, visible, write_line


@click.command("restore")
@click.argument("backup", metavar="DIR|FILE.tar", type=click.Path(path_type=Path, exists=True))
@click.option("--force", is_flag=True, help="Move aside what is in the state directory.")
@json_option
@setup_options
@common_options()
@pass_options
def command(
    options: Options,
    /,
    backup: Path,
    force: bool,
    as_json: bool,
    config: Path | None,
    only: Sequence[str] | None,
) -> None:
    """Put a backup into the state directory, for a node to start on.

    Every file is compared with its checksum first. The directory has to be empty; --force moves
    what is there into a directory beside, and deletes nothing. Tasks that were running when the
    backup was made are accounted for as after a crash. Ctrl-C leaves everything as it was.

    \b
    spear restore /backups/spear-monday.tar
    spear restore /backups/spear-monday --state-dir /var/lib/spear --force
    """
    work = functools.partial(
        restore,
        backup.absolute(),
        state_dir=state_dir(options),
        force=force,
        load=lambda: load(config, only),
    )
    report = trio.run(work)
    if as_json:
        print_json(report)
        return
    if report.moved_aside is not None:
        note(visible(f"what was there before is in {report.moved_aside}"))
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.created_at))
    write_line(
        visible(
            f"{report.state_dir}: node {report.node_id} as of {moment}; {report.files} files, "
            f"{size(report.bytes)}"
        )
    )
