"""The plugins' open parts: runtimes, transports, hostcall providers, opened when first needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import trio

from spear_core.api import (
    Artifact,
    ChannelFactory,
    Fingerprint,
    Health,
    Hostcalls,
    MetadataStore,
    MetadataStoreSpec,
    ObjectStore,
    ObjectStoreSpec,
    PluginContext,
    Runtime,
    RuntimeSpec,
    SpearletConfig,
    Tracer,
    TracerSpec,
    Transport,
)
from spear_core.config import NodeSettings
from spear_core.errors import (
    RuntimeNotFoundError,
    RuntimeUnavailableError,
    SpearError,
    UnsupportedTransportError,
)
from spear_core.node import _open_files
from spear_core.node._background import Background
from spear_core.node._failures import as_spear_error
from spear_core.node._stores import chosen_metadata_store, chosen_object_store
from spear_core.plugins import Owned, Plugins, suggest_distribution

__all__ = ["ContextMaker", "Services"]

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class ContextMaker:
    """What every plugin's context has in common."""

    node_id: str
    plugins_dir: Path
    cache_dir: Path
    run_dir: Path
    spearlet: SpearletConfig
    report: Callable[[Artifact, str], None]
    ephemeral: bool = False
    checking: bool = False

    def make(self, plugin: str, hostcalls: Hostcalls, channels: ChannelFactory) -> PluginContext:
        """The context of one plugin; makes its run directory."""
        run_dir = self.run_dir / plugin
        run_dir.mkdir(mode=0o700, exist_ok=True)
        return PluginContext(
            node_id=self.node_id,
            plugin=plugin,
            state_dir=self.plugins_dir / plugin,
            cache_dir=self.cache_dir / plugin,
            run_dir=run_dir,
            log=logging.getLogger(f"spear.{plugin}"),
            hostcalls=hostcalls,
            channels=channels,
            spearlet_config=self.spearlet,
            report=self.report,
            ephemeral=self.ephemeral,
            usual_open_files=_open_files.USUAL,
            checking=self.checking,
        )


@attrs.define(eq=False)
class _Opening(Generic[T]):
    """One attempt, for all who wait for it; the next may have begun before they look."""

    over: trio.Event = attrs.field(factory=trio.Event)
    value: T | None = None
    error: SpearError | None = None


class _Opened(Generic[T]):
    """One service that a background task opens on first use and holds open."""

    def __init__(
        self,
        name: str,
        open_it: Callable[[], AbstractAsyncContextManager[T]],
        background: Background,
        log: logging.Logger,
    ) -> None:
        self._name = name
        self._open = open_it
        self._background = background
        self._log = log
        self._opening: _Opening[T] | None = None
        self.value: T | None = None

    async def get(self) -> T:
        """The open service; a failed opening is tried again by the next caller."""
        if self.value is not None:
            return self.value
        if self._opening is None:
            self._opening = _Opening()
            self._background.start_soon(self._hold, self._opening)
        opening = self._opening
        await opening.over.wait()
        if opening.value is None:
            raise opening.error or SpearError(f"{self._name} is closed", code="unavailable")
        return opening.value

    async def _hold(self, opening: _Opening[T]) -> None:
        try:
            async with self._open() as value:
                self.value = opening.value = value
                opening.over.set()
                await trio.sleep_forever()
        except Exception as raised:  # barrier: one plugin
            opening.error = as_spear_error(raised, self._name, self._log)
        finally:
            self.value = opening.value = None
            self._opening = None
            opening.over.set()


