"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
from spear_core.builtins.plugin import spear_schedulers, spear_transports
from spear_core.testing import SchedulerContract, TransportContract

class TestScheduler(SchedulerContract):
    (spec,) = spear_schedulers()

class TestTransport(TransportContract):
    (spec,) = spear_transports()
    def hang(self): ...
"""

FIXTURES = """
def test_context(spear_context, spear_hostcalls):
    spear_context.hostcalls.log("e", "hello")
    assert spear_hostcalls.text_of("e") == "hello"
"""

LAZY = """
import sys
def test_lazy():
    assert [m for m in sys.modules if m.startswith(("spear_core.api", "trio.", "attr."))] == []
"""

HANGS = """
import trio
from spear_core.testing import promise
class TestHangs:
    patience = 0.05
    @promise
    async def test_hangs(self):
        await trio.sleep_forever()
"""

REWRITTEN = """
import importlib, inspect, pkgutil
import spear_core.testing
def test_rewritten():
    for info in pkgutil.iter_modules(spear_core.testing.__path__, "spear_core.testing."):
        module = importlib.import_module(info.name)
        if " assert " in inspect.getsource(module):
            assert "@pytest_ar" in vars(module), info.name
"""


def run(tmp_path: Path, code: str, *flags: str) -> str:
    """Run these tests without any setting of ours; what pytest printed."""
    (tmp_path / "test_it.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["false", "true"])
def test_suites_need_no_trio_mode(tmp_path: Path, mode: str) -> None:
    printed = run(tmp_path, SUITE, "-o", f"trio_mode={mode}", "--strict-markers")
    assert "failed" not in printed
    assert " passed" in printed
    assert int(printed.split(" passed")[0].split()[-1]) > 30


def test_fixtures_are_found(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, FIXTURES)


def test_nothing_heavy_is_imported_for_others(tmp_path: Path) -> None:
    others = ("trio", "hypothesispytest", "anyio")
    printed = run(tmp_path, LAZY, *(flag for name in others for flag in ("-p", f"no:{name}")))
    assert "1 passed" in printed, printed


def test_failures_show_the_values(tmp_path: Path) -> None:
    code = SUITE + "\n    def new(self): ...\n"
    code += "\nclass TestWrong(TestScheduler):\n"
    code += "    def make_scheduler(self):\n"
    code += "        class Wrong:\n"
    code += "            def rank(self, task, nodes): return ['nobody']\n"
    code += "        return Wrong()\n"
    printed = run(tmp_path, code, "-k", "TestWrong and given")
    assert "'nobody'" in printed, "assertions of the suites are rewritten"


def test_a_test_that_hangs_fails(tmp_path: Path) -> None:
    assert "still waiting after 0.05 s" in run(tmp_path, HANGS)


def test_public_names() -> None:
    import spear_core.testing

    for name in spear_core.testing.__all__:
        assert getattr(spear_core.testing, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        spear_core.testing.no_such_name  # noqa: B018


def test_every_suite_shows_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where plugins are loaded by name only, modules that this one does not register would raise
    bare errors."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ("pytest_trio.plugin", "spear_core.testing.pytest_plugin")
    printed = run(tmp_path, REWRITTEN, *(flag for name in plugins for flag in ("-p", name)))
    assert "1 passed" in printed, printed
