"""The core's own plugin: what a node has with nothing else installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spear_core import hookimpl
from spear_core.api import ObjectStoreSpec, SchedulerSpec
from spear_core.builtins.local_first import LocalFirst, LocalFirstConfig
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store


@hookimpl
def spear_object_stores() -> Iterable[ObjectStoreSpec[Any]]:
    yield ObjectStoreSpec(name="memory", open=open_memory_store, config_cls=MemoryStoreConfig)


@hookimpl
def spear_schedulers() -> Iterable[SchedulerSpec[Any]]:
    yield SchedulerSpec(
        name="local-first", make=lambda config: LocalFirst(), config_cls=LocalFirstConfig
    )
