"""Which artifacts would miss others."""

from __future__ import annotations

from pathlib import Path

import pytest

from spear_core.api import Artifact
from spear_core.node._dependents import VersionKey, dependents

BASES = ("base@1", "base@2", "other@1")


def artifact(ref: str, *dependencies: str) -> Artifact:
    name, _, version = ref.partition("@")
    return Artifact(
        name=name,
        version=int(version),
        digest="0",
        runtime="r",
        shape="s",
        path=Path("f"),
        filename="f",
        dependencies=dependencies,
    )


def missing(*gone: VersionKey, **users: tuple[str, ...]) -> list[str]:
    """Who would miss these, of the bases and of users with such dependencies."""
    there = [artifact(ref) for ref in BASES]
    there += [artifact(f"{name}@1", *wanted) for name, wanted in users.items()]
    return dependents({(each.name, each.version): each for each in there}, gone)


@pytest.mark.parametrize("version", [1, 2])
def test_a_name_is_missed_when_its_last_version_goes(version: int) -> None:
    assert missing(("base", version), user=("base",)) == []
    assert missing(("base", 1), ("base", 2), user=("base",)) == ["user@1"]


def test_a_version_is_missed_whatever_others_there_are() -> None:
    assert missing(("base", 1), user=("base@1",)) == ["user@1"]
    assert missing(("base", 2), user=("base@1",)) == []


def test_what_goes_as_well_misses_nothing() -> None:
    assert missing(("base", 1), ("user", 1), user=("base@1",)) == []


def test_what_was_missing_before_is_not_missed_now() -> None:
    assert missing(("base", 1), user=("base@7", "nobody", "nobody@1")) == []


def test_everyone_is_named_once_and_in_order() -> None:
    assert missing(
        ("base", 1), ("other", 1), c=("base@1", "other"), a=("other@1",), b=("base@2",)
    ) == ["a@1", "c@1"]
