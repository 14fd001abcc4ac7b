"""``docs/operations.md`` tells of every error, with its code and whether to come again."""

from __future__ import annotations

import re
from pathlib import Path

from spear_core import errors

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
GRPC = (Path(__file__).parents[2] / "docs" / "grpc.md").read_text("utf-8")
CLASSES = [
    value
    for name in errors.__all__
    if isinstance(value := getattr(errors, name), type) and issubclass(value, errors.SpearError)
]
FAMILIES = {errors.SpearError, *errors.SpearError.__subclasses__()}


def documented() -> dict[str, tuple[str, str, str]]:
    """Class → code, whether to come again, and the rest, as the table says."""
    section = TEXT.partition("### Every error by its name")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows}), "each has one line"
    return {name: (code, again, remedy) for name, code, again, remedy in rows}


def test_every_error_is_there_with_its_code_and_whether_to_come_again() -> None:
    leaves = {c for c in CLASSES if not (c in FAMILIES and c.__subclasses__())}
    expected = {c.__name__: (c.code, "yes" if c.retryable else "no") for c in leaves}
    assert {name: row[:2] for name, row in documented().items()} == expected


def test_each_has_a_meaning() -> None:
    assert not [name for name, row in documented().items() if len(row[2]) < 30]


def test_grpc_names_every_error_beside_its_status() -> None:
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.+?) \| .*\|$", GRPC, re.MULTILINE)
    known = {cls.__name__: cls for cls in CLASSES}
    found = set()
    for statuses, reasons in rows:
        for name in set(re.findall(r"`(\w+Error)`", reasons)):
            assert known[name].code.upper() in statuses, name
            found.add(name)
    assert found >= {c.__name__ for c in CLASSES if not (c in FAMILIES or c.__subclasses__())}
