"""Backups of a node, while it runs and when it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import attrs

from spear_core.api import BackupReport
from spear_core.config import NodeSettings
from spear_core.errors import InvalidRequestError
from spear_core.node._backup import BackupSource, Telling, open_stores, write_backup
from spear_core.node._code import CodeStore
from spear_core.node._hold import DeletionHold
from spear_core.node._kept_state import check_not_lost
from spear_core.node._services import Services
from spear_core.node._state import hold_state
from spear_core.node._stopped import open_services, require_state
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["NodeBackups", "back_up_stopped"]


@attrs.frozen(kw_only=True)
class NodeBackups:
    """Makes them, out of what the node has open."""

    paths: StatePaths
    node_id: str
    services: Services
    code: CodeStore
    hold: DeletionHold

    async def write(
        self, directory: str, *, logs: bool, tell: Callable[[str], None] | None
    ) -> BackupReport:
        """See :meth:`spear_core.api.NodeApi.backup`."""
        path = Path(directory)
        if not path.is_absolute() or "\0" in directory:
            raise InvalidRequestError(f"directory: {directory!r} is no absolute path")
        metadata, objects = await open_stores(self.services)
        source = BackupSource(
            paths=self.paths,
            node_id=self.node_id,
            metadata=metadata,
            objects=objects,
            hold=self._holding,
        )
        return await write_backup(source, path, logs=logs, tell=tell or _to_nobody)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with self.hold.holding(), self.code.holding():
            yield


async def back_up_stopped(
    settings: NodeSettings,
    plugins: Plugins,
    paths: StatePaths,
    directory: Path,
    *,
    logs: bool,
    tell: Telling,
) -> BackupReport:
    """The same of a node that does not run, out of its state directory.

    **Raises** :exc:`~spear_core.errors.NodeAlreadyRunningError` when somebody uses it,
    :exc:`~spear_core.errors.ConfigError` when there is none,
    :exc:`~spear_core.errors.StoreCorruptError` when what was in it is not there, and as
    :func:`write_backup`.
    """
    require_state(paths)
    with hold_state(paths) as node_id:
        async with open_services(settings, plugins, paths, node_id=node_id) as services:
            metadata, objects = await open_stores(services)
            if metadata is not None:
                await check_not_lost(await services.metadata_store(), paths, metadata.name)
            source = BackupSource(
                paths=paths, node_id=node_id, metadata=metadata, objects=objects, hold=nullcontext
            )
            return await write_backup(source, directory, logs=logs, tell=tell)


def _to_nobody(text: str) -> None:
    pass
