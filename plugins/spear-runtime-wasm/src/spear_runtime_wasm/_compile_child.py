"""The compiler process: one module in, its native image out on stdout, then it is gone.

Run by path with `-I -S`, so it sees the standard library and the package beside it. A module can
take minutes and gigabytes to compile and that can't be interrupted from inside a process; here it
meets the limits of this one.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

FAILED = 3
"""Exit code when the module is at fault; stderr says why."""
NICENESS = 5
WALL_FACTOR = 4
"""Wall-clock seconds for each second of processor time: a loaded machine is no bomb."""


def main(library: str, source: str, cpu_seconds: str, memory_bytes: str) -> int:
    """Compile the file `source`. All arguments are strings: they come from a command line."""
    for what, value in ((resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_AS, memory_bytes)):
        _, hard = resource.getrlimit(what)
        limit = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(what, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(cpu_seconds) * WALL_FACTOR)
    os.nice(NICENESS)
    from spear_runtime_wasm._ffi import EngineError, compile_module, load_library

    try:
        image = compile_module(load_library(library), Path(source).read_bytes())
    except EngineError as exc:
        print(exc, file=sys.stderr)
        return FAILED
    with os.fdopen(1, "wb") as out:
        out.write(image)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(*sys.argv[1:]))
