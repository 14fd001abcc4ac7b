"""Objects and metadata of a SPEAR node on disk, in LMDB."""

from ._config import LmdbMetadataConfig, LmdbObjectsConfig
from .plugin import open_lmdb_metadata, open_lmdb_objects

__all__ = ["LmdbMetadataConfig", "LmdbObjectsConfig", "open_lmdb_metadata", "open_lmdb_objects"]
