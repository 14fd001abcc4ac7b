"""Which files are for this runtime, and what it takes to execute them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spear_core.errors import UnsupportedArtifactError

AGENT, COMMAND = "agent", "command"
_ELF = b"\x7fELF"


def recognise(path: Path, head: bytes, entry: str) -> str | None:
    """`agent` for Python that uses the SDK or is given with an entry point, `command` for other
    programs: Python, scripts, native executables. None for anything else."""
    first_line = head.partition(b"\n")[0]
    python = path.suffix == ".py" or (first_line.startswith(b"#!") and b"python" in first_line)
    if python and (entry or b"spear_sdk" in head):
        return AGENT
    if python or head.startswith((b"#!", _ELF)) or path.suffix == ".sh":
        return COMMAND
    return None


def _interpreter(path: Path, line: bytes) -> list[str]:
    """The words of a `#!` line. Raises: UnsupportedArtifactError when it leads nowhere."""
    if line.endswith(b"\r"):
        raise UnsupportedArtifactError(
            f"{path.name}: its first line ends with a carriage return (Windows line ends); "
            "convert it, for example with `sed -i 's/\\r$//'`"
        )
    program, _, argument = os.fsdecode(line[2:].strip()).partition(" ")
    if not os.access(program, os.X_OK):
        raise UnsupportedArtifactError(
            f"{path.name}: its first line names the interpreter {program!r}, "
            "which is not on this machine"
        )
    return [program, argument.strip()] if argument.strip() else [program]


def command_line(path: Path) -> list[str]:
    """What to execute for this command: itself, or an interpreter and itself. Reads the file.

    Raises: UnsupportedArtifactError for a file that is no program.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if path.suffix == ".py":
        return [sys.executable, str(path)]
    if head.startswith(b"#!"):
        return [*_interpreter(path, head.partition(b"\n")[0]), str(path)]
    if head.startswith(_ELF):
        return [str(path)]
    raise UnsupportedArtifactError(
        f"{path.name} is no program: neither a native executable, nor a script with a first line "
        "such as `#!/bin/sh`, nor a `.py` file"
    )
