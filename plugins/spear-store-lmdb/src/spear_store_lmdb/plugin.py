"""The hooks of the LMDB stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from spear_core import hookimpl
from spear_core.api import (
    Capability,
    MetadataStore,
    MetadataStoreSpec,
    ObjectStore,
    ObjectStoreSpec,
    PluginContext,
)

from ._config import LmdbMetadataConfig, LmdbObjectsConfig

__all__ = [
    "open_lmdb_metadata",
    "open_lmdb_objects",
    "restore_lmdb_metadata",
    "restore_lmdb_objects",
    "spear_metadata_stores",
    "spear_object_stores",
]

_PRIORITY = 10
_CAPABILITIES = frozenset({Capability.DURABLE})


@asynccontextmanager
async def open_lmdb_objects(
    context: PluginContext, config: LmdbObjectsConfig
) -> AsyncGenerator[ObjectStore, None]:
    """The objects in the plugin's state directory."""
    from ._objects import open_objects

    async with open_objects(
        context.state_dir / "objects", config, context.log, checking=context.checking
    ) as store:
        yield store


@asynccontextmanager
async def open_lmdb_metadata(
    context: PluginContext, config: LmdbMetadataConfig
) -> AsyncGenerator[MetadataStore, None]:
    """The metadata in the plugin's state directory."""
    from ._metadata import open_metadata

    async with open_metadata(context.state_dir / "metadata", config, context.log) as store:
        yield store


async def restore_lmdb_objects(context: PluginContext, backup: Path) -> None:
    """Put a backup of objects into the plugin's state directory."""
    from ._object_maintenance import restore_objects

    await restore_objects(backup, context.state_dir / "objects")


async def restore_lmdb_metadata(context: PluginContext, backup: Path) -> None:
    """Put a backup of metadata into the plugin's state directory."""
    from ._metadata_maintenance import restore_metadata

    await restore_metadata(backup, context.state_dir / "metadata")


@hookimpl
def spear_object_stores() -> Iterable[ObjectStoreSpec[Any]]:
    """Declare the object store ``lmdb``."""
    yield ObjectStoreSpec(
        name="lmdb",
        open=open_lmdb_objects,
        config_cls=LmdbObjectsConfig,
        priority=_PRIORITY,
        capabilities=_CAPABILITIES,
        restore=restore_lmdb_objects,
    )


@hookimpl
def spear_metadata_stores() -> Iterable[MetadataStoreSpec[Any]]:
    """Declare the metadata store ``lmdb``."""
    yield MetadataStoreSpec(
        name="lmdb",
        open=open_lmdb_metadata,
        config_cls=LmdbMetadataConfig,
        priority=_PRIORITY,
        capabilities=_CAPABILITIES,
        restore=restore_lmdb_metadata,
    )
