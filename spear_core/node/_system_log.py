"""The node's own log: JSON lines in a file that is rotated once."""

from __future__ import annotations

import logging
import logging.handlers
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from spear_core.api import LogConfig
from spear_core.node._log_context import task_ids

__all__ = ["open_system_log"]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **task_ids(),
        }
        if record.exc_info:
            text = "".join(traceback.format_exception(*record.exc_info))
            entry["traceback"] = record.exc_text or text
        return msgspec.json.encode(entry).decode()


class _Handler(logging.handlers.RotatingFileHandler):
    """A full disk costs log lines, never the work that wanted to log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        pass


@contextmanager
def open_system_log(path: Path, config: LogConfig) -> Iterator[logging.Logger]:
    """The logger ``spear`` writes to ``path`` while the block lasts."""
    log = logging.getLogger("spear")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = _Handler(path, maxBytes=config.max_system_log_bytes, backupCount=1, delay=True)
    handler.setFormatter(_JsonLines())
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(config.level.upper())
    log.propagate = False
    try:
        yield log
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
        handler.close()
