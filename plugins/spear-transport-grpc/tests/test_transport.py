"""The transport ``grpc`` beyond its contract: sharing, secrets, TLS, hostile peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trustme

from spear_core.api import Message, MessageKind
from spear_core.errors import (
    ChannelAuthError,
    ChannelBrokenError,
    ChannelError,
    ConfigError,
    ProtocolError,
)
from spear_core.rpc import hello, welcome
from spear_core.testing import make_context
from spear_transport_grpc import plugin
from spear_transport_grpc._bridge import RpcError, StatusCode, open_channel
from spear_transport_grpc._config import ChannelConfig

CONNECT = "/spear.v1.ChannelService/Connect"
PEER = """
import sys, trio
from pathlib import Path
from spear_core.api import Message
from spear_core.testing import make_context
from spear_transport_grpc import plugin
from spear_transport_grpc._config import ChannelConfig
async def main():
    async with plugin.open_transport(make_context(Path(sys.argv[2])), ChannelConfig()) as transport:
        channel = await transport.connect(sys.argv[1])
        await channel.send(Message(kind=11, id=1))
        await trio.sleep_forever()
trio.run(main)
"""


def note(number: int) -> Message:
    return Message(kind=MessageKind.NOTICE, id=number)


def connections(port: int) -> int:
    """TCP connections of this process to that port."""
    found = psutil.Process().net_connections("tcp")
    return len([c for c in found if c.raddr and c.raddr.port == port])


async def test_instances_share_a_port_and_a_connection(tmp_path: Path) -> None:
    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("one")) as first,
        transport.listen(transport.new_address("two")) as second,
    ):
        assert first.address != second.address
        port = int(first.address.rsplit(":", 1)[1].split("/")[0])
        assert f":{port}/" in second.address
        near = [await transport.connect(at) for at in [first.address, second.address] * 5]
        far = [await (first, second)[number % 2].accept() for number in range(10)]
        assert connections(port) == 1
        for number, channel in enumerate(near):
            await channel.send(note(number))
        assert [(await channel.receive()).id for channel in far] == list(range(10))
        assert [channel.statistics().messages_received for channel in far] == [1] * 10


async def test_a_slow_instance_does_not_hold_up_its_neighbour(tmp_path: Path) -> None:
    block = Message(kind=MessageKind.DATA, payload=bytes(64 << 10))

    async def flood(channel: Any) -> None:
        while True:
            await channel.send(block)

    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        slow = await transport.connect(listener.address)
        await listener.accept()  # and nobody ever reads
        quick = await transport.connect(listener.address)
        far = await listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, slow)
            await trio.sleep(0.3)
            with trio.fail_after(60):
                for number in range(50):
                    await quick.send(note(number))
                    assert (await far.receive()).id == number
            nursery.cancel_scope.cancel()


async def test_the_secret_is_asked_for_as_on_every_transport(tmp_path: Path) -> None:
    def verify(head: dict[str, Any]) -> dict[str, Any]:
        if head.get("secret") != b"right":
            raise ChannelAuthError("wrong")
        return {}

    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        for secret, fine in ((b"right", True), (b"wrong", False)):
            near = await transport.connect(listener.address)
            far = await listener.accept()
            async with trio.open_nursery() as nursery:

                async def greet(channel: Any = near, secret: bytes = secret) -> None:
                    await hello(channel, {"secret": secret})

                if fine:
                    nursery.start_soon(greet)
                    await welcome(far, verify)
                else:
                    nursery.start_soon(expect_refusal, greet)
                    with pytest.raises(ChannelAuthError):
                        await welcome(far, verify)


async def expect_refusal(greet: Any) -> None:
    with pytest.raises(ChannelAuthError):
        await greet()


async def test_a_call_for_nobody_is_refused(tmp_path: Path) -> None:
    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        target = listener.address.removeprefix("grpc://").split("/")[0]
        async with open_channel(target) as channel:
            for metadata in ((), (("spear-channel", "another"),)):
                async with channel.open_call(CONNECT, metadata=metadata) as call:
                    with pytest.raises(RpcError) as caught:
                        await call.receive()
                    assert caught.value.code is StatusCode.NOT_FOUND


async def test_a_peer_that_sends_nonsense(tmp_path: Path) -> None:
    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        target, _, name = listener.address.removeprefix("grpc://").partition("/")
        async with (
            open_channel(target) as channel,
            channel.open_call(CONNECT, metadata=(("spear-channel", name),)) as call,
        ):
            far = await listener.accept()
            await call.send(b"\xff\xff\xff\xff")
            with pytest.raises(ProtocolError):
                await far.receive()
            assert not far.is_connected


async def test_a_peer_that_is_killed(tmp_path: Path) -> None:
    async with (
        plugin.open_transport(make_context(tmp_path), ChannelConfig()) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        other = tmp_path / "other"
        other.mkdir()
        command = [sys.executable, "-c", PEER, listener.address, str(other)]
        process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
        channel = await listener.accept()
        assert (await channel.receive()).id == 1
        process.kill()
        await process.wait()
        assert process.stderr is not None
        await process.stderr.aclose()
        with trio.fail_after(60), pytest.raises(ChannelBrokenError):
            await channel.receive()


async def test_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    paths = {name: tmp_path / name for name in ("cert", "key", "ca")}
    cert.cert_chain_pems[0].write_to_path(paths["cert"])
    cert.private_key_pem.write_to_path(paths["key"])
    ca.cert_pem.write_to_path(paths["ca"])
    config = ChannelConfig(
        channel_tls=True,
        tls_cert=str(paths["cert"]),
        tls_key=str(paths["key"]),
        channel_ca=str(paths["ca"]),
    )
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    async with (
        plugin.open_transport(make_context(folders[0]), config) as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        near, far = await transport.connect(listener.address), await listener.accept()
        await near.send(note(5))
        assert (await far.receive()).id == 5
        async with plugin.open_transport(make_context(folders[1]), ChannelConfig()) as plain:
            with pytest.raises(ChannelError), trio.fail_after(60):
                await plain.connect(listener.address)


async def test_tls_without_a_certificate_is_a_mistake(tmp_path: Path) -> None:
    config = ChannelConfig(channel_tls=True)
    with pytest.raises(ConfigError, match="tls_cert and tls_key"):
        async with (
            plugin.open_transport(make_context(tmp_path), config) as transport,
            transport.listen(transport.new_address("i")),
        ):
            pytest.fail("it listens")
