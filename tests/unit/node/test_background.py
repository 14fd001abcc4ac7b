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
