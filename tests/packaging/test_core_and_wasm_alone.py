"""``pip install spear-core spear-runtime-wasm`` in an empty environment is a whole SPEAR."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AGENT = (ROOT / "examples" / "word-statistics" / "word_statistics.py").read_bytes()
WAT = (ROOT / "examples" / "wat" / "crc32.wat").read_text("utf-8")
CHECKSUM = b"cbf43926\n"  # of "123456789": the check value of every description of CRC-32


@pytest.fixture
def env(environment: Callable[..., Any]) -> Any:
    """The environment, with a module and an agent in its home."""
    env = environment("spear-core", "spear-runtime-wasm")
    code = "import sys, wasmtime; sys.stdout.buffer.write(wasmtime.wat2wasm(sys.stdin.read()))"
    (env.home / "crc32.wasm").write_bytes(env.run("python", "-c", code, stdin=WAT.encode()).stdout)
    (env.home / "agent.py").write_bytes(AGENT)
    return env


def test_nothing_more_than_needed_is_installed(env: Any) -> None:
    code = "import importlib.metadata as m; print(*(d.name.lower() for d in m.distributions()))"
    installed = env.run("python", "-c", code).stdout.decode().split()
    assert {name for name in installed if name.startswith("spear")} == {
        "spear-core",
        "spear-runtime-wasm",
    }
    assert not {"grpcio", "protobuf", "lmdb", "httpx", "pytest"}.intersection(installed)


def test_run(env: Any) -> None:
    done = env.run("spear", "run", "crc32.wasm", "--input", "123456789")
    assert done.stdout == CHECKSUM


def test_run_from_stdin(env: Any) -> None:
    assert env.run("spear", "run", "crc32.wasm", stdin=b"123456789").stdout == CHECKSUM


def test_an_agent_says_which_distribution_to_install(env: Any) -> None:
    done = env.run("spear", "run", "agent.py", "--input", "x", check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"pip install spear-runtime-process" in done.stderr
    assert b"Traceback" not in done.stderr


def test_node_and_invoke(env: Any) -> None:
    spear = str(env.python.with_name("spear"))
    node = subprocess.Popen(
        [spear, "node"],
        cwd=env.home,
        env=env.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert node.stdout is not None
        assert node.stdout.readline().startswith(b"ready: unix://")
        env.run("spear", "deploy", "crc32.wasm", "--name", "crc32")
        assert env.run("spear", "invoke", "crc32", "--input", "123456789").stdout == CHECKSUM
    finally:
        node.terminate()
        _, log = node.communicate(timeout=60)
    assert node.returncode == 0, log
