"""Who gets in, what is left behind, and what either side sees when the other goes away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import InvokeRequest, InvokeResponse, Message, MessageKind
from spear_core.builtins.local_socket import connect
from spear_core.errors import (
    ChannelError,
    InvalidRequestError,
    NodeUnreachableError,
    SpearError,
)
from spear_core.rpc import SocketChannel, hello
from spear_core.rpc.codec import encode_head, error_from_head

OpenDoor = Callable[..., AbstractAsyncContextManager[str]]
Scripted = Callable[..., Any]
INVOKE = InvokeRequest(function="f")


class Forever:
    """An invocation that ends only by being cancelled."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(self, request: InvokeRequest) -> InvokeResponse:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


async def test_the_socket_is_private_and_gone_afterwards(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    async with open_door(scripted()) as url:
        assert url == f"unix://{tmp_path}/node.sock"
        assert (tmp_path / "node.sock").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "node.sock").exists()


async def test_a_stale_socket_is_replaced(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "node.sock"))
        dead.listen()
    async with open_door(scripted(list_plugins=[])) as url, connect(url) as client:
        assert await client.list_plugins() == []


async def test_a_live_socket_is_not_taken_over(open_door: OpenDoor, scripted: Scripted) -> None:
    async with open_door(scripted(list_plugins=[])) as url:
        with pytest.raises(ChannelError, match="somebody listens"):
            async with open_door(scripted()):
                pytest.fail("two nodes on one socket")
        async with connect(url) as client:
            assert await client.list_plugins() == []


async def test_another_file_in_its_place_is_left_alone(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "node.sock").write_text("precious")
    with pytest.raises(ChannelError, match="no socket; move it away"):
        async with open_door(scripted()):
            pytest.fail("it listens on a plain file")
    assert (tmp_path / "node.sock").read_text() == "precious"


