"""A real runtime over fakes of what the node gives it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import secrets
import socket
import tempfile
import textwrap
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    Artifact,
    Channel,
    ChannelFactory,
    ChannelOffer,
    ExecutionRequest,
    ExecutionResponse,
    Hostcalls,
    InstanceSpec,
    LocalChannel,
    PluginContext,
    Runtime,
    RuntimeInstanceId,
    SpearletConfig,
)
from spear_core.errors import ChannelAuthError, SpearError
from spear_core.rpc import SocketChannel, welcome
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._recognise import recognise
from spear_runtime_process._runtime import open_runtime

_numbers = itertools.count(1)


@attrs.define
class RecordingHostcalls(Hostcalls):
    """Keeps what guests log; knows one hostcall, `upper`."""

    entries: list[tuple[str, str, str, str]] = attrs.field(factory=list)

    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        self.entries.append((execution_id, level, source, message))

    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        if name == "upper":
            return bytes(payload).upper()
        raise SpearError(f"no hostcall {name!r}", code="unimplemented")

    def lines(self, source: str = "stderr") -> list[str]:
        return [message for _, _, where, message in self.entries if where == source]


class SocketOffer(ChannelOffer):
    def __init__(
        self, listener: socket.socket, address: str, transport: str, accepted: list[Channel]
    ) -> None:
        self._listener = listener
        self._accepted = accepted
        self.address = address
        self.transport = transport
        self.secret = secrets.token_bytes(32)

    async def accept(self) -> Channel:
        while True:
            await trio.lowlevel.wait_readable(self._listener)
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            channel = SocketChannel(connection)
            try:
                await welcome(channel, self._verify)
            except ChannelAuthError:
                await channel.aclose()
            else:
                self._accepted.append(channel)
                return channel

    def _verify(self, hello: dict[str, Any]) -> dict[str, Any]:
        if not hmac.compare_digest(hello["secret"], self.secret):
            raise ChannelAuthError("wrong secret")
        return {"node": "n1", "max_frame": 65 << 20}


class SocketChannels(ChannelFactory):
    """Unix sockets, or TCP ports."""

    def __init__(self, transport: str = "unix") -> None:
        self.transport = transport
        self.accepted: list[Channel] = []

    @asynccontextmanager
    async def open_offer(self, instance_id: RuntimeInstanceId) -> AsyncGenerator[ChannelOffer]:
        kind = socket.AF_UNIX if self.transport == "unix" else socket.AF_INET
        with socket.socket(kind) as listener, tempfile.TemporaryDirectory() as folder:
            if self.transport == "unix":
                path = f"{folder}/{instance_id.instance_id}.sock"
                listener.bind(path)
                address = f"unix://{path}"
            else:
                listener.bind(("127.0.0.1", 0))
                address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            listener.listen()
            listener.setblocking(False)
            offer = SocketOffer(listener, address, self.transport, self.accepted)
            offer.instance_id = instance_id
            yield offer

    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        raise NotImplementedError


@pytest.fixture
def make_channels() -> type[SocketChannels]:
    return SocketChannels


@pytest.fixture
def hostcalls() -> RecordingHostcalls:
    return RecordingHostcalls()


@pytest.fixture
def context(tmp_path: Path, hostcalls: RecordingHostcalls) -> PluginContext:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    return PluginContext(
        node_id="n1",
        plugin="runtime-process",
        state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
        run_dir=run,
        log=logging.getLogger("spear.test"),
        hostcalls=hostcalls,
        channels=SocketChannels(),
        spearlet_config=SpearletConfig(),
    )


@attrs.frozen
class Place:
    """Where tests write code, deploy it and run it."""

    context: PluginContext
    folder: Path

    def artifact(self, filename: str, text: str | bytes, **fields: Any) -> Artifact:
        code = text if isinstance(text, bytes) else textwrap.dedent(text).lstrip().encode()
        digest = hashlib.sha256(code).hexdigest()
        blob = self.folder / digest
        blob.write_bytes(code)
        path = Path(filename)
        shape = recognise(path, code[:4096], fields.get("entry", "")) or "command"
        fields = {"reuse": shape == "agent", "shape": shape} | fields
        return Artifact(
            name=path.stem,
            version=1,
            digest=digest,
            runtime="process",
            path=blob,
            filename=path.name,
            **fields,
        )

    def open(self, **config: Any) -> AbstractAsyncContextManager[Runtime]:
        return open_runtime(self.context, ProcessConfig(**config))

    def spec(self, artifact: Artifact) -> InstanceSpec:
        name = f"i{next(_numbers)}"
        return InstanceSpec(
            id=RuntimeInstanceId(runtime_type="process", instance_id=name), artifact=artifact
        )

    async def run(
        self, artifact: Artifact, payload: bytes = b"", **config: Any
    ) -> ExecutionResponse:
        """Open everything, execute once, close everything."""
        async with self.open(**config) as runtime:
            await runtime.prepare(artifact)
            async with runtime.open_instance(self.spec(artifact)) as instance:
                return await instance.execute(request(payload))


def request(payload: bytes = b"", **fields: Any) -> ExecutionRequest:
    number = next(_numbers)
    return ExecutionRequest(
        execution_id=f"e{number}", task_id=f"t{number}", payload=payload, **fields
    )


@pytest.fixture
def place(tmp_path: Path, context: PluginContext) -> Place:
    folder = tmp_path / "blobs"
    folder.mkdir()
    return Place(context, folder)


@pytest.fixture
def make_request() -> Callable[..., ExecutionRequest]:
    return request


@pytest.fixture
def single(place: Place) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Open a runtime with one instance of an artifact."""

    @asynccontextmanager
    async def opened(artifact: Artifact, **config: Any) -> AsyncGenerator[Any]:
        async with place.open(**config) as runtime:
            await runtime.prepare(artifact)
            async with runtime.open_instance(place.spec(artifact)) as instance:
                yield instance

    return opened


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of containment run with control groups (where there are any) and without."""
    if "use_cgroups" in metafunc.fixturenames:
        metafunc.parametrize("use_cgroups", [True, False], ids=["cgroup", "monitor"])
