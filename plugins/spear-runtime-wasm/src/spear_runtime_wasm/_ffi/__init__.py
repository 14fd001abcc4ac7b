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
)
from ._guest import MAX_RESULTS, Guest, GuestLimits, MemoryFault
from ._library import Library, library_path, load_library
from ._linker import Linker, Stop
from ._trap import GuestTrap, WasmFrame

__all__ = [
    "MAX_RESULTS",
    "CompiledModule",
    "Engine",
    "EngineError",
    "Export",
    "Guest",
    "GuestLimits",
    "GuestTrap",
    "Import",
    "Library",
    "Linker",
    "MemoryFault",
    "Stop",
    "WasmFrame",
    "compile_module",
    "config_digest",
    "library_path",
    "load_library",
]
