"""Standard logging into the task's log."""

from __future__ import annotations

import logging
import sys

from spear_sdk._context import current_context

__all__ = ["LogHandler", "install"]

_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"))


class LogHandler(logging.Handler):
    """Sends records to the log of the task that runs, and to stderr when none does.

    The worker adds one to the root logger, at level INFO, unless the module has configured
    logging by itself.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Deliver one record."""
        try:
            text = self.format(record)
            try:
                log = current_context().log
            except RuntimeError:
                print(text, file=sys.stderr)
                return
            level = next((name for least, name in _LEVELS if record.levelno >= least), None)
            if level is None:
                level = "debug" if record.levelno >= logging.DEBUG else "trace"
            getattr(log, level)(text)
        except Exception:  # barrier: as every logging handler, it must not break the caller
            self.handleError(record)


def install() -> None:
    """Give the root logger a handler unless it has one."""
    root = logging.getLogger()
    if root.handlers:
        return
    root.addHandler(LogHandler())
    if root.level == logging.WARNING:  # nobody has chosen
        root.setLevel(logging.INFO)
