"""Every check of the project. ``nox`` runs what CI runs; ``nox -l`` lists the sessions.

Sessions find the distributions by globbing ``plugins/*/pyproject.toml`` and
``sdk/*/pyproject.toml``: a new plugin is tested without a change here. Tests run against built
wheels, from a directory where the working tree cannot be imported.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint", "typing", "core", "alone", "together", "lowest", "grpcio", "docs", "packaging",
]  # fmt: skip

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]
OLDEST = PYTHONS[0]
MEMBERS = sorted(
    path.parent.relative_to(ROOT)
    for pattern in ("plugins/*/pyproject.toml", "sdk/*/pyproject.toml")
    for path in ROOT.glob(pattern)
)


@functools.cache
def _project(member: Path) -> dict[str, Any]:
    """The ``pyproject.toml`` of a distribution; ``Path()`` is the core."""
    text = (ROOT / member / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _name(member: Path) -> str:
    return str(_project(member)["project"]["name"])


BY_NAME = {_name(member): member for member in [Path(), *MEMBERS]}


def _package(member: Path) -> Path:
    """The folder of a distribution's import package, relative to the root."""
    (package,) = _project(member)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return member / package


def _with_needs(name: str) -> Iterator[str]:
    """A distribution of this repository, and those of this repository it depends on."""
    yield name
    for requirement in _project(BY_NAME[name])["project"].get("dependencies", []):
        needed = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if needed in BY_NAME:
            yield from _with_needs(needed)


def _group(name: str) -> list[str]:
    """The requirements of a dependency group that has no includes but plain ones."""
    group = _project(Path())["dependency-groups"][name]
    return [r for r in group if isinstance(r, str) and r not in BY_NAME]


