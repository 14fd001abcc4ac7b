"""Guests have the node's packages, and nothing of where the node was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spear_runtime_process import _python


def test_the_import_path_begins_with_the_standard_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = _python.import_path()
    assert str(Path(pytest.__file__).parent.parent) in installed
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert _python.import_path() == installed
    assert str(tmp_path) not in _python.places()


@pytest.mark.parametrize("zygote", ["lazy", "off"])
async def test_agents_find_packages_installed_anywhere(
    place, single, make_request, monkeypatch, tmp_path, zygote
) -> None:
    """As those of `pip install --user`, which an isolated interpreter doesn't look for."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "found_only_there.py").write_text("ANSWER = '42'\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    text = """
        from found_only_there import ANSWER
        from spear_sdk import function

        @function
        def main() -> str:
            return ANSWER
        """
    async with single(place.artifact("uses.py", text), zygote=zygote) as instance:
        response = await instance.execute(make_request())
    assert response.error is None, response.error
    assert response.payload == b"42"
