"""One execute request, from its arrival to its answer."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from spear_sdk._context import Context
    from spear_sdk._frames import Buffer
    from spear_sdk._stream import WorkerStream

__all__ = ["Execution"]


class Execution:
    """What was asked, and how to stop it."""

    __slots__ = (
        "_hook",
        "_lock",
        "content_type",
        "context",
        "entry",
        "max_input",
        "number",
        "payload",
        "stream",
    )

    def __init__(
        self,
        number: int,
        request: dict[str, Any],
        payload: Buffer,
        context: Context,
        stream: WorkerStream | None = None,
    ) -> None:
        self.number = number
        self.entry = request.get("entry") or ""
        self.content_type = request.get("content_type") or ""
        self.payload = payload
        self.context = context
        self.stream = stream
        """Where its input and output go piece by piece; None: it has its input, and answers."""
        self.max_input: int = request.get("max_input_bytes") or 0
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
        if first and self.stream is not None:
            self.stream.cancel()
        return hook is not None

    def on_cancel(self, hook: Callable[[], object]) -> None:
        """Call `hook` once when the execution is cancelled, at once if it was."""
        with self._lock:
            self._hook = hook
            late = self.context._cancelled
        if late:
            hook()
