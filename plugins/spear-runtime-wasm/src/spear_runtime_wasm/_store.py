"""The modules that a runtime has loaded: compiled once, cached on disk, kept in memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from spear_core.api import Artifact, PluginContext
from spear_core.errors import RuntimeUnavailableError, SpearError, UnsupportedArtifactError

from ._cache import ImageCache
from ._compile import compile_file
from ._config import WasmConfig
from ._failures import one_line
from ._ffi import EngineError, config_digest
from ._fiber import FiberDriver
from ._hogs import HogPool
from ._host import Host, get_host
from ._module import LoadedModule


class Machine:
    """The engine as one runtime uses it, from one trio run."""

    def __init__(self, host: Host, threads: int) -> None:
        self.engine = host.engine
        self.host = host
        self.hogs = HogPool(host.ticker, threads)
        self.driver = FiberDriver(host.ticker, self.hogs)

    def close(self) -> None:
        self.hogs.close()
        self.driver.close()


class ModuleStore:
    """Loaded modules by digest. The engine is made when the first one is asked for."""

    def __init__(self, context: PluginContext, config: WasmConfig) -> None:
        self._config = config
        self._context = context
        self._loaded: OrderedDict[str, LoadedModule] = OrderedDict()
        self._busy: dict[str, trio.Lock] = {}
        self._machine: Machine | None = None
        self._machine_lock = trio.Lock()

    def get(self, digest: str) -> LoadedModule | None:
        module = self._loaded.get(digest)
        if module is not None:
            self._loaded.move_to_end(digest)
        return module

    @property
    def machine(self) -> Machine:
        """There is one as soon as a module is loaded."""
        assert self._machine is not None
        return self._machine

    async def load(self, artifact: Artifact) -> LoadedModule:
        """The module, compiled if it must be; two calls for one module compile it once.

        **Raises** UnsupportedArtifactError, RuntimeFault, RuntimeUnavailableError.
        """
        digest = artifact.digest
        lock = self._busy.setdefault(digest, trio.Lock())
        try:
            async with lock:
                module = self.get(digest)
                return await self._load(artifact) if module is None else module
        finally:
            if not lock.statistics().tasks_waiting and self._busy.get(digest) is lock:
                del self._busy[digest]

    def close(self) -> None:
        for module in self._loaded.values():
            module.close()
        self._loaded.clear()
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    async def _load(self, artifact: Artifact) -> LoadedModule:
        name, digest = artifact.filename, artifact.digest
        cache = self._open_cache()
        image = await trio.to_thread.run_sync(cache.load, digest)
        if image is not None:
            with contextlib.suppress(EngineError):  # made on another machine: compile it for this
                return await self._instantiable(digest, image, name)
        image = await self._compile(artifact)
        try:
            module = await self._instantiable(digest, image, name)
        except EngineError as exc:
            raise UnsupportedArtifactError(f"{name}: {one_line(str(exc))}") from None
        await trio.to_thread.run_sync(cache.store, digest, image)
        return module

    async def _instantiable(self, digest: str, image: bytes, name: str) -> LoadedModule:
        """The image in memory, and from now on among the loaded modules."""
        machine = await self._open_machine()
        module = await trio.to_thread.run_sync(LoadedModule, machine.host, image, name)
        self._loaded[digest] = module
        self._evict()
        return module

    async def _compile(self, artifact: Artifact) -> bytes:
        """Compile, and make the engine while the compiler runs."""

        async def warm_up() -> None:
            with contextlib.suppress(RuntimeUnavailableError):  # told to the next one who asks
                await self._open_machine()

        image, failure = b"", None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm_up)
            try:
                image = await compile_file(artifact.path, artifact.filename, self._config)
            except SpearError as exc:  # not out of the nursery: it would come in a group
                failure = exc
        if failure is not None:
            raise failure
        return image

    def _open_cache(self) -> ImageCache:
        try:
            version = importlib.metadata.version("wasmtime")
        except ImportError as exc:
            raise RuntimeUnavailableError(f"{exc}; pip install wasmtime") from exc
        return ImageCache(
            self._context.cache_dir,
            version=f"wasmtime {version} {config_digest()}",
            max_bytes=self._config.cache_bytes,
            log=self._context.log,
        )

    async def _open_machine(self) -> Machine:
        async with self._machine_lock:
            if self._machine is None:
                slots, threads = self._config.max_live_instances, self._config.worker_threads
                try:
                    host = await trio.to_thread.run_sync(partial(get_host, slots))
                except (ImportError, OSError, EngineError) as exc:
                    raise RuntimeUnavailableError(f"wasmtime does not work here: {exc}") from exc
                if host.slots < slots:
                    self._context.log.warning(
                        "address space for %d live instances only, not %d", host.slots, slots
                    )
                self._machine = Machine(host, threads)
            return self._machine

    def _evict(self) -> None:
        surplus = len(self._loaded) - self._config.max_loaded_modules
        for digest, module in list(self._loaded.items()):
            if surplus <= 0:
                return
            if not module.users and digest != next(reversed(self._loaded)):
                del self._loaded[digest]
                module.close()
                surplus -= 1


@asynccontextmanager
async def open_module_store(
    context: PluginContext, config: WasmConfig
) -> AsyncIterator[ModuleStore]:
    store = ModuleStore(context, config)
    try:
        yield store
    finally:
        store.close()
