"""Front doors: where callers come in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Generic, TypeVar

import attrs

from spear_core.api._node import NodeApi
from spear_core.api._plugin import PluginContext

__all__ = ["FrontDoorContext", "FrontDoorSpec"]

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class FrontDoorContext:
    """What the node gives a front door."""

    plugin: PluginContext
    node: NodeApi
    node_dir: Path
    """The node's state directory."""


@attrs.frozen(kw_only=True)
class FrontDoorSpec(Generic[C]):
    """Declares a front door and its client; returned by the hook ``spear_front_doors``."""

    name: str
    schemes: tuple[str, ...]
    """URL schemes that the client side answers for: ``("unix",)``. None, for a door that has no
    clients of ours."""
    open: Callable[[FrontDoorContext, C], AbstractAsyncContextManager[str]]
    """Serves while the block lasts; yields the URL where it can be reached, or an empty one when
    its settings have it serve nothing. Leaving the block accepts nothing new and lets requests
    under way finish; it is the node that ends the tasks."""
    connect: Callable[[str], AbstractAsyncContextManager[NodeApi]]
    """Client side: a URL → the node behind it. Raises
    :exc:`~spear_core.errors.NodeUnreachableError` with the reason."""
    config_cls: type[C]
    api: int = 1
