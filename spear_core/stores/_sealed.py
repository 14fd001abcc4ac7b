"""Values in sealed memory: what has to be true of them."""

from __future__ import annotations

import fcntl
import os

from spear_core.api import SealedFile
from spear_core.errors import InvalidRequestError

__all__ = ["SEALS", "check_sealed"]

_NAMES = {
    fcntl.F_SEAL_WRITE: "F_SEAL_WRITE",
    fcntl.F_SEAL_GROW: "F_SEAL_GROW",
    fcntl.F_SEAL_SHRINK: "F_SEAL_SHRINK",
}

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
"""With these nobody can change the content, or the size, through any descriptor or mapping."""


def check_sealed(value: SealedFile) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError`, saying what is missing."""
    try:
        found = fcntl.fcntl(value.fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise InvalidRequestError(
            f"value: descriptor {value.fd} is no memory that can be sealed ({exc}); make it with "
            f"memfd_create and MFD_ALLOW_SEALING"
        ) from exc
    missing = [name for seal, name in _NAMES.items() if not found & seal]
    if missing:
        raise InvalidRequestError(f"value: the memory is not sealed, {', '.join(missing)} missing")
    size = os.fstat(value.fd).st_size
    if size != value.size:
        raise InvalidRequestError(f"value: the memory has {size} bytes, not {value.size}")
