"""The hooks; imports without wasmtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from spear_core import hookimpl
from spear_core.api import Capability, PluginContext, Runtime, RuntimeSpec

from ._config import WasmConfig

BINARY = b"\0asm"
SHAPE = "wasm"


def recognise(path: Path, head: bytes, entry: str) -> str | None:
    """A WASM binary by its first four bytes, or a text module by its suffix."""
    if head.startswith(BINARY) or path.suffix in (".wasm", ".wat"):
        return SHAPE
    return None


@asynccontextmanager
async def open_wasm(context: PluginContext, config: WasmConfig) -> AsyncIterator[Runtime]:
    from ._runtime import open_wasm_runtime

    async with open_wasm_runtime(context, config) as runtime:
        yield runtime


@hookimpl
def spear_runtimes() -> Iterable[RuntimeSpec[Any]]:
    """Declare the runtime `wasm`."""
    return [
        RuntimeSpec(
            name="wasm",
            open=open_wasm,
            config_cls=WasmConfig,
            recognise=recognise,
            transports=("memory",),
            capabilities=frozenset(
                {
                    Capability.REUSE,
                    Capability.CANCEL,
                    Capability.MEMORY_LIMIT,
                    Capability.PROMPT,
                    Capability.STREAM,
                }
            ),
        )
    ]
