"""Background services outlive what stands on them, whatever ends the block."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from spear_core.node._background import open_background


@pytest.mark.parametrize("end", ["return", "cancel", "raise"])
async def test_a_service_ends_after_the_block_has_closed_what_stands_on_it(end: str) -> None:
    order: list[str] = []

    async def service() -> None:
        try:
            await trio.sleep_forever()
        finally:
            order.append("service gone")

    async def use() -> None:
        async with open_background() as background:
            background.start_soon(service)
            try:
                await trio.testing.wait_all_tasks_blocked()
                if end == "cancel":
                    await trio.sleep_forever()
                if end == "raise":
                    raise KeyError
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.01)
                order.append("user closed")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await trio.testing.wait_all_tasks_blocked()
            if end == "cancel":
                nursery.cancel_scope.cancel()
    except* KeyError:
        assert end == "raise"
    assert order == ["user closed", "service gone"]


async def test_a_service_started_too_late_ends_at_once() -> None:
    async with open_background() as background:
        background.stop()
        background.start_soon(trio.sleep_forever)


async def test_what_a_service_raises_while_it_is_cancelled_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    async def fails() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("cannot close")

    async def takes_its_time() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            ended.append("whole")

    async with open_background() as background:
        background.start_soon(takes_its_time)
        background.start_soon(fails)
        await trio.testing.wait_all_tasks_blocked()
    assert ended == ["whole"]
    assert "cannot close" in caplog.text


async def test_a_service_that_fails_is_heard() -> None:
    async def fails() -> None:
        raise ValueError("a bug of ours")

    async def use() -> None:
        async with open_background() as background:
            background.start_soon(fails)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup):
        await use()
