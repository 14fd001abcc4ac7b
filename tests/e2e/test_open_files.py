"""How many files a real node may have open, and its guests."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

FUNCTION = """
import resource
from spear_sdk import function

@function
def limit() -> str:
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
FEW = 300


def limits(pid: int) -> tuple[int, int]:
    """Soft and hard."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return int(soft), int(hard)
    raise AssertionError


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_a_node_has_what_it_may_have_and_guests_what_is_usual(home: Any, isolation: str) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= FEW:
        pytest.skip("the hard limit is no higher")
    config = home.folder / "node.toml"
    config.write_text(f"[plugins.runtime-process]\nisolation = '{isolation}'\nopen_files = 400\n")
    node = home.node("--config", str(config), wrapper=f'ulimit -Sn {FEW}; exec "$@"')
    soft, hard = limits(node.process.pid)
    assert soft == min(hard, 1 << 20)

    agent, command = home.folder / "agent.py", home.folder / "command.sh"
    agent.write_text(FUNCTION)
    command.write_text("#!/bin/sh\nulimit -Sn\n")
    command.chmod(0o755)
    for file in (agent, command):
        told = home.spear("deploy", str(file), "--name", "f")
        assert told.status == 0, told.err
        told = home.spear("invoke", "f")
        assert int(told.out) == (FEW if isolation == "none" else 400), told.err
    assert node.stop() == 0
