"""Where a node keeps its state. Standard library only: every client command imports this."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["StatePaths", "default_state_dir"]


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """``SPEAR_STATE_DIR``, else ``spear`` below ``XDG_STATE_HOME`` or ``~/.local/state``."""
    if chosen := environ.get("SPEAR_STATE_DIR"):
        return Path(chosen).expanduser().absolute()
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base).absolute() / "spear"
    return Path(os.path.expanduser("~")).absolute() / ".local" / "state" / "spear"


class StatePaths:
    """Every path below one state directory. Makes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.lock = self.root / "node.lock"
        self.socket = self.root / "node.sock"
        self.node_id = self.root / "node.id"
        self.store = self.root / "node.store"
        self.artifacts = self.root / "artifacts"
        self.logs = self.root / "logs"
        self.task_logs = self.logs / "tasks"
        self.system_log = self.logs / "system.log"
        self.cache = self.root / "cache"
        self.plugins = self.root / "plugins"
        self.run = self.root / "run"
        self.restoring = self.root / "restoring"

    @property
    def names(self) -> frozenset[str]:
        """What a state directory may hold."""
        return frozenset(path.name for path in vars(self).values() if path.parent == self.root)

    @property
    def url(self) -> str:
        """Where the node's local socket is reached."""
        return f"unix://{self.socket}"
