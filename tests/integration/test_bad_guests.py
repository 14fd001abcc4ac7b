"""Guests that neither read nor stop writing, and clients that vanish: with the real parts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from spear_core.api import ArtifactUpload, InstanceState, InvokeRequest, NodeApi, TaskState
from spear_core.builtins.local_socket import connect

AGENT = """
from collections.abc import Iterator

from spear_sdk import Context, function


@function
def for_ever() -> Iterator[bytes]:
    while True:
        yield bytes(1 << 20)


@function
async def for_ever_too():
    while True:
        yield bytes(1 << 20)


@function
def well() -> str:
    return "well"


@function
def echo(chunks: Iterator[bytes], ctx: Context) -> Iterator[bytes]:
    try:
        yield from chunks
    finally:
        ctx.log.info("echo is over")
"""
CLIENT = """
import sys
import trio
from spear_core.client import connect

async def main():
    async with connect(sys.argv[1]) as node, node.stream(sys.argv[2]) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        print(stream.task_id, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
COMMANDS = {
    "deaf": "#!/bin/sh\necho begun >&2\nexec sleep 600\n",
    "loud": "#!/bin/sh\nexec yes\n",
    "counting": (
        "#!/bin/sh\ni=0\nwhile :; do printf '%065536d' 0 || exit; i=$((i+1)); echo $i >&2; done\n"
    ),
    "cat": "#!/bin/sh\nexec cat\n",
}


async def deploy(api: NodeApi, name: str) -> None:
    if name == "agent":
        upload = ArtifactUpload(name=name, filename="agent.py", content=AGENT.encode())
    else:
        code = COMMANDS[name].encode()
        upload = ArtifactUpload(name=name, filename=f"{name}.sh", content=code)
    await api.deploy(upload)


async def log_of(api: NodeApi, task_id: str) -> list[str]:
    return [entry.message for entry in (await api.read_log(task_id)).entries]


async def nothing_runs(api: NodeApi, name: str) -> None:
    """Wait until it is so; whoever waits for it has a deadline."""
    while True:
        live = [each for each in await api.list_instances() if each.artifact == f"{name}@1"]
        if not [each for each in live if each.state is InstanceState.RUNNING]:
            return
        await trio.sleep(0.01)


async def test_a_command_that_never_reads_stops_its_sender(node: Any) -> None:
    with trio.fail_after(60):
        async with connect(node.url) as api:
            await deploy(api, "deaf")
            async with api.stream(InvokeRequest(function="deaf")) as stream:
                await stream.send(bytes(60_000))
                sent = 1
                with trio.move_on_after(2) as enough:
                    while True:
                        await stream.send(bytes(60_000))
                        sent += 1
                assert enough.cancelled_caught
            # What pipes and windows hold, and not what somebody likes to send.
            assert sent <= 20
            info = await api.get_task(stream.task_id, wait=True)
            assert info.state is TaskState.CANCELLED
            await nothing_runs(api, "deaf")


async def test_a_command_that_writes_for_ever_waits_for_its_reader(node: Any) -> None:
    with trio.fail_after(60):
        async with connect(node.url) as api:
            await deploy(api, "counting")
            async with api.stream(InvokeRequest(function="counting")) as stream:
                received = 0
                while received < 1 << 20:
                    received += len(await stream.receive())
                assert (await api.read_log(stream.task_id, wait=True)).entries
                before, written = -1, 0
                while written != before:
                    await trio.sleep(0.5)
                    before, written = written, int((await log_of(api, stream.task_id))[-1])
                assert written <= received // 65536 + 20
            info = await api.get_task(stream.task_id, wait=True)
            assert info.state is TaskState.CANCELLED
            await nothing_runs(api, "counting")


async def test_a_command_that_writes_for_ever_is_ended_where_it_has_one_answer(node: Any) -> None:
    with trio.fail_after(60):
        async with connect(node.url) as api:
            await deploy(api, "loud")
            response = await api.invoke(InvokeRequest(function="loud"))
            assert response.task.result is not None
            assert response.task.result.error is not None
            assert response.task.result.error.code == "resource_exhausted"


@pytest.mark.parametrize("entry", ["for_ever", "for_ever_too"])
async def test_a_generator_without_an_end_is_ended_where_it_has_one_answer(
    node: Any, entry: str
) -> None:
    with trio.fail_after(240):
        async with connect(node.url) as api:
            await deploy(api, "agent")
            request = InvokeRequest(function=f"agent:{entry}", timeout_s=200)
            response = await api.invoke(request)
            assert response.task.result is not None
            assert response.task.result.error is not None
            assert response.task.result.error.code == "resource_exhausted"
            assert "as a stream" in response.task.result.error.message
            assert (await api.invoke(InvokeRequest(function="agent:well"))).success


def address(node: Any, door: str) -> str:
    if door == "unix":
        return str(node.url)
    log = (node.state.parent / "node.err").read_text()
    urls = log.split(" is ready: ")[1].splitlines()[0].replace(",", " ").split()
    return next(url for url in urls if url.startswith(door))


@pytest.mark.parametrize("door", ["unix", "grpc://"])
@pytest.mark.parametrize("name", ["agent", "cat"])
async def test_a_client_that_is_killed_in_the_middle_of_its_stream(
    start_node: Callable[..., Any], door: str, name: str
) -> None:
    config = ""
    if door != "unix":
        pytest.importorskip("spear_transport_grpc")
        config = '[plugins.transport-grpc]\nlisten = ["grpc.sock", "grpc://127.0.0.1:0"]\n'
    node = start_node(config)
    with trio.fail_after(90):
        async with connect(node.url) as api:
            await deploy(api, name)
            function = "agent:echo" if name == "agent" else name
            async with trio.open_nursery() as nursery:
                command = [sys.executable, "-c", CLIENT, address(node, door), function]
                start = partial(
                    trio.run_process,
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    check=False,
                )
                client = await nursery.start(start)
                task_id = (await client.stdout.receive_some()).decode().strip()
                assert (await api.get_task(task_id)).state is TaskState.RUNNING
                client.send_signal(signal.SIGKILL)
            info = await api.get_task(task_id, wait=True)
            assert info.state is TaskState.CANCELLED
            if name == "agent":  # it was told, and had the time to clean up
                assert "echo is over" in await log_of(api, task_id)
            await nothing_runs(api, name)
            async with api.stream(InvokeRequest(function=function)) as stream:
                await stream.send(b"again")
                assert await stream.receive() == b"again"
