"""Turning whatever a plugin raised into one error of ours."""

from __future__ import annotations

import errno
from logging import Logger

from spear_core.errors import SpearError

__all__ = ["as_spear_error"]

_SCARCE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}
)


def as_spear_error(raised: Exception, what: str, log: Logger) -> SpearError:
    """The error to show for ``raised``, which may be a group from a plugin's nursery.

    An error that is not ours is a bug somewhere: it goes to the log with its traceback.
    """
    if isinstance(raised, SpearError):
        return raised
    if isinstance(raised, OSError) and raised.errno in _SCARCE:
        log.warning("%s failed: %s", what, raised)
        return SpearError(
            f"{what} failed: this machine is short of something: {raised.strerror}",
            code="resource_exhausted",
            retryable=True,
        )
    if isinstance(raised, ExceptionGroup):
        ours, other = raised.split(SpearError)
        if ours is not None:
            if other is not None:
                log.error("%s broke", what, exc_info=other)
            return _first_leaf(ours)
    log.error("%s broke", what, exc_info=raised)
    return SpearError(f"{what} broke: {raised!r}; the node's log has the traceback")


def _first_leaf(group: ExceptionGroup[SpearError]) -> SpearError:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, ExceptionGroup) else first
