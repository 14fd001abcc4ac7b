"""What a check of a state directory finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

__all__ = ["Finding"]


@attrs.frozen
class Finding:
    """Something that is not as it should be, and what can be done about it."""

    where: str
    what: str
    lost: bool = False
    """Data is gone: only a backup has it."""
    repair: Callable[[], Awaitable[object]] | None = None
    """Puts it right, without removing anything that somebody may need; ``None``: nothing does."""
    expected: bool = False
    """The end of a node leaves such things behind, and its next start removes them."""
