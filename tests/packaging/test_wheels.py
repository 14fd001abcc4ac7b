"""What is in the wheels and sdists."""

from __future__ import annotations

import email
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = [ROOT, *ROOT.glob("plugins/*"), *ROOT.glob("sdk/*")]
PROJECTS = {
    project["name"]: project
    for folder in MEMBERS
    if (folder / "pyproject.toml").exists()
    for project in [tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]]
}
VERSION = PROJECTS["spear-core"]["version"]


def needs_of_ours(name: str) -> list[str]:
    """A distribution of ours and all of ours that it needs."""
    found = [name]
    for requirement in PROJECTS[name]["dependencies"]:
        ours = requirement.partition("==")[0]
        if ours in PROJECTS:
            assert requirement == f"{ours}=={VERSION}", "ours are released together"
            found += needs_of_ours(ours)
    return sorted(set(found))


def test_every_distribution_has_the_one_version() -> None:
    assert {project["version"] for project in PROJECTS.values()} == {VERSION}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_has_its_package_its_types_and_its_licence(
    name: str, wheels: dict[str, Path]
) -> None:
    package = name.replace("-", "_")
    info = f"{package}-{VERSION}.dist-info"
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(files)
    assert {file.split("/")[0] for file in files} == {package, info}
    assert f"{info}/licenses/LICENSE" in files
    assert metadata["License-Expression"] == "Apache-2.0"
    assert len(str(metadata.get_payload())) > 300, "the README is its description"


@pytest.mark.parametrize("name", PROJECTS)
def test_an_sdist_has_what_a_packager_needs(name: str, distributions: Path) -> None:
    package = name.replace("-", "_")
    with tarfile.open(distributions / f"{package}-{VERSION}.tar.gz") as sdist:
        files = {file.partition("/")[2] for file in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= files
    assert not [file for file in files if "__pycache__" in file or file.startswith(".venv")]


@pytest.mark.parametrize("name", [name for name in PROJECTS if name != "spear-sdk"])
def test_a_wheel_installs_alone_and_its_plugin_loads(
    name: str, environment: Callable[..., Any]
) -> None:
    env = environment(*needs_of_ours(name))
    env.run("python", "-c", f"import {name.replace('-', '_')}")
    listed = env.run("spear", "plugins").stdout.decode()
    assert "failed" not in listed
    for entry_point in PROJECTS[name]["entry-points"]["spear"]:
        assert entry_point in listed


def test_the_sdk_needs_nothing_at_all(environment: Callable[..., Any]) -> None:
    env = environment("spear-sdk")
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    assert env.run("python", "-c", code).stdout.split() == [b"spear-sdk"]
    env.run("python", "-c", "import spear_sdk")
