"""Streams of real guests through gRPC: what `test_streams.py` has, where the door matters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi, TaskState
from spear_core.builtins.local_socket import connect

plugin = pytest.importorskip("spear_transport_grpc.plugin")

ON_THE_WAY = 8 << 20
"""Bytes that windows and buffers of both sides may hold, of a stream of any length."""
PIECE = 60_000
DATA = Path(__file__).parents[1] / "data"
AGENT = (DATA / "stream_agent.py").read_text()
CAT_WAT = (DATA / "cat.wat").read_text()
EARLY = "#!/bin/sh\necho early\nexec >&-\nwc -c >&2\n"
FILES = {
    "agent": ("agent.py", AGENT),
    "command": ("cat.sh", "#!/bin/sh\nexec cat\n"),
    "wasm": ("cat.wat", CAT_WAT),
    "early": ("early.sh", EARLY),
}
ECHO = {"agent": "agent:echo", "command": "command", "wasm": "wasm"}


@pytest.fixture(scope="module")
def url(node: Any) -> str:
    """Of a node with all of them."""

    async def deploy() -> None:
        async with connect(node.url) as api:
            for name, (filename, code) in FILES.items():
                await api.deploy(
                    ArtifactUpload(name=name, filename=filename, content=code.encode())
                )

    trio.run(deploy)
    return f"grpc+unix://{node.state}/grpc.sock"


@pytest.fixture
async def api(url: str) -> AsyncIterator[NodeApi]:
    with trio.fail_after(240):
        async with plugin.connect(url) as client:
            yield client


async def log_of(api: NodeApi, task_id: str) -> str:
    return "\n".join(entry.message for entry in (await api.read_log(task_id)).entries)


async def test_chunks_go_in_and_come_out_while_it_runs(api: NodeApi) -> None:
    for function in ECHO.values():
        async with api.stream(InvokeRequest(function=function)) as stream:
            for number in range(5):
                await stream.send(b"chunk %d" % number)
                assert await stream.receive() == b"chunk %d" % number
            assert (await api.get_task(stream.task_id)).state is TaskState.RUNNING
            await stream.send_eof()
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()
            assert (await stream.result()).success
        async with api.stream(InvokeRequest(function=function)) as stream:
            await stream.send(b"x")
            await stream.receive()
        assert (await api.get_task(stream.task_id, wait=True)).state is TaskState.CANCELLED
        async with api.stream(InvokeRequest(function=function, timeout_s=0.5)) as stream:
            assert (await stream.result()).task.state is TaskState.TIMEOUT


async def test_the_output_may_end_before_the_input(api: NodeApi) -> None:
    async with api.stream(InvokeRequest(function="early")) as stream:
        assert await stream.receive() == b"early\n"
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()
        for _ in range(10):
            await stream.send(bytes(10_000))
        await stream.send_eof()
        assert (await stream.result()).success
    assert (await log_of(api, stream.task_id)).strip() == "100000"


async def test_a_slow_reader_slows_the_guest(api: NodeApi) -> None:
    async with api.stream(InvokeRequest(function="agent:for_ever")) as stream:
        for _ in range(3):
            assert len(await stream.receive()) == PIECE
        await trio.sleep(1)  # enough for many times as much
    await api.get_task(stream.task_id, wait=True)
    sent = int((await log_of(api, stream.task_id)).rpartition("sent ")[2])
    assert sent * PIECE <= ON_THE_WAY


async def test_a_guest_that_reads_nothing_stops_the_sender(api: NodeApi) -> None:
    async with api.stream(InvokeRequest(function="agent:reads_nothing")) as stream:
        await stream.send(bytes(PIECE))
        sent = PIECE
        with trio.move_on_after(2) as scope:
            while True:
                await stream.send(bytes(PIECE))
                sent += PIECE
    assert scope.cancelled_caught
    assert sent <= ON_THE_WAY
