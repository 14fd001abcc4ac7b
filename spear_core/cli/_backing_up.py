"""Backups, restores and checks for the command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import trio
from trio.from_thread import check_cancelled

from spear_core.api import BackupReport
from spear_core.cli._client import open_client
from spear_core.cli._interrupt import watch_interrupts
from spear_core.cli._options import Options
from spear_core.cli._progress import show_progress
from spear_core.cli._terminal import note
from spear_core.config import NodeSettings
from spear_core.errors import InvalidRequestError, NodeUnreachableError
from spear_core.node._backup_archive import is_archive, pack_archive
from spear_core.node._backup_files import disk_trouble, remove_tree
from spear_core.node._backup_manifest import read_manifest
from spear_core.node._fsck import StateReport, check_state
from spear_core.node._node_backup import back_up_stopped
from spear_core.node._restore import RestoreReport, restore_backup
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["check", "make_backup", "restore"]

Load = Callable[[], tuple[NodeSettings, Plugins]]
_TIDYING_S = 60.0
_TELL_BYTES = 64 << 20


class _Doing:
    """What is being done, for whoever watches."""

    def __init__(self) -> None:
        self._text = ""

    def tell(self, text: str) -> None:
        self._text = text

    async def ask(self) -> str:
        return self._text


async def make_backup(
    options: Options, target: Path, *, state_dir: Path, logs: bool, load: Load
) -> BackupReport:
    """A backup of the node that the options name, or of the state directory nobody uses."""
    doing = _Doing()

    async def write(directory: Path) -> BackupReport:
        async with AsyncExitStack() as stack:
            try:
                api = await stack.enter_async_context(open_client(options))
            except NodeUnreachableError:
                if options.node is not None:
                    raise
            else:
                return await api.backup(str(directory), logs=logs, tell=doing.tell)
        settings, plugins = load()
        return await back_up_stopped(
            settings, plugins, StatePaths(state_dir), directory, logs=logs, tell=doing.tell
        )

    async with watch_interrupts() as interrupt:
        with interrupt.scope:
            async with show_progress(f"backing up to {target.name}", doing.ask):
                if not is_archive(target):
                    return await write(target)
                return await _as_archive(target, write, doing)
        note("interrupted; nothing is left of the backup")
        interrupt.check()
    raise AssertionError("only an interrupt leads here")


async def _as_archive(
    file: Path, write: Callable[[Path], Awaitable[BackupReport]], doing: _Doing
) -> BackupReport:
    """Beside the file there is for a while a directory, out of which it is made."""
    around = await trio.to_thread.run_sync(_beside, file)
    try:
        report = await write(around / "backup")
        manifest = await trio.to_thread.run_sync(read_manifest, around / "backup")
        done, told = 0, -_TELL_BYTES

        def moved(count: int) -> None:
            nonlocal done, told
            check_cancelled()
            done += count
            if done - told >= _TELL_BYTES:
                told = done
                doing.tell(f"writing {file.name}: {done >> 20} MiB of {report.bytes >> 20}")

        await trio.to_thread.run_sync(pack_archive, around / "backup", file, manifest, moved)
    finally:
        with trio.move_on_after(_TIDYING_S, shield=True):
            await trio.to_thread.run_sync(remove_tree, around)
    return attrs.evolve(report, path=str(file))


def _beside(file: Path) -> Path:
    if os.path.lexists(file):
        raise InvalidRequestError(f"{file} exists already; a backup gets a name of its own")
    with disk_trouble(file):
        return Path(tempfile.mkdtemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent))


async def restore(backup: Path, *, state_dir: Path, force: bool, load: Load) -> RestoreReport:
    """Put a backup into a state directory."""
    doing = _Doing()
    settings, plugins = load()
    async with watch_interrupts() as interrupt:
        with interrupt.scope:
            async with show_progress(f"restoring {backup.name}", doing.ask):
                return await restore_backup(
                    settings, plugins, StatePaths(state_dir), backup, force=force, tell=doing.tell
                )
        note("interrupted; nothing was restored")
        interrupt.check()
    raise AssertionError("only an interrupt leads here")


async def check(*, state_dir: Path, repair: bool, remove_damaged: bool, load: Load) -> StateReport:
    """Check a state directory."""
    doing = _Doing()
    settings, plugins = load()
    async with watch_interrupts() as interrupt:
        with interrupt.scope:
            async with show_progress(f"checking {state_dir}", doing.ask):
                return await check_state(
                    settings,
                    plugins,
                    StatePaths(state_dir),
                    repair=repair,
                    remove_damaged=remove_damaged,
                    tell=doing.tell,
                )
        note("interrupted")
        interrupt.check()
    raise AssertionError("only an interrupt leads here")
