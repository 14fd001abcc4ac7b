"""Plugins and settings for a command that opens a node of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from spear_core.cli._terminal import warn
from spear_core.config import NodeSettings, load_config
from spear_core.plugins import Plugins, load_plugins

__all__ = ["default_config", "load", "show_log"]


def default_config(environ: Mapping[str, str]) -> Path | None:
    """``spear/config.toml`` below ``XDG_CONFIG_HOME`` or ``~/.config``, if it exists."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(base).absolute() / "spear" / "config.toml"
    return path if path.exists() else None


def load(config: Path | None, only: Sequence[str] | None) -> tuple[NodeSettings, Plugins]:
    """Load plugins (one that fails is reported and left out) and read the settings.

    :raises PluginError: one that ``only`` names cannot be used.
    :raises ConfigError: with everything that is wrong.
    """
    plugins = load_plugins(only)
    for line in plugins.failures:
        warn(line)
    return load_config(config or default_config(os.environ), plugins), plugins


@contextmanager
def show_log(level: str) -> Iterator[None]:
    """The node's own log on stderr too, from this level on."""
    log = logging.getLogger("spear")
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
