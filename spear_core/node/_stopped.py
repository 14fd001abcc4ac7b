"""The state directory of a node that does not run, opened by a command."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NoReturn

from spear_core.api import (
    ChannelFactory,
    ChannelOffer,
    Hostcalls,
    LocalChannel,
    RuntimeInstanceId,
)
from spear_core.config import NodeSettings
from spear_core.errors import ConfigError, SpearError
from spear_core.node._background import open_background
from spear_core.node._services import ContextMaker, Services
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["open_services", "require_state"]


def require_state(paths: StatePaths) -> None:
    """:raises ConfigError: nothing of a node is there."""
    try:
        names = {path.name for path in paths.root.iterdir()}
    except OSError as error:
        raise ConfigError(
            f"there is no state directory {paths.root} ({error.strerror}); name another with "
            "--state-dir or SPEAR_STATE_DIR"
        ) from error
    if not names & paths.names:
        raise ConfigError(f"{paths.root} is no state directory of a node")


@asynccontextmanager
async def open_services(
    settings: NodeSettings,
    plugins: Plugins,
    paths: StatePaths,
    *,
    node_id: str,
    checking: bool = False,
) -> AsyncIterator[Services]:
    """The stores of a state directory that is locked for this process. Nothing else works."""
    log = logging.getLogger("spear")
    with tempfile.TemporaryDirectory(prefix="spear-") as run_dir:
        async with open_background() as background:
            maker = ContextMaker(
                node_id=node_id,
                plugins_dir=paths.plugins,
                cache_dir=paths.cache,
                run_dir=Path(run_dir),
                spearlet=settings.spearlet,
                report=lambda artifact, message: None,
                checking=checking,
            )
            services = Services(plugins, settings, maker, background=background, log=log)
            services.attach(_NoHostcalls(), _NoChannels())
            yield services


class _NoHostcalls(Hostcalls):
    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        _refuse()

    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        _refuse()


class _NoChannels(ChannelFactory):
    def open_offer(
        self, instance_id: RuntimeInstanceId
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        _refuse()

    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        _refuse()


def _refuse() -> NoReturn:
    raise SpearError("no node runs here", code="unavailable")
