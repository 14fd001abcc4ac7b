"""An agent puts more than fits on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spear_core.client import sync

AGENT = """
from spear_sdk import Context, StoreFullError, function


@function
def put(size: int, ctx: Context) -> str:
    try:
        ctx.objects.put("large", bytes(size), hashed=size % 2 == 0)
    except StoreFullError as error:
        return f"{error.code}: {error}"
    return "there"
"""
SMALL_STORE = """
set -e
mkdir -p "$SPEAR_STATE_DIR/plugins/store-lmdb/objects"
mount -t tmpfs -o size=16m none "$SPEAR_STATE_DIR/plugins/store-lmdb/objects"
exec "$@"
"""


@pytest.mark.parametrize("size", [20 << 20, (20 << 20) + 1], ids=["hashed", "plain"])
def test_a_disk_that_is_full_of_one_value(home: Any, mounts: str, size: int) -> None:
    """The agent is told, nothing of it is left, and there is room for what fits."""
    (home.folder / "config.toml").write_text('[stores]\nobjects = "lmdb"\nmetadata = "memory"\n')
    node = home.node(
        "--config", "config.toml", wrapper=f"exec {mounts} sh -c '{SMALL_STORE}' sh \"$@\""
    )
    (home.folder / "agent.py").write_text(AGENT)
    assert home.spear("deploy", "agent.py", "--name", "agent").status == 0
    blobs = Path(f"/proc/{node.process.pid}/root{home.state}/plugins/store-lmdb/objects/blobs")
    with sync.connect(state_dir=home.state) as client:
        for _ in range(3):
            told = client.invoke("agent:put", size).output.decode()
            assert told.startswith("resource_exhausted: "), told
            assert "no room left" in told
            home.wait_until(lambda: not list(blobs.iterdir()), "what was written is gone")
            assert client.objects.usage().bytes == 0
        assert client.invoke("agent:put", 12 << 20).output == b"there"
        assert client.objects.usage().bytes == 12 << 20
    assert node.stop() == 0
    assert "Traceback" not in node.log.read_text()
