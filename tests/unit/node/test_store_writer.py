"""Writing many small things at once, in order, through failures."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import DeleteKey, MetadataChange, PutKey
from spear_core.errors import CompactedError, InvalidRequestError, SpearError, StoreFullError
from spear_core.node._store_writer import StoreWriter

FULL = StoreFullError("no room")


@asynccontextmanager
async def running(disk: Any) -> AsyncIterator[StoreWriter]:
    writer = StoreWriter(disk.metadata, logging.getLogger("spear.test"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


def put(key: str, value: bytes = b"x") -> list[MetadataChange]:
    return [PutKey(key=key.encode(), value=value)]


async def value(disk: Any, key: str) -> bytes | None:
    found = await disk.metadata.get(key.encode())
    return found.value if found is not None else None


async def test_what_is_ready_at_the_same_time_is_one_transaction(disk: Any) -> None:
    async with running(disk) as writer:
        writes = [writer.submit(f"o{n}", put(f"k{n}")) for n in range(100)]
        for write in writes:
            await write.wait()
        assert disk.metadata.transactions == 1
        writes = [writer.submit(f"o{n}", put(f"k{n}", b"y")) for n in range(300)]
        for write in writes:
            await write.wait()
        assert disk.metadata.transactions == 1 + 3
        assert await value(disk, "k299") == b"y"


async def test_writes_of_one_owner_reach_the_disk_in_order_and_together_where_they_can(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        disk.metadata.gate = trio.Event()
        first = writer.submit("o", put("k", b"1"))
        await trio.sleep(1)
        second = writer.submit("o", put("k", b"2"))
        third = writer.submit("o", [DeleteKey(key=b"k"), *put("l")])
        assert second is third
        assert first is not second
        disk.metadata.gate.set()
        await third.wait()
        assert first.done
        assert (await value(disk, "k"), await value(disk, "l")) == (None, b"x")
        assert disk.metadata.transactions == 2


async def test_what_nobody_waits_for_takes_its_time(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        write = writer.submit("o", put("k", b"1"))
        await trio.sleep(0.001)
        assert writer.submit("o", put("k", b"2")) is write
        assert await value(disk, "k") is None
        await trio.sleep(0.01)
        assert await value(disk, "k") == b"2"
        assert disk.metadata.transactions == 1

        write = writer.submit("o", put("k", b"3"))
        started = trio.current_time()
        await write.wait()
        assert trio.current_time() == started


async def test_one_that_is_not_kept_fails_once(disk: Any) -> None:
    told: list[SpearError | None] = []
    async with running(disk) as writer:
        disk.metadata.failure = FULL
        write = writer.submit("o", put("k"), keep=False)
        write.then = told.append
        for _ in range(2):
            with pytest.raises(StoreFullError, match="no room"):
                await write.wait(patient=True)
        assert told == [FULL]
        disk.metadata.failure = None
        await writer.submit("p", put("l")).wait()
        assert await value(disk, "k") is None
        assert writer.trouble == 0


async def test_one_that_is_kept_is_tried_again_until_it_succeeds(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        disk.metadata.failure = FULL
        write = writer.submit("o", put("k", b"1"))
        other = writer.submit("p", put("l", b"1"))
        with pytest.raises(StoreFullError):
            await write.wait()
        assert writer.trouble == 2
        async with trio.open_nursery() as nursery:

            async def be_patient() -> None:
                await write.wait(patient=True)

            nursery.start_soon(be_patient)
            await trio.sleep(30)
            newer = writer.submit("o", put("k", b"2"))
            await trio.sleep(1)
            disk.metadata.failure = None
        await newer.wait(patient=True)
        await other.wait(patient=True)
        assert (await value(disk, "k"), await value(disk, "l")) == (b"2", b"1")
        assert writer.trouble == 0


async def test_what_comes_while_its_elder_fails_is_written_last(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        disk.metadata.gate, disk.metadata.failure = trio.Event(), FULL
        elder = writer.submit("o", [*put("k", b"1"), *put("only elder")])
        await trio.sleep(1)
        younger = writer.submit("o", put("k", b"2"))
        disk.metadata.gate.set()
        with pytest.raises(StoreFullError):
            await elder.wait()
        disk.metadata.failure = None
        await younger.wait(patient=True)
        await elder.wait()
        assert (await value(disk, "k"), await value(disk, "only elder")) == (b"2", b"x")


async def test_one_that_the_store_does_not_take_harms_no_other(disk: Any) -> None:
    async with running(disk) as writer:
        good = writer.submit("good", put("k"))
        bad = writer.submit("bad", put("x" * 500))
        await good.wait()
        with pytest.raises(InvalidRequestError):
            await bad.wait(patient=True)
        assert await value(disk, "k") == b"x"
        assert writer.trouble == 0


async def test_who_is_cancelled_while_waiting_changes_nothing(disk: Any) -> None:
    async with running(disk) as writer:
        disk.metadata.gate = trio.Event()
        write = writer.submit("o", put("k"))
        with trio.move_on_after(0):
            await write.wait()
        disk.metadata.gate.set()
        await write.wait()
        assert await value(disk, "k") == b"x"


async def test_flushed_waits_for_everything(disk: Any) -> None:
    async with running(disk) as writer:
        await writer.flushed()
        for n in range(1000):
            writer.submit(f"o{n}", put(f"k{n}"))
        await writer.flushed()
        assert await value(disk, "k999") == b"x"


async def test_the_past_is_compacted(disk: Any) -> None:
    async with running(disk) as writer:
        for n in range(2500):
            await writer.submit("o", put("k", b"%d" % n)).wait()
        with pytest.raises(CompactedError):
            await disk.metadata.get(b"k", revision=100)
        assert (await disk.metadata.get(b"k", revision=2400)).value == b"2399"


async def test_the_past_makes_room_for_the_present(disk: Any) -> None:
    disk.metadata = type(disk.metadata)(max_bytes=100_000, max_history=1_000_000)
    async with running(disk) as writer:
        for n in range(100):
            await writer.submit("o", put("k", bytes([n]) * 20_000), keep=False).wait()
        assert await value(disk, "k") == bytes([99]) * 20_000
        with pytest.raises(StoreFullError):
            await writer.submit("p", put("l", b"x" * 90_000), keep=False).wait()
        await writer.submit("q", put("m", b"x" * 20_000), keep=False).wait()


async def test_a_draft_is_left_out_of_others_transactions_until_it_is_due(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        overtaken = writer.draft("o", lambda: pytest.fail("others came in its place"))
        left = writer.draft("p", lambda: put("l", b"begun"))
        wanted = writer.draft("q", lambda: put("m", b"begun"))
        await wanted.wait()
        assert (overtaken.done, left.done) == (False, False)
        assert writer.submit("o", put("k", b"over")) is overtaken
        await overtaken.wait()
        assert await value(disk, "k") == b"over"
        assert not left.done
        assert disk.metadata.transactions == 2
        await trio.sleep(0.1)
        assert left.done
        assert await value(disk, "l") == b"begun"

        last = writer.draft("p", lambda: put("l", b"over"))
        started = trio.current_time()
        await writer.flushed()
        assert last.done
        assert trio.current_time() == started


async def test_the_last_draft_counts_and_goes_with_what_was_submitted(
    disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(disk) as writer:
        first = writer.draft("o", lambda: pytest.fail("a newer draft came in its place"))
        assert writer.draft("o", lambda: put("k", b"running")) is first
        await first.wait()
        assert await value(disk, "k") == b"running"

        submitted = writer.submit("o", [*put("k", b"retrying"), *put("l", b"beside")])
        assert writer.draft("o", lambda: put("k", b"running again")) is submitted
        await submitted.wait()
        assert await value(disk, "k") == b"running again"
        assert await value(disk, "l") == b"beside"
