"""A server with a few methods, and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from spear_transport_grpc._bridge import (
    ClientChannel,
    Method,
    Port,
    RpcError,
    Server,
    ServerCall,
    StatusCode,
    Streaming,
    Unary,
    open_channel,
    open_server,
)


@attrs.define
class Seen:
    """What the handlers have seen."""

    started: int = 0
    cancelled: int = 0
    received: list[bytes] = attrs.field(factory=list)
    sent: int = 0
    remaining: float = 0.0
    changed: trio.Event = attrs.field(factory=trio.Event)

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def wait(self, what: str, count: int) -> None:
        """Wait until this counter has come so far."""
        with trio.fail_after(60):
            while getattr(self, what) < count:
                await self.changed.wait()

    async def sleep(self, call: ServerCall) -> None:
        self.remaining = call.deadline - trio.current_time()
        self.started += 1
        self.change()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled += 1
            self.change()
            raise

    # ---- the methods

    async def echo(self, request: bytes, call: ServerCall) -> bytes:
        return request

    async def sleep_unary(self, request: bytes, call: ServerCall) -> bytes:
        await self.sleep(call)
        return b""

    async def fail(self, request: bytes, call: ServerCall) -> bytes:
        raise RpcError(StatusCode.NOT_FOUND, "nothing here: ü", trailing=(("why-bin", b"\0\1"),))

    async def explode(self, request: bytes, call: ServerCall) -> bytes:
        raise LookupError("a bug")

    async def echo_stream(self, call: ServerCall) -> None:
        while (message := await call.receive()) is not None:
            self.received.append(message)
            await call.send(message)

    async def sleep_stream(self, call: ServerCall) -> None:
        await self.sleep(call)

    async def patient(self, call: ServerCall) -> None:
        """Receives with a cancellation every now and then."""
        step = 0
        while True:
            step += 1
            with trio.move_on_after(0.0002 * (step % 5)) as scope:
                message = await call.receive()
                if message is None:
                    return
                self.received.append(message)
            if scope.cancelled_caught:
                await trio.lowlevel.checkpoint()

    async def flood(self, call: ServerCall) -> None:
        try:
            while True:
                await call.send(bytes(64 << 10))
                self.sent += 1
                if self.sent == 1:
                    self.change()
        except trio.Cancelled:
            self.cancelled += 1
            self.change()
            raise

    def methods(self) -> Mapping[str, Method]:
        return {
            "/t/Echo": Unary(self.echo),
            "/t/Sleep": Unary(self.sleep_unary),
            "/t/Fail": Unary(self.fail),
            "/t/Explode": Unary(self.explode),
            "/t/EchoStream": Streaming(self.echo_stream),
            "/t/SleepStream": Streaming(self.sleep_stream),
            "/t/Patient": Streaming(self.patient),
            "/t/Flood": Streaming(self.flood),
        }


@attrs.frozen
class Pair:
    """Both sides."""

    seen: Seen
    server: Server
    channel: ClientChannel
    target: str


@asynccontextmanager
async def open_pair(
    folder: Path, *, grace_s: float = 1, options: Mapping[str, int | str] | None = None
) -> AsyncIterator[Pair]:
    seen = Seen()
    target = f"unix:{folder}/s"
    async with (
        open_server(
            (Port(address=target),), seen.methods(), grace_s=grace_s, options=options
        ) as server,
        open_channel(target, options=options) as channel,
    ):
        yield Pair(seen, server, channel, target)


@pytest.fixture
def opened(tmp_path: Path):  # type: ignore[no-untyped-def]  # a fixture that is a function
    """``open_pair`` in this test's folder."""

    def make(**kwargs: object):  # type: ignore[no-untyped-def]  # as open_pair
        return open_pair(tmp_path, **kwargs)  # type: ignore[arg-type]  # as open_pair

    return make
