"""Clients who came while the front door was being opened do not stay behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import InvokeRequest
from spear_transport_grpc import plugin
from spear_transport_grpc._passing import FirstAnswer


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + payload


BEFORE = frame(4, 0, b"settin") + frame(1, 4, b"head") + frame(0, 0, b"data" * 100)
TRAILERS = frame(1, 5, b"trailers")
CUT_TRAILERS = frame(1, 1, b"trai") + frame(9, 0, b"l") + frame(9, 4, b"")
AFTER = frame(0, 1, b"more") + TRAILERS


@pytest.mark.parametrize("end", [TRAILERS, CUT_TRAILERS], ids=["whole", "cut"])
@pytest.mark.parametrize("size", [1, 2, 5, 9, 64, 10_000])
def test_the_end_of_the_first_answer_is_found(end: bytes, size: int) -> None:
    data = BEFORE + end + AFTER
    first = FirstAnswer()
    for start in range(0, len(data), size):
        found = first.end_in(data[start : start + size])
        if found is not None:
            assert start + found == len(BEFORE + end)
            return
    pytest.fail("it was not found")


def test_what_goes_on_has_no_end() -> None:
    assert FirstAnswer().end_in(BEFORE + frame(1, 1, b"open")) is None
    assert FirstAnswer().end_in(b"") is None


def tasks(task: Any = None) -> Iterator[str]:
    """The names of all that run."""
    task = task or trio.lowlevel.current_root_task()
    yield task.name
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from tasks(child)


def passed() -> int:
    return sum(name.endswith("._Door._pass") for name in tasks())


async def nobody_is_passed() -> None:
    with trio.fail_after(30):
        while passed():  # noqa: ASYNC110 - nobody else tells
            await trio.sleep(0.01)


async def test_the_first_client_comes_again_by_itself(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    async with serve(tmp_path, table_node()) as url, plugin.connect(url) as api:
        await api.invoke(InvokeRequest(function="f"))
        await nobody_is_passed()
        await api.invoke(InvokeRequest(function="f"))


async def test_what_the_first_client_has_under_way_goes_on(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    node = table_node()
    async with (
        serve(tmp_path, node) as url,
        plugin.connect(url) as api,
        trio.open_nursery() as all_,
    ):
        for _ in range(50):
            all_.start_soon(api.invoke, InvokeRequest(function="f"))
        async with api.stream(InvokeRequest(function="f")) as stream:
            await stream.send(b"x")
            assert await stream.receive() == b"X"
            await api.status()
            await stream.send(b"y")
            assert await stream.receive() == b"Y"
            await stream.send_eof()
            await stream.result()
        await nobody_is_passed()
        await api.status()
    assert sum(what == "invoke" for what, _ in node.asked) == 50