async def test_a_very_long_directory_works(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    async with open_door(scripted(list_plugins=[]), deep) as url, connect(url) as client:
        assert await client.list_plugins() == []
    assert list(deep.iterdir()) == []


async def test_nobody_there_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead" / "node.sock"))
    for directory in (tmp_path / "dead", tmp_path / "empty", tmp_path):
        with pytest.raises(NodeUnreachableError, match="spear node") as caught:
            async with connect(f"unix://{directory}/node.sock"):
                pytest.fail("connected to nobody")
        assert f"no node is running in {directory};" in caught.value.message
        assert caught.value.retryable


async def test_a_socket_that_somebody_made_anew_is_left_to_him(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    stop = trio.Event()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        async with open_door(scripted()):
            task_status.started()
            await stop.wait()

    async with trio.open_nursery() as first:
        await first.start(serve)
        (tmp_path / "node.sock").unlink()
        async with open_door(scripted(list_plugins=[])) as url:
            stop.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with connect(url) as client:
                assert await client.list_plugins() == []
    assert not (tmp_path / "node.sock").exists()


@pytest.mark.parametrize("url", ["unix://relative/node.sock", "tcp://1.2.3.4:5", "/node.sock"])
async def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="no URL of the form"):
        async with connect(url):
            pytest.fail("connected")


STRANGER = """
import os, socket, sys
if int(sys.argv[2]):
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX)
s.connect("node.sock")
try:
    s.sendall(bytes.fromhex(sys.argv[1]))
    sys.exit(3 if s.recv(1) else 4)
except OSError:
    sys.exit(4)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_refused_even_when_the_modes_let_him(
    open_door: OpenDoor, scripted: Scripted, tmp_path: Path
) -> None:
    head = encode_head({"v": 1, "role": "client"})
    first = (12 + len(head)).to_bytes(4, "big") + bytes([1, 0, 0, len(head)]) + bytes(8) + head
    codes = {}
    async with open_door(scripted()):
        os.chmod(tmp_path / "node.sock", 0o666)
        os.chmod(tmp_path, 0o755)
        for user in (0, 65534):
            command = [sys.executable, "-c", STRANGER, first.hex(), str(user)]
            codes[user] = (await trio.run_process(command, check=False, cwd=tmp_path)).returncode
    assert codes == {0: 3, 65534: 4}


async def test_a_client_that_goes_away_cancels_its_sync_invoke(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    forever = Forever()
    async with open_door(scripted(invoke=forever)) as url:
        async with connect(url) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.invoke, INVOKE)
            await forever.started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await forever.cancelled.wait()


VANISHING = """
import sys, trio
from spear_core.api import InvokeRequest
from spear_core.builtins.local_socket import connect

async def main():
    async with connect(sys.argv[1]) as node:
        await node.invoke(InvokeRequest(function="f"))

trio.run(main)
"""


async def test_a_client_that_is_killed_cancels_its_sync_invoke(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    forever = Forever()
    async with open_door(scripted(invoke=forever)) as url:
        process = await trio.lowlevel.open_process([sys.executable, "-c", VANISHING, url])
        with trio.fail_after(60):
            await forever.started.wait()
            process.kill()
            await forever.cancelled.wait()
            await process.wait()


async def test_cancelling_a_call_cancels_it_alone(open_door: OpenDoor, scripted: Scripted) -> None:
    forever = Forever()
    async with (
        open_door(scripted(invoke=forever, list_plugins=[])) as url,
        connect(url) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.invoke, INVOKE)
            await forever.started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await forever.cancelled.wait()
        assert await client.list_plugins() == []


DYING_NODE = """
import logging, os, sys, trio
from pathlib import Path
from spear_core.api import FrontDoorContext
from spear_core.builtins.local_socket import LocalSocketConfig, open_local_socket

class Plugin:
    node_id, log = "n1", logging.getLogger()

class Node:
    async def invoke(self, request):
        os.write(1, b"invoked")
        await trio.sleep_forever()

async def main():
    context = FrontDoorContext(plugin=Plugin, node=Node(), node_dir=Path(sys.argv[1]))
    async with open_local_socket(context, LocalSocketConfig()):
        os.write(1, b"ready")
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_node_that_is_killed_in_mid_call(tmp_path: Path) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", DYING_NODE, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with process.stdout:
        assert await process.stdout.receive_some() == b"ready"
        url = f"unix://{tmp_path}/node.sock"
        async with connect(url) as client, trio.open_nursery() as nursery:

            async def kill() -> None:
                assert process.stdout is not None
                await process.stdout.receive_some()
                process.send_signal(signal.SIGKILL)

            nursery.start_soon(kill)
            with pytest.raises(NodeUnreachableError, match="went away") as caught:
                await client.invoke(INVOKE)
            assert str(tmp_path) in caught.value.message
            with pytest.raises(NodeUnreachableError):
                await client.status()
            with pytest.raises(NodeUnreachableError):
                await client.backup(str(tmp_path / "backup"))
            with pytest.raises(NodeUnreachableError):
                async with client.stream(attrs.evolve(INVOKE, payload=b"")):
                    pytest.fail("streamed to the dead")
        await process.wait()
    with pytest.raises(NodeUnreachableError, match="no node is running"):
        async with connect(url):
            pytest.fail("connected to the dead")


async def test_closing_lets_calls_under_way_finish(open_door: OpenDoor, scripted: Scripted) -> None:
    finish = trio.Event()
    answers: list[object] = []

    async def plugins() -> list[object]:
        await finish.wait()
        return []

    async def ask(client: Any) -> None:
        answers.append(await client.list_plugins())

    leave = trio.Event()
    node = scripted(list_plugins=plugins)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            async with open_door(node) as url:
                task_status.started(url)
                await leave.wait()

        url: str = await nursery.start(serve)
        async with connect(url) as client:
            nursery.start_soon(ask, client)
            while not node.calls:
                await trio.lowlevel.checkpoint()
            leave.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(NodeUnreachableError, match="shutting down"):
                await client.list_plugins()
            with pytest.raises(NodeUnreachableError, match="no node is running"):
                async with connect(url):
                    pytest.fail("let in while closing")
            assert answers == []
            finish.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert answers == [[]]


async def test_what_the_block_raises_comes_out_as_it_is(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_door(scripted()):
            raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        async with open_door(scripted()) as url, connect(url):
            raise KeyError("mine")


async def dial(url: str) -> SocketChannel:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(url.removeprefix("unix://"))
    return SocketChannel(sock)


async def test_who_says_nothing_right_first_is_turned_away(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    async with open_door(scripted(list_plugins=[])) as url:
        for first in (
            Message(MessageKind.REQUEST, 2, 0, encode_head({"method": "status"})),
            Message(MessageKind.HELLO, head=encode_head({"v": 1, "role": "instance"})),
            Message(MessageKind.HELLO, head=b"\xc1"),
        ):
            async with await dial(url) as channel:
                await channel.send(first)
                with pytest.raises(trio.EndOfChannel), trio.fail_after(60):
                    await channel.receive()
        async with connect(url) as client:
            assert await client.list_plugins() == []


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"method": "format_disk", "args": {}}, "no method 'format_disk'"),
        ({"method": "get_task", "args": {"task_id": 5}}, "malformed arguments"),
        ({"method": "get_task", "args": {"task_id": "t", "force": True}}, "no argument force"),
        ({"method": "invoke", "args": {}}, "malformed arguments"),
        (
            {"method": "invoke", "args": {"function": "f", "mode": "later"}},
            "mode 'later' does not exist",
        ),
        ({"method": "get_task", "args": {}}, "task_id"),
    ],
)
async def test_wrong_requests_are_errors_not_ends(
    open_door: OpenDoor, scripted: Scripted, head: dict[str, Any], words: str
) -> None:
    async with open_door(scripted()) as url, await dial(url) as channel:
        await hello(channel, {"role": "client"})
        await channel.send(Message(MessageKind.REQUEST, 2, 0, encode_head(head)))
        answer = await channel.receive()
        error: SpearError = error_from_head(answer.head)
        assert words in error.message
        await channel.send(Message(MessageKind.PING, payload=b"x"))
        assert (await channel.receive()).kind == MessageKind.PONG


async def test_many_clients_at_once(open_door: OpenDoor, scripted: Scripted) -> None:
    async def ask(url: str) -> None:
        async with connect(url) as client:
            assert await client.list_plugins() == []

    async with open_door(scripted(list_plugins=[])) as url, trio.open_nursery() as nursery:
        for _ in range(400):
            nursery.start_soon(ask, url)
