"""What a backup of a node tells about itself."""

from __future__ import annotations

import attrs

__all__ = ["BackupReport"]


@attrs.frozen(kw_only=True)
class BackupReport:
    """A backup that is whole."""

    path: str
    """Where it is, on the machine of the node."""
    created_at: float
    """Seconds since the Unix epoch, at its beginning."""
    node_id: str
    files: int
    bytes: int
    records: int | None
    """Keys of the metadata store: tasks, their inputs and outputs, names of artifacts. ``None``:
    that store is in memory only, and not in the backup."""
    objects: int | None
    """Likewise, of the object store."""
    artifacts: int
    """Pieces of code."""
