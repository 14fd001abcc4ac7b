"""A grpcio that cannot be driven is named, with what to install, and costs the node one door."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.errors import NodeUnreachableError, RuntimeUnavailableError
from spear_transport_grpc import _door, plugin
from spear_transport_grpc._bridge import _check

IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from spear_core.errors import RuntimeUnavailableError
try:
    import spear_transport_grpc._bridge
except RuntimeUnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("core", "words"),
    [
        ("class CompletionQueue: pass", "it has no Channel, CompletionType,"),
        ("raise ImportError('no such symbol')", "it does not load (no such symbol)"),
    ],
)
def test_another_core_is_refused_when_it_is_loaded(tmp_path: Path, core: str, words: str) -> None:
    package = tmp_path / "grpc" / "_cython"
    package.mkdir(parents=True)
    (tmp_path / "grpc" / "__init__.py").write_text("__version__ = '9.9.9'\n")
    (package / "__init__.py").write_text("")
    (package / "cygrpc.py").write_text(f"{core}\n")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("grpcio 9.9.9 cannot be used: ")
    assert words in done.stdout
    assert "pip install 'grpcio>=1.60,<2'" in done.stdout


def test_the_environment_is_as_it_was_and_no_fork_handlers_are_in() -> None:
    code = """
import os
os.environ.pop("GRPC_ENABLE_FORK_SUPPORT", None)
os.environ["GRPC_VERBOSITY"] = "ERROR"
import spear_transport_grpc._bridge
print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"), os.environ["GRPC_VERBOSITY"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None ERROR\n"


def test_a_round_trip_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise TypeError("integrated_call() takes 9 arguments")

    monkeypatch.setattr(_check, "_round_trip", fail)
    _check.check_bridge.cache_clear()
    with pytest.raises(RuntimeUnavailableError, match=r"integrated_call.*pip install"):
        _check.check_bridge()
    monkeypatch.undo()
    _check.check_bridge()


async def test_without_grpcio_the_door_shuts_and_the_node_goes_on(
    serve: Any,
    table_node: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise RuntimeUnavailableError("grpcio 9.9.9 cannot be used: it is too new")

    monkeypatch.setattr(_door, "_load", refuse)
    with caplog.at_level(logging.ERROR), trio.fail_after(60):
        async with serve(tmp_path, table_node()) as url:
            with pytest.raises(NodeUnreachableError):
                async with plugin.connect(url):
                    pytest.fail("it opened")
            assert not (tmp_path / "state" / "grpc.sock").exists()
    assert "grpcio 9.9.9 cannot be used" in caplog.text
