"""Loading a function's file: where its modules and packages come from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spear_sdk._load import add_packages, load_module

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_a_file_alone_finds_what_is_in_its_directory(write: Write) -> None:
    root = write(agent="import beside_it", beside_it="X = 1")
    module = load_module(str(root / "agent.py"))
    assert (module.__name__, sys.path[0]) == ("agent", str(root))


def test_a_bundle_comes_first_then_the_files_directory(write: Write) -> None:
    root = write(src__agent="import top_of_it, beside_it", top_of_it="", src__beside_it="")
    module = load_module(str(root / "src/agent.py"), "src/agent.py", str(root))
    assert sys.path[:2] == [str(root), str(root / "src")]
    assert module.__name__ == "agent"


def test_a_file_at_the_top_of_its_bundle(write: Write) -> None:
    root = write(agent="")
    load_module(str(root / "agent.py"), "agent.py", str(root))
    assert sys.path.count(str(root)) == 1


def test_a_file_in_a_package_is_imported_as_its_part(write: Write) -> None:
    root = write(
        pack_age__inner__agent="from ..more import X\nfrom . import Y", pack_age__more="X=1"
    )
    (root / "pack_age/__init__.py").write_text("")
    (root / "pack_age/inner/__init__.py").write_text("Y = 2")
    path = root / "pack_age/inner/agent.py"
    module = load_module(str(path), "pack_age/inner/agent.py", str(root))
    assert (module.__name__, module.X, module.Y) == ("pack_age.inner.agent", 1, 2)
    assert sys.modules["pack_age.inner.agent"] is module


@pytest.mark.parametrize("path", ["no-package/agent.py", "half/inner/agent.py"])
def test_a_directory_that_is_no_package_makes_no_part(write: Write, path: str) -> None:
    root = write()
    (root / path).parent.mkdir(parents=True)
    (root / "half").mkdir(exist_ok=True)
    (root / "half/__init__.py").touch()
    (root / path).write_text("")
    assert load_module(str(root / path), path, str(root)).__name__ == "agent"


def test_packages_come_before_the_interpreters_own_and_after_the_library(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write()
    (root / "more").mkdir()
    (root / "extra.pth").write_text("more\n")
    before = ["/lib/python3", "/lib/python3/site-packages", "/opt/dist-packages"]
    monkeypatch.setattr(sys, "path", list(before))
    add_packages(str(root))
    assert sys.path == [before[0], str(root), str(root / "more"), *before[1:]]
    monkeypatch.setattr(sys, "path", ["/lib/python3"])
    add_packages(str(root))
    assert sys.path == ["/lib/python3", str(root), str(root / "more")]
