"""The SPEARlet: one machine's daemon, or the same thing within ``spear run``.

Imported lazily: client commands want :mod:`spear_core.node.paths` and nothing of what a node needs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spear_core.node._node import Node, open_node, serve_node

__all__ = ["Node", "open_node", "serve_node"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from spear_core.node import _node

        return getattr(_node, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
