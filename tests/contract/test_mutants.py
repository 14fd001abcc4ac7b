"""The contract suites catch planted bugs, and say so in their document."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLANTED = sorted(Path(__file__).with_name("planted").glob("*.py"))
DOCUMENT = Path(__file__).parents[2] / "docs" / "contract-suites.md"
BEGIN, END = "<!-- mutants: begin -->\n", "<!-- mutants: end -->\n"


def _load(path: Path) -> Any:
    name = f"planted_{path.stem}_for_the_list"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _planted() -> Iterator[tuple[str, type[Any], Path]]:
    """Name, class and file of every mutant, in the order of the files."""
    for path in PLANTED:
        for name, value in vars(_load(path)).items():
            if isinstance(value, type) and "caught_by" in vars(value):
                yield name, value, path


MUTANTS = {name: cls for name, cls, _ in _planted()}
FILES = {name: path for name, _, path in _planted()}
SOUND = {
    "TestSoundMetadata": "metadata",
    "TestSoundRuntime": "runtimes",
    "TestSoundScheduler": "schedulers",
    "TestSoundStore": "stores",
    "TestSoundTracer": "tracers",
    "TestSoundTransport": "transports",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """``(class, test)`` → ``passed``, ``failed`` or ``skipped``, from one run of pytest."""
    folder = tmp_path_factory.mktemp("mutants")
    report = folder / "report.xml"
    sound = {path.stem: path for path in PLANTED}
    chosen = [f"{sound[stem]}::{name}" for name, stem in SOUND.items()]
    chosen += [f"{FILES[name]}::{name}::{cls.caught_by}" for name, cls in MUTANTS.items()]
    flags = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={folder}"]
    flags += ["-c", "/dev/null", f"--junitxml={report}", "-W", "ignore"]
    flags += ["--assert=plain"]  # how values differ, nobody reads here
    script = [sys.executable, "-P", "-m", "pytest", *flags, *chosen]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(_read(report))


def _read(report: Path) -> Iterator[tuple[tuple[str, str], str]]:
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        if "skipped" in kinds:
            outcome = "skipped"
        yield (case.attrib["classname"].rpartition(".")[2], case.attrib["name"]), outcome


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(name: str, outcomes: dict[tuple[str, str], str]) -> None:
    assert outcomes[name, MUTANTS[name].caught_by] == "failed"


@pytest.mark.parametrize("name", SOUND)
def test_sound_implementation_passes(name: str, outcomes: dict[tuple[str, str], str]) -> None:
    results = {test: outcome for (cls, test), outcome in outcomes.items() if cls == name}
    assert len(results) > 5
    assert [test for test, outcome in results.items() if outcome == "failed"] == []


def test_every_mutant_has_a_name_of_its_own() -> None:
    """Else one of two would stand for both."""
    assert sorted(name for name, _, _ in _planted()) == sorted(MUTANTS)


def test_document_lists_every_mutant() -> None:
    text = DOCUMENT.read_text()
    listed = text.partition(BEGIN)[2].partition(END)[0]
    assert listed == _table(), f"put this between the marks in {DOCUMENT.name}:\n{_table()}"


def _table() -> str:
    rows = ["| Planted bug | Caught by |", "|---|---|"]
    for cls in MUTANTS.values():
        suite = next(base for base in cls.__mro__ if base.__name__.endswith("Contract"))
        bug = " ".join((cls.__doc__ or "").split()).removesuffix(".")
        rows.append(f"| {bug} | `{suite.__name__}.{cls.caught_by}` |")
    return "\n".join(rows) + "\n"
