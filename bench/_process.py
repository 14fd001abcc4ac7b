"""A process runtime with everything around it faked except the sockets."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from spear_core.api import (
    Artifact,
    Channel,
    ChannelFactory,
    ChannelOffer,
    ExecutionRequest,
    Hostcalls,
    InstanceSpec,
    LocalChannel,
    PluginContext,
    RuntimeInstanceId,
    SpearletConfig,
)
from spear_core.errors import ChannelAuthError
from spear_core.rpc import SocketChannel, welcome
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._runtime import ProcessRuntime, open_runtime

AGENT = b"""
from spear_sdk import function

@function
def main(data: bytes) -> bytes:
    return data
"""
REQUEST = ExecutionRequest(execution_id="e", task_id="t", payload=b"x" * 100)


class NoHostcalls(Hostcalls):
    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        pass

    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        raise NotImplementedError


class Offer(ChannelOffer):
    transport = "unix"

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = f"unix://{listener.getsockname()}"
        self.secret = secrets.token_bytes(32)

    async def accept(self) -> Channel:
        await trio.lowlevel.wait_readable(self._listener)
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        channel = SocketChannel(connection)
        await welcome(channel, self._verify)
        return channel

    def _verify(self, hello: dict[str, Any]) -> dict[str, Any]:
        if not hmac.compare_digest(hello["secret"], self.secret):
            raise ChannelAuthError("wrong secret")
        return {"node": "bench", "max_frame": 65 << 20}


@attrs.frozen
class Channels(ChannelFactory):
    folder: Path

    @asynccontextmanager
    async def open_offer(self, instance_id: RuntimeInstanceId) -> AsyncGenerator[ChannelOffer]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / f"{instance_id.instance_id}.sock"))
            listener.listen()
            listener.setblocking(False)
            offer = Offer(listener)
            offer.instance_id = instance_id
            yield offer

    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        raise NotImplementedError


@attrs.define
class Bench:
    runtime: ProcessRuntime
    folder: Path
    _last: int = 0

    async def prepare(self, code: bytes, filename: str, shape: str) -> Artifact:
        digest = hashlib.sha256(code).hexdigest()
        path = self.folder / digest
        path.write_bytes(code)
        artifact = Artifact(
            name=Path(filename).stem,
            version=1,
            digest=digest,
            runtime="process",
            shape=shape,
            path=path,
            filename=filename,
        )
        await self.runtime.prepare(artifact)
        return artifact

    def spec(self, artifact: Artifact) -> InstanceSpec:
        self._last += 1
        name = RuntimeInstanceId(runtime_type="process", instance_id=f"i{self._last}")
        return InstanceSpec(id=name, artifact=artifact)


@asynccontextmanager
async def open_bench(config: ProcessConfig | None = None) -> AsyncGenerator[Bench]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = PluginContext(
            node_id="bench",
            plugin="runtime-process",
            state_dir=folder / "state",
            cache_dir=folder / "cache",
            run_dir=folder,
            log=logging.getLogger("bench"),
            hostcalls=NoHostcalls(),
            channels=Channels(folder),
            spearlet_config=SpearletConfig(),
        )
        async with open_runtime(context, config or ProcessConfig()) as runtime:
            yield Bench(runtime, folder)
