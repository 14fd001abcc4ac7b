"""What ``check_plugin`` finds in plugins that are not in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spear_core.testing import assert_plugin_ok, check_plugin

SOUND = """
from contextlib import asynccontextmanager
import attrs
from spear_core import hookimpl
from spear_core.api import Capability, RuntimeSpec

@attrs.frozen(kw_only=True)
class Config:
    size: int = 1

@asynccontextmanager
async def open_toy(context, config):
    yield None

def recognise(path, head, entry):
    return "toy" if path.suffix == ".toy" else None

@hookimpl
def spear_runtimes():
    return [RuntimeSpec(name="toy", open=open_toy, config_cls=Config, recognise=recognise)]
"""

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs ``runtime-toy`` with this code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delitem(sys.modules, "checked_toy", raising=False)

    def make(code: str) -> None:
        (tmp_path / "checked_toy.py").write_text(code)
        info = tmp_path / "spear_runtime_toy-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: spear-runtime-toy\nVersion: 1\n\n")
        (info / "entry_points.txt").write_text("[spear]\nruntime-toy = checked_toy\n")

    return make


def test_a_sound_plugin(install: Install) -> None:
    install(SOUND)
    assert check_plugin("runtime-toy", engines=("wasmtime", "cattrs")) == []
    assert_plugin_ok("runtime-toy")


def test_the_builtins_are_in_order() -> None:
    assert check_plugin("builtins") == []


def test_a_plugin_that_is_not_installed() -> None:
    (problem,) = check_plugin("runtime-absent")
    assert str(problem).startswith("entry point: no distribution declares 'runtime-absent'")


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("import attrs", "import attrs, no_engine", "load", "No module named 'no_engine'"),
        ("spear_runtimes()", "spear_runtime()", "load", "did you mean 'spear_runtimes'"),
        ("size: int = 1", "size: int", "config", "plugins.runtime-toy.size: required"),
        ("attrs.frozen", "attrs.define", "config", "Config is not frozen"),
        ("size: int = 1", "size = attrs.field(default=1)", "config", "without a type: size"),
        ("size: int = 1", "size: 'Unknown' = 1", "config", "for the type checker only"),
        ("@asynccontextmanager", "", "runtime:toy", "open is an async function"),
        ("open=open_toy", "open=None", "runtime:toy", "open is not callable: None"),
        ("def recognise", "async def recognise", "runtime:toy", "called and not awaited"),
        ("'toy' if path", "'toy' if True or path", "runtime:toy", "takes any file"),
        ("return 'toy' if", "return 'toy' if path.stat() and", "runtime:toy", "recognise raised"),
        ("name='toy'", "name='toy', transports='unix'", "runtime:toy", "transports is a string"),
        ("name='toy'", "name='toy', capabilities=[]", "runtime:toy", "not a frozenset"),
        (
            "name='toy'",
            "name='toy', reusable_shapes=frozenset({'toy'})",
            "runtime:toy",
            "reusable_shapes without Capability.REUSE",
        ),
    ],
)
def test_a_plugin_with_a_fault(
    install: Install, old: str, new: str, where: str, message: str
) -> None:
    code = SOUND.replace('"', "'")
    assert old in code
    install(code.replace(old, new))
    problems = check_plugin("runtime-toy")
    assert [p.where for p in problems][:1] == [where], problems
    assert message in problems[0].message
    with pytest.raises(AssertionError, match="runtime-toy"):
        assert_plugin_ok("runtime-toy")


def test_a_plugin_that_imports_its_engine(install: Install) -> None:
    install(SOUND + "\nimport sqlite3\n")
    assert check_plugin("runtime-toy") == []
    (problem,) = check_plugin("runtime-toy", engines=("sqlite3", "wasmtime"))
    assert problem.where == "imports"
    assert "imports sqlite3" in problem.message
