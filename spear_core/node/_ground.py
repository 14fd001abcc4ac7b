"""What a node stands on: its settings, its directories, its log, and what must not be in that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import Logger
from pathlib import Path

import attrs

from spear_core.api import SpearletConfig
from spear_core.config import NodeSettings
from spear_core.node._kept_state import check_store
from spear_core.node._secrets import Secrets, struck_out
from spear_core.node._state import hold_state, open_run_dir
from spear_core.node._stores import tasks_are_durable
from spear_core.node._system_log import open_system_log
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["Ground", "open_ground"]


@attrs.frozen(kw_only=True)
class Ground:
    """What everything in a node stands on."""

    settings: NodeSettings
    plugins: Plugins
    paths: StatePaths
    cache: Path
    run_dir: Path
    log: Logger
    secrets: Secrets
    node_id: str
    """Who the state directory says the node is; a store that lasts may know better."""
    ephemeral: bool
    lasting: bool
    """Whether the metadata store outlives the node."""
    durable: bool
    """Whether tasks do."""

    @property
    def config(self) -> SpearletConfig:
        """The settings of the node itself, as they were when it started."""
        return self.settings.spearlet


@contextmanager
def open_ground(
    settings: NodeSettings, plugins: Plugins, *, state_dir: Path, ephemeral: bool
) -> Iterator[Ground]:
    """Hold the state directory, or a temporary one in its place, and write the log."""
    paths = StatePaths(state_dir)
    cache = paths.cache
    config = settings.spearlet
    with ExitStack() as stack:
        if ephemeral:
            paths, cache = stack.enter_context(_ephemeral(paths))
        node_id = stack.enter_context(hold_state(paths))
        log = stack.enter_context(open_system_log(paths.system_log, config.logs))
        run_dir = stack.enter_context(open_run_dir(paths))
        lasting = not ephemeral and check_store(plugins, settings, paths, log)
        durable = not ephemeral and tasks_are_durable(plugins, config)
        secrets = Secrets(config.secrets, warn=log.warning)
        stack.enter_context(struck_out(log, secrets))
        yield Ground(
            settings=settings,
            plugins=plugins,
            paths=paths,
            cache=cache,
            run_dir=run_dir,
            log=log,
            secrets=secrets,
            node_id=node_id,
            ephemeral=ephemeral,
            lasting=lasting,
            durable=durable,
        )


@contextmanager
def _ephemeral(paths: StatePaths) -> Iterator[tuple[StatePaths, Path]]:
    """State for one run that leaves nothing behind but its caches."""
    with tempfile.TemporaryDirectory(prefix="spear-") as directory:
        temporary = StatePaths(Path(directory))
        yield temporary, _usable_cache(paths.cache) or temporary.cache


def _usable_cache(path: Path) -> Path | None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path
