"""One execute request, from its arrival to its answer."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from spear_sdk._context import Context
    from spear_sdk._frames import Buffer

__all__ = ["Execution"]


class Execution:
    """What was asked, and how to stop it."""

    __slots__ = ("_hook", "_lock", "content_type", "context", "entry", "number", "payload")

    def __init__(
        self, number: int, request: dict[str, str], payload: Buffer, context: Context
    ) -> None:
        self.number = number
        self.entry = request.get("entry") or ""
        self.content_type = request.get("content_type") or ""
        self.payload = payload
        self.context = context
        self._lock = threading.Lock()
        self._hook: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Note the cancellation and pass it on. Returns whether an event loop was told."""
        with self._lock:
            first = not self.context._cancelled
            self.context._cancelled = True
            hook = self._hook
        if first and hook is not None:
            hook()
        return hook is not None

    def on_cancel(self, hook: Callable[[], object]) -> None:
        """Call `hook` once when the execution is cancelled, at once if it was."""
        with self._lock:
            self._hook = hook
            late = self.context._cancelled
        if late:
            hook()
