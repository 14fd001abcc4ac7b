"""Compiling a module in a process of its own, under limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from spear_core.errors import RuntimeFault, UnsupportedArtifactError

from . import _compile_child
from ._config import WasmConfig
from ._failures import one_line
from ._ffi import library_path

MAX_MESSAGE = 2000


async def compile_file(path: Path, name: str, config: WasmConfig) -> bytes:
    """The native image of the module in `path`; `name` is for messages.

    **Raises** UnsupportedArtifactError when the module is malformed, too large or too dear to
    compile, RuntimeFault when the compiler could not run. **Cancellation**: kills the compiler.
    """
    try:
        size = (await trio.Path(path).stat()).st_size
    except OSError as exc:
        raise RuntimeFault(f"{name}: its code cannot be read: {exc}") from exc
    if size > config.max_module_bytes:
        raise UnsupportedArtifactError(
            f"{name}: {size} bytes, and max_module_bytes is {config.max_module_bytes}"
        )
    command = [
        sys.executable, "-I", "-S", _compile_child.__file__, str(library_path()), str(path),
        str(config.compile_cpu_seconds), str(config.compile_memory_bytes),
    ]  # fmt: skip
    environment = {"MALLOC_ARENA_MAX": "2", "PATH": os.defpath}
    try:
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment
        )
    except OSError as exc:
        raise RuntimeFault(f"{name}: the compiler cannot be started: {exc}") from exc
    if done.returncode == 0:
        return bytes(done.stdout)
    raise _failure(name, done, config)


def _failure(
    name: str, done: subprocess.CompletedProcess[bytes], config: WasmConfig
) -> UnsupportedArtifactError | RuntimeFault:
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode == _compile_child.FAILED:
        return UnsupportedArtifactError(f"{name}: {one_line(said[:MAX_MESSAGE])}")
    if done.returncode in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        return _too_dear(name, config)
    out_of_memory = "memory" in said.lower() or "MemoryError" in said
    if done.returncode == -signal.SIGABRT or out_of_memory:
        return UnsupportedArtifactError(
            f"{name}: compiling it needs more than compile_memory_bytes"
            f" ({config.compile_memory_bytes >> 20} MiB): {one_line(said[-200:])}"
        )
    return RuntimeFault(
        f"{name}: the compiler ended with {done.returncode}: {one_line(said[-MAX_MESSAGE:])}"
    )


def _too_dear(name: str, config: WasmConfig) -> UnsupportedArtifactError:
    return UnsupportedArtifactError(
        f"{name}: compiling it takes more than {config.compile_cpu_seconds} s of processor time"
        " (compile_cpu_seconds); split its largest function or raise the limit"
    )
