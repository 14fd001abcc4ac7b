"""Agents put and get objects, with the hostcalls of the node and a real store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import ExecutionResponse, HostcallContext, HostcallValue, ObjectStore
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.builtins.objects import NAMES, ObjectsConfig, open_objects
from spear_core.testing import make_context

Single = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
async def store(context: Any, hostcalls: Any, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """The store behind the hostcalls of every agent here."""
    fake = make_context(tmp_path)
    async with (
        open_memory_store(fake, MemoryStoreConfig(memory_store_bytes=512 << 20)) as store,
        open_objects(fake, ObjectsConfig()) as provider,
    ):

        async def exchange(
            execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
        ) -> HostcallValue:
            caller = HostcallContext(
                execution_id=execution_id,
                task_id="task",
                artifact="agent@1",
                objects=store,
                fd=value.fd,
                takes_fd=takes_fd,
            )
            assert name in NAMES
            answer = await provider.call(caller, name, bytes(value.payload))
            assert isinstance(answer, HostcallValue)
            if answer.fd is not None:
                hostcalls.files += 1
            return answer

        hostcalls.files = 0
        hostcalls.exchange = exchange
        yield store


def output_of(response: ExecutionResponse) -> Any:
    assert response.error is None, response.error
    return json.loads(response.payload)


AGENT = """
    import array
    import mmap
    from spear_sdk import Context, function

    @function
    def main(ctx: Context) -> dict:
        numbers = array.array("d", range(1_000_000))
        put = ctx.objects.put("numbers", numbers, content_type="application/x-doubles")
        got = ctx.objects.get("numbers")
        view = memoryview(got).cast("d")
        small = ctx.objects.put("small", b"tiny", expect=0)
        return {
            "put": [put.version, put.size, put.content_type, len(put.sha256)],
            "mapped": isinstance(got, mmap.mmap),
            "sum": sum(view),
            "read_only": view.readonly,
            "small": bytes(ctx.objects.get("small")).decode(),
            "keys": [stat.key for stat in ctx.objects.list()],
        }
"""


async def test_a_large_array_goes_and_comes_by_file_descriptor(
    place: Any, single: Single, make_request: Any, store: ObjectStore, hostcalls: Any
) -> None:
    async with single(place.artifact("agent.py", AGENT)) as instance:
        answer = output_of(await instance.execute(make_request()))
    assert answer == {
        "put": [1, 8_000_000, "application/x-doubles", 64],
        "mapped": True,
        "sum": sum(range(1_000_000)),
        "read_only": True,
        "small": "tiny",
        "keys": ["numbers", "small"],
    }
    assert hostcalls.files == 1
