"""What the two transports do with the file system, ports and settings."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cattrs
import pytest
import trio

from spear_core.api import ChannelListener, Message, MessageKind, Transport
from spear_core.errors import ChannelError
from spear_core.rpc import SocketChannel
from spear_core.rpc.framing import MAX_FRAME
from spear_core.testing import check_plugin, make_context
from spear_transport_unix import TcpConfig, UnixConfig
from spear_transport_unix.plugin import open_tcp, open_unix


@asynccontextmanager
async def unix(tmp_path: Path) -> AsyncIterator[Transport]:
    async with open_unix(make_context(tmp_path), UnixConfig()) as transport:
        yield transport


@asynccontextmanager
async def tcp(tmp_path: Path, **settings: Any) -> AsyncIterator[Transport]:
    async with open_tcp(make_context(tmp_path), TcpConfig(**settings)) as transport:
        yield transport


async def talk(transport: Transport, listener: ChannelListener) -> None:
    near = await transport.connect(listener.address)
    far = await listener.accept()
    async with near, far:
        await near.send(Message(MessageKind.PING, payload=b"hi"))
        assert (await far.receive()).payload == b"hi"


def test_the_entry_point_is_sound() -> None:
    assert check_plugin("transport-unix") == []


def test_the_default_limit_is_the_protocols() -> None:
    assert UnixConfig().max_frame_bytes == TcpConfig().max_frame_bytes == MAX_FRAME


@pytest.mark.parametrize("size", [0, 1000, 1 << 32])
def test_senseless_limits_are_refused(size: int) -> None:
    for cls in (UnixConfig, TcpConfig):
        with pytest.raises(cattrs.BaseValidationError):
            cattrs.Converter().structure({"max_frame_bytes": size}, cls)


# unix


async def test_socket_and_directory_are_private(tmp_path: Path) -> None:
    async with unix(tmp_path) as transport:
        address = transport.new_address("instance")
        path = Path(address.removeprefix("unix://"))
        async with transport.listen(address):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
        assert path.name not in os.listdir(path.parent)


async def test_an_address_is_a_plain_short_path(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    async with open_unix(context, UnixConfig()) as transport:
        first, second = (transport.new_address("process/../é " + "x" * 300) for _ in range(2))
        run = context.run_dir
        assert first != second
        assert Path(first.removeprefix("unix://")).parent.parent == run
        assert len(first.encode()) < len(str(run)) + 40
        assert first.isascii()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    async with unix(tmp_path) as transport:
        path = tmp_path / "s.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        async with transport.listen(f"unix://{path}") as listener:
            await talk(transport, listener)


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("keep")
    async with unix(tmp_path) as transport:
        with pytest.raises(ChannelError, match="no socket; move it away"):
            async with transport.listen(f"unix://{path}"):
                pytest.fail("it listens on a plain file")
    assert path.read_text() == "keep"


async def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    async with unix(tmp_path) as transport:
        with pytest.raises(ChannelError, match="chmod 700"):
            async with transport.listen(f"unix://{shared}/s.sock"):
                pytest.fail("it listens among strangers")


async def test_long_paths_work(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    deep.mkdir(mode=0o700)
    async with unix(tmp_path) as transport:
        async with transport.listen(f"unix://{deep}/s.sock") as listener:
            await talk(transport, listener)
        assert list(deep.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["unix://relative", "unix:/one/slash", "unix:///", "unix:///a\0b", "/tmp/x"]
)
async def test_malformed_paths_are_refused(tmp_path: Path, address: str) -> None:
    async with unix(tmp_path) as transport:
        with pytest.raises(ChannelError):
            await transport.connect(address)
        with pytest.raises(ChannelError):
            async with transport.listen(address):
                pytest.fail("it listens there")


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    async with unix(tmp_path) as transport:
        with pytest.raises(ChannelError, match="No such file"):
            await transport.connect(f"unix://{tmp_path}/no/s.sock")
        with pytest.raises(ChannelError, match="No such file"):
            async with transport.listen(f"unix://{tmp_path}/no/where/s.sock"):
                pytest.fail("it listens there")


async def test_leaving_does_not_remove_a_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with unix(tmp_path) as transport:
        async with transport.listen(f"unix://{path}"):
            path.unlink()
            with socket.socket(socket.AF_UNIX) as successor:
                successor.bind(str(path))
        assert path.is_socket()


async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    async with (
        unix(tmp_path) as transport,
        transport.listen(transport.new_address("busy")) as listener,
    ):
        connected = 0

        async def connect() -> None:
            nonlocal connected
            async with await transport.connect(listener.address):
                connected += 1

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(connect)
            for _ in range(200):
                await (await listener.accept()).aclose()
        assert connected == 200


# tcp


async def test_tcp_sends_at_once_on_both_ends(tmp_path: Path) -> None:
    async with tcp(tmp_path) as transport, transport.listen(transport.new_address("i")) as listener:
        near = await transport.connect(listener.address)
        far = await listener.accept()
        async with near, far:
            for end in (near, far):
                assert isinstance(end, SocketChannel)
                assert end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_tcp_listens_on_loopback_only(tmp_path: Path) -> None:
    async with tcp(tmp_path) as transport, transport.listen(transport.new_address("i")) as listener:
        assert listener.address.startswith("tcp://127.0.0.1:")
        port = int(listener.address.rpartition(":")[2])
        assert port > 0
        await talk(transport, listener)
        with pytest.raises(ChannelError, match="refused"):
            await transport.connect(f"tcp://127.0.0.2:{port}")


async def test_tcp_on_another_host(tmp_path: Path) -> None:
    async with (
        tcp(tmp_path, tcp_host="127.0.0.3") as transport,
        transport.listen(transport.new_address("i")) as listener,
    ):
        assert listener.address.startswith("tcp://127.0.0.3:")
        await talk(transport, listener)


async def test_tcp_over_ipv6(tmp_path: Path) -> None:
    async with tcp(tmp_path, tcp_host="::1") as transport:
        try:
            async with transport.listen(transport.new_address("i")) as listener:
                assert listener.address.startswith("tcp://[::1]:")
                await talk(transport, listener)
        except ChannelError as exc:
            pytest.skip(f"no IPv6 here: {exc}")


async def test_a_host_that_is_not_here_is_named(tmp_path: Path) -> None:
    async with tcp(tmp_path, tcp_host="192.0.2.1") as transport:
        with pytest.raises(ChannelError, match=r"192\.0\.2\.1"):
            async with transport.listen(transport.new_address("i")):
                pytest.fail("it listens on somebody else's address")


@pytest.mark.parametrize(
    "address",
    [
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:99999",
        "tcp://:80",
        "tcp://example.org:80",
        "tcp://127.0.0.1:80/path",
        "unix:///x",
        "tcp://[::1",
    ],
)
async def test_malformed_endpoints_are_refused(tmp_path: Path, address: str) -> None:
    async with tcp(tmp_path) as transport:
        with pytest.raises(ChannelError, match="form tcp://IP-ADDRESS:PORT"):
            await transport.connect(address)
        with pytest.raises(ChannelError, match="form tcp://IP-ADDRESS:PORT"):
            async with transport.listen(address):
                pytest.fail("it listens there")
