"""The last revisions of a store, for those who watch."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from spear_core.errors import CompactedError
from spear_core.stores import History, _history


@attrs.frozen
class Done:
    revision: int
    key: str


def seen(done: Done, prefix: str) -> str | None:
    return done.key if done.key.startswith(prefix) else None


def filled(many: int, *, since: int = 0) -> History[Done, str]:
    history = History(since, seen)
    for number in range(since + 1, since + many + 1):
        history.add(Done(number, f"{'even' if number % 2 == 0 else 'odd'} {number}"))
    return history


async def test_a_watch_begins_where_it_is_told_and_sees_its_prefix_only() -> None:
    async with filled(6).watch("even", 3) as channel:
        assert [await channel.receive() for _ in range(2)] == ["even 4", "even 6"]


async def test_without_a_start_it_sees_what_comes() -> None:
    history = filled(3)
    async with history.watch("", None) as channel, trio.open_nursery() as nursery:
        found: list[str] = []

        async def receive() -> None:
            found.append(await channel.receive())

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        history.add(Done(4, "new"))
    assert found == ["new"]
    assert history.revision == 4


async def test_what_was_before_it_is_gone() -> None:
    """A store that was closed meanwhile has its revision, and not what led to it."""
    with pytest.raises(CompactedError):
        async with filled(0, since=7).watch("", 7):
            pass
    async with filled(0, since=7).watch("", 8):
        pass


async def test_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_history, "_LIMIT", 2)
    history = filled(5)
    with pytest.raises(CompactedError):
        async with history.watch("", 3):
            pass
    async with history.watch("", 4) as channel:
        assert await channel.receive() == "even 4"


async def test_a_watch_that_falls_behind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_history, "_LIMIT", 2)
    history = filled(2)
    async with history.watch("", 1) as channel:
        history.add(Done(3, "odd 3"))
        with pytest.raises(CompactedError):
            await channel.receive()


async def test_its_end_ends_the_channel() -> None:
    async with filled(1).watch("", 1) as channel:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()
