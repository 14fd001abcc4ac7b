"""Built distributions, and empty environments to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[2]


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    assert found, "these tests need uv: it is in the dependency group 'test'"
    return found


@attrs.frozen
class Environment:
    """A virtual environment with nothing in it but what was asked for."""

    python: Path
    home: Path

    def run(
        self, *command: str, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of the environment, from a folder where there is nothing to import."""
        done = subprocess.run(
            [str(self.python.with_name(command[0])), *command[1:]],
            cwd=self.home,
            env=self.environ(),
            input=stdin,
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done

    def environ(self) -> dict[str, str]:
        """Nothing of this test run's environment that could help."""
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        state = str(self.home / "state")
        path = f"{self.python.parent}:/usr/bin:/bin"
        return {**kept, "PATH": path, "HOME": str(self.home), "XDG_STATE_HOME": state}


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of every distribution, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    subprocess.run(
        [_uv(), "build", "--quiet", "--all-packages", "--out-dir", str(folder)],
        cwd=ROOT,
        check=True,
        timeout=600,
    )
    return folder


@pytest.fixture
def environment(distributions: Path, tmp_path: Path) -> Callable[..., Environment]:
    """``environment("spear-core", …)``: a new one with these of our wheels, and their needs."""

    def make(*names: str) -> Environment:
        home = tmp_path / "home"
        home.mkdir()
        folder = tmp_path / "venv"
        python = folder / "bin" / "python"
        wheels = [str(wheel_of(distributions, name)) for name in names]
        subprocess.run([_uv(), "venv", "-q", "-p", sys.executable, str(folder)], check=True)
        subprocess.run([_uv(), "pip", "install", "-q", "-p", str(python), *wheels], check=True)
        subprocess.run([_uv(), "pip", "check", "-q", "-p", str(python)], check=True)
        return Environment(python, home)

    return make


def wheel_of(folder: Path, name: str) -> Path:
    """The wheel of a distribution."""
    (wheel,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheels(distributions: Path) -> dict[str, Path]:
    """Distribution name → its wheel."""
    return {w.name.split("-")[0].replace("_", "-"): w for w in distributions.glob("*.whl")}
