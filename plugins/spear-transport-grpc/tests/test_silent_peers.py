"""Peers that are neither there nor gone: a machine that stopped, a cable that was pulled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import InvokeRequest
from spear_core.errors import NodeUnreachableError
from spear_transport_grpc import _connect, _server, plugin
from spear_transport_grpc._config import DoorConfig

CALLER = """
import sys
import trio
from spear_core.api import InvokeRequest
from spear_transport_grpc import plugin

async def main():
    async with plugin.connect(sys.argv[1]) as api:
        await api.invoke(InvokeRequest(function="sleep"))

trio.run(main)
"""
NODE = """
import sys
import trio
from spear_transport_grpc._bridge import Port, Unary, open_server
from spear_transport_grpc._protos.grpc.health.v1 import health_pb2

async def check(request, call):
    response = health_pb2.HealthCheckResponse
    return response(status=response.SERVING).SerializeToString()

async def status(request, call):
    await trio.sleep_forever()

async def main():
    methods = {
        "/grpc.health.v1.Health/Check": Unary(check),
        "/spear.v1.NodeService/GetStatus": Unary(status),
    }
    async with open_server((Port(address=f"unix:{sys.argv[1]}"),), methods, grace_s=0):
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("listen", ["grpc://127.0.0.1:0", "grpc.sock"])
async def test_a_client_that_gives_no_sign_of_life_is_dropped(
    serve: Any, table_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    monkeypatch.setattr(_server, "_SIGN_OF_LIFE_S", 3.0)
    node = table_node()
    async with serve(tmp_path, node, DoorConfig(listen=(listen,), keepalive_s=1)) as url:
        caller = await trio.lowlevel.open_process([sys.executable, "-c", CALLER, url])
        try:
            with trio.fail_after(60):
                await node.sleeping.wait()
                os.kill(caller.pid, signal.SIGSTOP)  # its connection stays open, and silent
                await node.woken.wait()
            assert node.cancelled == 1
        finally:
            caller.kill()
            await caller.wait()


async def test_a_client_that_waits_for_long_is_no_silent_one(
    serve: Any, table_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_SIGN_OF_LIFE_S", 30.0)
    node = table_node()
    async with (
        serve(tmp_path, node, DoorConfig(keepalive_s=1)) as url,
        plugin.connect(url) as api,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            assert (await api.invoke(InvokeRequest(function="sleep"))).success

        nursery.start_soon(call)
        await node.sleeping.wait()
        await trio.sleep(3.5)  # it is asked three times meanwhile
        node.release.set()
    assert node.cancelled == 0


async def test_a_node_that_gives_no_sign_of_life_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {name: 1000 for name in _connect._OPTIONS if "keepalive" in name or "ping" in name}
    monkeypatch.setattr(_connect, "_OPTIONS", {**_connect._OPTIONS, **quick})
    command = [sys.executable, "-c", NODE, str(tmp_path / "s")]
    node = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        with trio.fail_after(60):
            assert node.stdout is not None
            async with node.stdout:
                assert await node.stdout.receive_some()  # it is ready
                async with plugin.connect(f"grpc+unix://{tmp_path}/s") as api:
                    node.send_signal(signal.SIGSTOP)
                    with pytest.raises(NodeUnreachableError, match="in the middle of"):
                        await api.status()
    finally:
        node.kill()
        await node.wait()
