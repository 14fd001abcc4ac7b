"""The first command of the README, as written, in a fresh copy on a machine that has only pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
THREE_MINUTES = 180


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that a clone would have, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    clone = tmp_path / "clone"
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    return clone


def test_the_first_command(clone: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^\$ (pip install uv && .*)$", README, re.MULTILINE)
    (answer,) = re.findall(r"^```json\n(.*)\n```$", README, re.MULTILINE)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    dropped = ("UV_", "PYTHON", "VIRTUAL_ENV", "SPEAR_", "XDG_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"}
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env={**kept, **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=THREE_MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1] == answer
    assert time.monotonic() - started < THREE_MINUTES
