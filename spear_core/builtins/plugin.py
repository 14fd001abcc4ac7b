"""The core's own plugin: what a node has with nothing else installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spear_core import hookimpl
from spear_core.api import (
    FrontDoorSpec,
    HostcallSpec,
    MetadataStoreSpec,
    ObjectStoreSpec,
    SchedulerSpec,
    TransportSpec,
)
from spear_core.builtins import functions, objects
from spear_core.builtins.local_first import LocalFirst, LocalFirstConfig
from spear_core.builtins.local_socket import LocalSocketConfig, connect, open_local_socket
from spear_core.builtins.memory_metadata import MemoryMetadataConfig, open_memory_metadata
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.builtins.memory_transport import MemoryTransportConfig, open_memory_transport


@hookimpl
def spear_object_stores() -> Iterable[ObjectStoreSpec[Any]]:
    yield ObjectStoreSpec(name="memory", open=open_memory_store, config_cls=MemoryStoreConfig)


@hookimpl
def spear_metadata_stores() -> Iterable[MetadataStoreSpec[Any]]:
    yield MetadataStoreSpec(
        name="memory", open=open_memory_metadata, config_cls=MemoryMetadataConfig
    )


@hookimpl
def spear_schedulers() -> Iterable[SchedulerSpec[Any]]:
    yield SchedulerSpec(
        name="local-first", make=lambda config: LocalFirst(), config_cls=LocalFirstConfig
    )


@hookimpl
def spear_transports() -> Iterable[TransportSpec[Any]]:
    yield TransportSpec(name="memory", open=open_memory_transport, config_cls=MemoryTransportConfig)


@hookimpl
def spear_hostcalls() -> Iterable[HostcallSpec[Any]]:
    yield HostcallSpec(
        names=functions.NAMES, open=functions.open_functions, config_cls=functions.FunctionsConfig
    )
    yield HostcallSpec(
        names=objects.NAMES, open=objects.open_objects, config_cls=objects.ObjectsConfig
    )


@hookimpl
def spear_front_doors() -> Iterable[FrontDoorSpec[Any]]:
    yield FrontDoorSpec(
        name="local-socket",
        schemes=("unix",),
        open=open_local_socket,
        connect=connect,
        config_cls=LocalSocketConfig,
    )
