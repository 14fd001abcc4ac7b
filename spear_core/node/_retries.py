"""Whether a failed execution is tried again, and when.

=====================================================  ==========================================
the error was met …                                    … and is ``retryable``: tried again
=====================================================  ==========================================
before the guest began (no instance could be had, its  always
channel broke before the request)
after the guest may have begun                         when the artifact says ``idempotent``
in the runtime as a whole, or by an open circuit       never here: the caller hears at once
=====================================================  ==========================================

An instance that cannot start is usually the code's fault (an import that fails), so
``InstanceStartError`` is not retryable unless the runtime that raises it says otherwise. What the
guest itself answers, a failure too, is an answer and never tried again.
"""

from __future__ import annotations

import random

from spear_core.api import Artifact, RetryPolicy
from spear_core.errors import ArtifactError, InstanceLostError, RuntimeFault, SpearError

__all__ = ["backoff_s", "is_retried"]


def is_retried(error: SpearError, artifact: Artifact, *, began: bool) -> bool:
    """Whether another execution may follow this error.

    :param began: the request was on its way to the guest.
    """
    if not error.retryable or isinstance(error, RuntimeFault | ArtifactError):
        return False
    unsent = isinstance(error, InstanceLostError) and error.unsent
    return artifact.idempotent or not began or unsent


def backoff_s(policy: RetryPolicy, attempt: int, *, chance: float | None = None) -> float:
    """Seconds to wait before this attempt, from 2 on.

    :param chance: between 0 and 1; by default at random.
    """
    longest = policy.max_backoff_s
    try:
        wait = min(longest, policy.initial_backoff_s * policy.multiplier ** (attempt - 2))
    except OverflowError:
        wait = longest
    share = 1 - policy.jitter * (random.random() if chance is None else chance)
    return wait * share
