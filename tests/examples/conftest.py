"""Running an example the way its README does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@attrs.frozen
class Told:
    """What ``spear run`` said."""

    status: int
    out: bytes
    err: str


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Told]:
    """``run(file, *options, stdin=…)`` is ``spear run`` from a folder with nothing in it."""
    dropped = ("SPEAR_", "XDG_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    environ = {**kept, "HOME": str(tmp_path)}

    def run(file: Path, *options: str, stdin: bytes = b"") -> Told:
        command = [str(Path(sys.executable).with_name("spear")), "run", str(file), *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, input=stdin, capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip
        return Told(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples."""
    return EXAMPLES