class Services:
    """Opens what plugins declare, each once, and keeps it open for the life of the node."""

    def __init__(
        self,
        plugins: Plugins,
        settings: NodeSettings,
        maker: ContextMaker,
        *,
        background: Background,
        log: logging.Logger,
    ) -> None:
        self._plugins = plugins
        self._settings = settings
        self._maker = maker
        self._background = background
        self._log = log
        self._opened: dict[tuple[str, str], _Opened[Any]] = {}
        self._hostcalls: Hostcalls | None = None
        self._channels: ChannelFactory | None = None

    def attach(self, hostcalls: Hostcalls, channels: ChannelFactory) -> None:
        """Complete the circle: contexts need these two, and these two need the services."""
        self._hostcalls = hostcalls
        self._channels = channels

    def identify(self, node_id: str) -> None:
        """Who the node turned out to be, for the contexts to come."""
        self._maker = attrs.evolve(self._maker, node_id=node_id)

    def context(self, plugin: str) -> PluginContext:
        """The context of one plugin."""
        assert self._hostcalls is not None
        assert self._channels is not None
        return self._maker.make(plugin, self._hostcalls, self._channels)

    async def open(self, kind: str, name: str, plugin: str, spec: Any) -> Any:
        """The open form of a spec of this kind and name."""
        opened = self._opened.get((kind, name))
        if opened is None:
            opened = _Opened(
                f"{kind} {name}",
                lambda: spec.open(
                    self.context(plugin), self._settings.plugin_config(plugin, spec.config_cls)
                ),
                self._background,
                self._log,
            )
            self._opened[kind, name] = opened
        return await opened.get()

    def tracer(self, owned: Owned[TracerSpec[Any]]) -> AbstractAsyncContextManager[Tracer | None]:
        """This tracer, while a block lasts."""
        config = self._settings.plugin_config(owned.plugin_name, owned.spec.config_cls)
        return owned.spec.open(self.context(owned.plugin_name), config)

    def declared_runtime(self, name: str) -> Owned[RuntimeSpec[Any]]:
        """The declaration of this runtime. :raises RuntimeNotFoundError: no plugin has it."""
        owned = self._plugins.runtimes.get(name)
        if owned is None:
            hint = suggest_distribution(name)
            raise RuntimeNotFoundError(
                f"no runtime named {name!r} is installed"
                + (f"; `pip install {hint}` provides it" if hint else "")
            )
        return owned

    async def runtime(self, name: str) -> Runtime:
        """The open runtime of this name.

        :raises RuntimeNotFoundError: no plugin has it. :raises RuntimeFault: it cannot open.
        """
        owned = self.declared_runtime(name)
        runtime = await self.open("runtime", name, owned.plugin_name, owned.spec)
        assert isinstance(runtime, Runtime)
        return runtime

    def current_runtime(self, name: str) -> Runtime | None:
        """The runtime of this name, if it is open: it is another one after it broke."""
        opened = self._opened.get(("runtime", name))
        return opened.value if opened is not None else None

    async def transport(self, name: str) -> Transport:
        """The open transport of this name. :raises UnsupportedTransportError: no plugin has it."""
        owned = self._plugins.transports.get(name)
        if owned is None:
            raise UnsupportedTransportError(f"no plugin provides the transport {name!r}")
        transport = await self.open("transport", name, owned.plugin_name, owned.spec)
        assert isinstance(transport, Transport)
        return transport

    async def object_store(self) -> ObjectStore:
        """The node's object store. :raises ConfigError: ``stores.objects`` names one that is not
        there. :raises StoreError: it cannot be opened."""
        owned = chosen_object_store(self._plugins, self._settings.spearlet.stores)
        spec = owned.spec
        store = await self.open("object store", spec.name, owned.plugin_name, spec)
        assert isinstance(store, ObjectStore)
        return store

    @property
    def metadata_store_name(self) -> str:
        """Which metadata store the node has. :raises ConfigError: there is none of that name."""
        return self.chosen_metadata_store().spec.name

    def chosen_metadata_store(self) -> Owned[MetadataStoreSpec[Any]]:
        """The declaration of the node's metadata store. :raises ConfigError: likewise."""
        return chosen_metadata_store(self._plugins, self._settings.spearlet.stores)

    def chosen_object_store(self) -> Owned[ObjectStoreSpec[Any]]:
        """The declaration of the node's object store. :raises ConfigError: likewise."""
        return chosen_object_store(self._plugins, self._settings.spearlet.stores)

    async def metadata_store(self) -> MetadataStore:
        """The node's metadata store. :raises ConfigError: ``stores.metadata`` names one that is
        not there. :raises StoreError: it cannot be opened."""
        owned = chosen_metadata_store(self._plugins, self._settings.spearlet.stores)
        spec = owned.spec
        store = await self.open("metadata store", spec.name, owned.plugin_name, spec)
        assert isinstance(store, MetadataStore)
        return store

    def runtime_specs(self) -> Mapping[str, RuntimeSpec[Any]]:
        """Every runtime declared, by name."""
        return {name: owned.spec for name, owned in self._plugins.runtimes.items()}

    async def fingerprint(self, name: str) -> Fingerprint:
        """Open a runtime and ask it about this machine; its refusal to open is an answer too."""
        try:
            return await (await self.runtime(name)).fingerprint()
        except RuntimeUnavailableError as unavailable:
            return Fingerprint(health=Health.UNDETECTED, message=unavailable.message)
        except Exception as raised:  # barrier: one runtime
            error = as_spear_error(raised, f"runtime {name}", self._log)
            return Fingerprint(health=Health.UNHEALTHY, message=error.message)

    def is_open(self, kind: str, name: str) -> bool:
        """Whether somebody has needed it already."""
        opened = self._opened.get((kind, name))
        return opened is not None and opened.value is not None
