"""``[plugins.store-lmdb]``."""

from __future__ import annotations

import attrs

__all__ = ["DURABILITIES", "LmdbMetadataConfig", "LmdbObjectsConfig"]

DURABILITIES = ("system", "process")


def _durability() -> str:
    default: str = attrs.field(default="system", validator=attrs.validators.in_(DURABILITIES))
    return default


@attrs.frozen(kw_only=True)
class LmdbObjectsConfig:
    """Part of ``[plugins.store-lmdb]``."""

    objects_bytes: int = attrs.field(default=64 << 30, validator=attrs.validators.gt(0))
    """Sum of the values; a write that would pass it is refused."""
    objects_durability: str = _durability()
    """``system``: what was acknowledged survives a power cut; ``process``: it survives the end of
    the process, however sudden, and may be lost with the machine."""
    inline_bytes: int = attrs.field(
        default=64 << 10,
        validator=[attrs.validators.ge(0), attrs.validators.le(1 << 20)],
    )
    """Values up to this size lie in LMDB itself, larger ones each in a file."""
    recycle_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.ge(0))
    """With ``process``: files of values that are gone, kept for the next ones for ten to twenty
    seconds; beside ``objects_bytes``. 0: none."""
    snapshot_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.gt(0))
    """Old versions that snapshots may keep, beside; the oldest snapshot that needs more is
    ended."""


@attrs.frozen(kw_only=True)
class LmdbMetadataConfig:
    """Part of ``[plugins.store-lmdb]``."""

    metadata_bytes: int = attrs.field(default=4 << 30, validator=attrs.validators.gt(0))
    """Sum of keys and values, those of the history too."""
    metadata_history: int = attrs.field(default=100_000, validator=attrs.validators.gt(0))
    """Revisions that can be read and watched from; older ones are compacted."""
    metadata_durability: str = _durability()
    """As ``objects_durability``."""
