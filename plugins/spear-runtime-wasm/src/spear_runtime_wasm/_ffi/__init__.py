"""The only part that touches ctypes: wasmtime's C interface, as thin as it can be.

Pointers are plain integers here. Nothing in it knows of trio, of hostcalls or of SPEAR.
"""

from ._engine import (
    CompiledModule,
    Engine,
    EngineError,
    Export,
    Import,
    compile_module,
    config_digest,
    possible_slots,
)
from ._guest import MAX_RESULTS, Guest, GuestLimits, GuestMemoryError
from ._library import Library, library_path, load_library
from ._linker import GuestStopError, Linker
from ._trap import GuestTrapError, WasmFrame

__all__ = [
    "MAX_RESULTS",
    "CompiledModule",
    "Engine",
    "EngineError",
    "Export",
    "Guest",
    "GuestLimits",
    "GuestMemoryError",
    "GuestStopError",
    "GuestTrapError",
    "Import",
    "Library",
    "Linker",
    "WasmFrame",
    "compile_module",
    "config_digest",
    "library_path",
    "load_library",
    "possible_slots",
]
