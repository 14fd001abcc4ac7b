"""Two agents on a real node share a large array."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Spear = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def spear() -> Iterator[Spear]:
    """``spear(…)``, with a node behind it."""
    program = str(Path(sys.executable).with_name("spear"))
    with tempfile.TemporaryDirectory(prefix="spear-") as folder:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPEAR_", "XDG_"))}
        environ = {**kept, "HOME": folder, "SPEAR_STATE_DIR": f"{folder}/state"}
        node = subprocess.Popen([program, "node"], env=environ, stdout=subprocess.PIPE)

        def spear(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, *arguments],
                env=environ,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        try:
            assert node.stdout is not None
            assert node.stdout.readline().startswith(b"ready: ")
            yield spear
        finally:
            node.terminate()
            node.communicate(timeout=60)


def test_shared_array(spear: Spear, examples: Path) -> None:
    for agent in ("recorder", "analyst"):
        told = spear("deploy", str(examples / "shared-array" / agent))
        assert told.returncode == 0, told.stderr
    told = spear("invoke", "recorder", "--input", "17")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer == {"key": "/recorder/takes/latest", "bytes": 64 << 20}
    told = spear("invoke", "analyst", "--input", answer["key"])
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {"second": 17, "peak": 5.0}
    told = spear("objects", "stat", "recorder/takes/latest", "--json")
    assert json.loads(told.stdout)["content_type"] == "application/x-float64"
    told = spear("invoke", "analyst", "--input", "/recorder/secret")
    assert told.returncode != 0
    assert "may not read '/recorder/secret'" in told.stderr
