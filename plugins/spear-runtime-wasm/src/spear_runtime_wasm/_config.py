"""`[plugins.runtime-wasm]`."""

from __future__ import annotations

import attrs
from attrs import validators

MIB = 1 << 20

_positive = validators.gt(0)
_not_negative = validators.ge(0)


@attrs.frozen(kw_only=True)
class WasmConfig:
    """What the operator may set for WASM guests on this node."""

    memory_bytes: int = attrs.field(default=128 * MIB, validator=_positive)
    """Linear memory of an instance, unless its artifact says otherwise."""
    max_memory_bytes: int = attrs.field(default=4096 * MIB, validator=_positive)
    """The most that an artifact may ask for."""
    table_elements: int = attrs.field(default=100_000, validator=_positive)
    """Entries of an instance's function tables."""
    max_live_instances: int = attrs.field(
        default=2048, validator=validators.and_(_positive, validators.le(16_384))
    )
    """Instances at the same time; address space for them is reserved at the first use."""
    worker_threads: int = attrs.field(default=1, validator=_not_negative)
    """Threads for guests that compute for long; 0 slices them on the node's own thread."""
    max_module_bytes: int = attrs.field(default=100 * MIB, validator=_positive)
    compile_cpu_seconds: int = attrs.field(default=60, validator=_positive)
    """Processor time for compiling one module."""
    compile_memory_bytes: int = attrs.field(default=2048 * MIB, validator=_positive)
    cache_bytes: int = attrs.field(default=1024 * MIB, validator=_not_negative)
    """Size of the cache of compiled modules on disk."""
    max_loaded_modules: int = attrs.field(default=256, validator=_positive)
    """Modules kept in memory; the one unused longest is dropped and loaded again when needed."""