@functools.cache
def _built(cache_dir: Path) -> Path:
    """Build every wheel and the core's sdist, once per run of nox."""
    import subprocess

    target = cache_dir / "wheels"
    shutil.rmtree(target, ignore_errors=True)
    uv = shutil.which("uv") or "uv"
    subprocess.run(
        [uv, "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(target)],
        cwd=ROOT,
        check=True,
    )
    return target


def _wheels(session: nox.Session, names: Iterable[str]) -> list[str]:
    """The wheel files of these distributions and of what they need of ours."""
    folder = _built(Path(session.cache_dir).resolve())
    wanted = sorted({each for name in names for each in _with_needs(name)})
    return [str(_wheel(folder, name)) for name in wanted]


def _wheel(folder: Path, name: str) -> Path:
    (wheel,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def _install(session: nox.Session, *names: str) -> None:
    """Install built wheels of ours, and what tests need, into the session's environment."""
    wheels = _wheels(session, names)
    wheels = [f"{w}[testing]" if "spear_core-" in w else w for w in wheels]
    # ours are built anew under one version number: without --reinstall-package, old ones stay
    fresh = [f"--reinstall-package={name}" for name in BY_NAME]
    session.install(*fresh, *wheels)
    session.install(*_group("test"))


def _pytest(session: nox.Session, *paths: str, processes: int = 0) -> None:
    """Run the tests at these paths from a folder where the tree cannot be imported.

    :param processes: that share them out; 0 is none but pytest's own.
    """
    existing = [str(ROOT / path) for path in paths if (ROOT / path).exists()]
    if not existing:
        session.skip(f"no tests at {', '.join(paths)}")
    with tempfile.TemporaryDirectory() as where, session.chdir(where):
        session.run(
            "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
            "-p", "no:cacheprovider", f"--numprocesses={processes}", *session.posargs, *existing,
        )  # fmt: skip


@nox.session(python=OLDEST)
def core(session: nox.Session) -> None:
    """The core alone: its tests pass with no plugin installed."""
    _install(session, "spear-core")
    _pytest(session, "tests/unit", "tests/contract")


@nox.session(python=OLDEST)
@nox.parametrize("member", [nox.param(m, id=_name(m)) for m in MEMBERS])
def alone(session: nox.Session, member: Path) -> None:
    """One distribution alone with the core (and what it names as needed)."""
    _install(session, "spear-core", _name(member))
    _pytest(session, str(member / "tests"))


@nox.session(python=PYTHONS)
def together(session: nox.Session) -> None:
    """Everything installed, every test but those that have a session of their own."""
    _install(session, *BY_NAME)
    _pytest(session, *_everything(), processes=2)


@nox.session(python=OLDEST, reuse_venv=False)
def lowest(session: nox.Session) -> None:
    """Everything with the lowest versions that we say are enough."""
    projects = [_project(member)["project"] for member in BY_NAME.values()]
    named = [r for project in projects for r in project["dependencies"]]
    named += [r for p in projects for e in p.get("optional-dependencies", {}).values() for r in e]
    # what a wheel needs is not "direct" to uv: name it
    direct = [requirement for requirement in named if not requirement.startswith("spear-")]
    session.install("--resolution", "lowest-direct", *_wheels(session, BY_NAME), *direct)
    session.install(*_group("test"))
    session.run("uv", "pip", "list", "--quiet", external=True)
    _pytest(session, *_everything(), processes=2)


@nox.session(python=OLDEST)
@nox.parametrize("version", ["oldest", "newest"])
def grpcio(session: nox.Session, version: str) -> None:
    """What drives gRPC's C-core, over the oldest and the newest grpcio that we say is enough."""
    name = "spear-transport-grpc"
    _install(session, "spear-core", name)
    dependencies = _project(BY_NAME[name])["project"]["dependencies"]
    (range_,) = (r for r in dependencies if r.startswith("grpcio"))
    resolution = {"oldest": "lowest-direct", "newest": "highest"}[version]
    session.install("--resolution", resolution, "--upgrade", range_)
    session.run("uv", "pip", "list", "--quiet", external=True)
    _pytest(session, str(BY_NAME[name] / "tests"))


def _everything() -> list[str]:
    apart = {"docs", "packaging"}
    tests = [path for path in sorted((ROOT / "tests").iterdir()) if path.name not in apart]
    return [*(f"tests/{path.name}" for path in tests), *(str(m / "tests") for m in MEMBERS)]


@nox.session(python=OLDEST)
def typing(session: nox.Session) -> None:
    """mypy, strict, package by package."""
    _install(session, *BY_NAME)
    session.install(*_group("lint"))
    for member in [Path(), *MEMBERS]:
        package = _package(member)
        session.run("mypy", str(package), env={"MYPYPATH": str(ROOT / package.parent)})


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """ruff, its formatter, and who may import whom."""
    session.install(*_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    _install(session, *BY_NAME)
    known = _project(Path())["tool"]["importlinter"]["root_packages"]
    missing = {_package(m).name for m in [Path(), *MEMBERS]} - set(known)
    if missing:
        session.error(f"[tool.importlinter] in pyproject.toml does not check {sorted(missing)}")
    sources = os.pathsep.join(str(ROOT / _package(m).parent) for m in [Path(), *MEMBERS])
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """Links of the documents lead somewhere, and every command in them runs."""
    _install(session, *BY_NAME)
    _pytest(session, "tests/docs")


@nox.session(python=OLDEST)
def packaging(session: nox.Session) -> None:
    """Wheels and sdists in empty environments."""
    _install(session, *BY_NAME)
    _pytest(session, "tests/packaging")


@nox.session(python=OLDEST)
def endurance(session: nox.Session) -> None:
    """The tests whose numbers a usual run makes smaller, whole: an hour or so."""
    _install(session, *BY_NAME)
    session.env["SPEAR_KILL_ROUNDS"] = "120"
    session.env["SPEAR_TEST_INCREMENTS"] = "20000"
    session.env["SPEAR_HOLD_S"] = "180"
    session.env["SPEAR_FULL_QUEUE_S"] = "60"
    lmdb = "plugins/spear-store-lmdb/tests"
    whole = ["tests/e2e/test_objects.py", "tests/e2e/test_long_readers.py"]
    _pytest(session, f"{lmdb}/test_kill.py", f"{lmdb}/test_many_processes.py", *whole)
    _pytest(session, "tests/integration/test_recovery.py")


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """Every benchmark, each beside its floor. ``nox -s bench -- --json`` for a machine."""
    _install(session, *BY_NAME)
    session.run("python", str(ROOT / "bench" / "run.py"), *session.posargs)


@nox.session(python=OLDEST)
def bench_ray(session: nox.Session) -> None:
    """SPEAR beside Ray, which the session installs, starts and stops."""
    _install(session, *BY_NAME)
    session.install("ray[default]", "numpy")
    for script in ("against_ray.py", "objects_against_ray.py"):
        session.run("python", str(ROOT / "bench" / script), *session.posargs)


@nox.session(python=OLDEST)
def soak(session: nox.Session) -> None:
    """Ten thousand executions leave nothing behind."""
    _install(session, *BY_NAME)
    session.run("python", str(ROOT / "bench" / "soak.py"), *session.posargs)
