"""Old versions, and who keeps them."""

from __future__ import annotations

import pytest
import trio

from spear_core.errors import SnapshotExpiredError
from spear_core.stores import Versions


def versions(limit: int = 1 << 20) -> tuple[Versions[str], list[str]]:
    """And the list of what it drops."""
    dropped: list[str] = []
    return Versions(limit=limit, drop=dropped.append), dropped


def test_what_nobody_sees_is_dropped_at_once() -> None:
    kept, dropped = versions()
    kept.supersede("k", 1, "one", written=1, ended=2, size=3)
    assert dropped == ["one"]
    assert kept.idle
    assert kept.find("k", 1) is None


def test_a_view_keeps_its_version_until_the_last_one_ends() -> None:
    kept, dropped = versions()
    with kept.viewing("k", 1, "one"):
        with kept.viewing("k", 1, "one"):
            kept.supersede("k", 1, "one", written=1, ended=2, size=3)
            kept.supersede("k", 2, "two", written=2, ended=3, size=3)
            assert dropped == ["two"]
        assert kept.find("k", 1) == "one"
        assert kept.kept() == ["one"]
    assert dropped == ["two", "one"]
    assert kept.idle


def test_a_view_of_what_stays_current_drops_nothing() -> None:
    kept, dropped = versions()
    with kept.viewing("k", 1, "one"):
        assert kept.find("k", 1) == "one"
    assert dropped == []
    assert kept.idle


def test_pictures_keep_what_was_current_then() -> None:
    kept, dropped = versions()
    first = kept.open_picture(1)
    kept.supersede("k", 1, "one", written=1, ended=2, size=3)
    kept.supersede("k", 2, "two", written=2, ended=4, size=3)
    second = kept.open_picture(4)
    kept.supersede("k", 3, "three", written=4, ended=5, size=3)
    assert dropped == ["two"]
    assert [kept.at("k", revision) for revision in (1, 4)] == ["one", "three"]
    assert list(kept.keys("", None)) == ["k"]
    kept.close_picture(first)
    assert dropped == ["two", "one"]
    kept.close_picture(second)
    assert dropped == ["two", "one", "three"]
    assert kept.idle
    with pytest.raises(trio.ClosedResourceError):
        first.check()


def test_what_was_noted_is_seen_before_it_has_happened() -> None:
    kept, dropped = versions()
    picture = kept.open_picture(1)
    kept.note("k", 1, "one", written=1, ended=2, size=3)
    assert kept.at("k", 1) == "one"
    kept.supersede("k", 1, "one", written=1, ended=2, size=3)
    kept.close_picture(picture)
    assert dropped == ["one"]


def test_what_was_noted_and_never_happened_is_not_dropped() -> None:
    """The transaction was given up: the version is current, its file is needed."""
    kept, dropped = versions()
    picture = kept.open_picture(1)
    kept.note("k", 1, "one", written=1, ended=2, size=3)
    kept.close_picture(picture)
    assert dropped == []
    assert kept.idle


def test_the_oldest_picture_makes_room() -> None:
    kept, dropped = versions(limit=3000)
    old = kept.open_picture(1)
    kept.supersede("a", 1, "a", written=1, ended=2, size=1000)
    young = kept.open_picture(2)
    old.check()
    kept.supersede("b", 1, "b", written=1, ended=3, size=1000)
    with pytest.raises(SnapshotExpiredError, match="revision 1"):
        old.check()
    young.check()
    assert dropped == ["a"]
    assert kept.at("b", 2) == "b"
    kept.close_picture(old)
    kept.close_picture(young)
    assert dropped == ["a", "b"]


def test_keys_are_ascending_from_a_place_on() -> None:
    kept, _ = versions()
    kept.open_picture(1)
    for key in ("b", "a", "ab", "c", "aa"):
        kept.supersede(key, 1, key, written=1, ended=2, size=0)
    assert list(kept.keys("a", None)) == ["a", "aa", "ab"]
    assert list(kept.keys("", "aa")) == ["ab", "b", "c"]
    assert list(kept.keys("a", "aa")) == ["ab"]
    assert list(kept.keys("x", None)) == []
