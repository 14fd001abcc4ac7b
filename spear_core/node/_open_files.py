"""How many files this process may have open: a node needs many, whoever else was started so few."""

from __future__ import annotations

import resource
from logging import Logger

__all__ = ["USUAL", "raise_limit"]

USUAL = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit before :func:`raise_limit`. Guests get it back: 1024 is what programs expect that
use ``select``, or that close every descriptor there could be."""
_ENOUGH = 1 << 20
"""Where the hard limit is a thousand millions, some library would make a table of that size."""


def raise_limit(log: Logger) -> None:
    """Raise the soft limit of this process to its hard limit, as servers do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # a hard limit above the kernel's own
        log.warning("the limit of %d open files cannot be raised to %d: %s", soft, wanted, error)
