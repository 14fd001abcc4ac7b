"""What this distribution gives SPEAR: the runtime `process`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

from spear_core import hookimpl
from spear_core.api import Capability, PluginContext, Runtime, RuntimeSpec
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._recognise import recognise


def _open(context: PluginContext, config: ProcessConfig) -> AbstractAsyncContextManager[Runtime]:
    from spear_runtime_process._runtime import open_runtime

    return open_runtime(context, config)


@hookimpl
def spear_runtimes() -> Iterator[RuntimeSpec[ProcessConfig]]:
    """Declare the runtime `process`."""
    yield RuntimeSpec(
        name="process",
        open=_open,
        config_cls=ProcessConfig,
        recognise=recognise,
        reusable_shapes=frozenset({"agent"}),
        transports=("unix", "tcp"),
        capabilities=frozenset(
            {
                Capability.REUSE,
                Capability.CANCEL,
                Capability.MEMORY_LIMIT,
                Capability.STREAM,
                Capability.REQUIREMENTS,
                Capability.CONCURRENCY,
            }
        ),
    )
