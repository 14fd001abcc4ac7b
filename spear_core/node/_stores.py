"""Which of the installed stores a node uses: the one its configuration names, else the first by
priority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spear_core._toml_path import nearest
from spear_core.api import (
    Capability,
    MetadataStoreSpec,
    ObjectStoreSpec,
    SpearletConfig,
    StoreConfig,
)
from spear_core.errors import ConfigError
from spear_core.plugins import Owned, Plugins

__all__ = [
    "AUTO",
    "chosen_metadata_store",
    "chosen_object_store",
    "lasts",
    "objects_last",
    "tasks_are_durable",
]

AUTO = "auto"
"""In place of a name: the installed store with the highest priority."""


def chosen_metadata_store(plugins: Plugins, config: StoreConfig) -> Owned[MetadataStoreSpec[Any]]:
    """The metadata store of a node. :raises ConfigError: the one it names is not there."""
    return _chosen("metadata", config.metadata, plugins.metadata_stores)


def chosen_object_store(plugins: Plugins, config: StoreConfig) -> Owned[ObjectStoreSpec[Any]]:
    """The object store of a node. :raises ConfigError: the one it names is not there."""
    return _chosen("objects", config.objects, plugins.object_stores)


def tasks_are_durable(plugins: Plugins, config: SpearletConfig) -> bool:
    """Whether a node that keeps its state directory has its tasks on disk.

    :raises ConfigError: ``tasks.durable`` asks for it, and one of the stores does not last.
    """
    if config.tasks.durable == "off":
        return False
    chosen = (
        chosen_metadata_store(plugins, config.stores),
        chosen_object_store(plugins, config.stores),
    )
    passing = [owned.spec.name for owned in chosen if not lasts(owned.spec)]
    if passing and config.tasks.durable == "on":
        problem = (
            f"tasks.durable: tasks cannot be kept in the store {passing[0]!r}, which does not last "
            "([stores]); `pip install spear-store-lmdb` provides one that does"
        )
        raise ConfigError(problem, problems=(problem,))
    return not passing


def objects_last(plugins: Plugins, config: SpearletConfig) -> bool:
    """Whether the objects of a node outlive it. :raises ConfigError: the store it names is not
    there."""
    return lasts(chosen_object_store(plugins, config.stores).spec)


def lasts(spec: MetadataStoreSpec[Any] | ObjectStoreSpec[Any]) -> bool:
    return Capability.DURABLE in spec.capabilities


def _chosen(setting: str, name: str, installed: Mapping[str, Owned[Any]]) -> Owned[Any]:
    if name == AUTO:
        # Of equal ones the first by name: a choice that is the same at every start.
        return min(installed.items(), key=lambda item: (-item[1].spec.priority, item[0]))[1]
    if name in installed:
        return installed[name]
    problem = (
        f"stores.{setting}: no plugin that is loaded has a store {name!r}"
        f"{nearest(name, installed)} (there are: {', '.join(sorted(installed)) or 'none'}); "
        f"`spear plugins` says which are not loaded, and why"
    )
    raise ConfigError(problem, problems=(problem,))
