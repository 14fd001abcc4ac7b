"""File descriptors beside messages, on real Unix sockets."""

from __future__ import annotations

import array
import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import Message, MessageFlag, MessageKind, OwnedFd
from spear_core.errors import (
    ChannelBrokenError,
    InvalidRequestError,
    ProtocolError,
    ResourceExhaustedError,
)
from spear_core.rpc import (
    Call,
    Reply,
    SessionLimits,
    SocketChannel,
    hello,
    open_session,
    socket_channel,
    welcome,
)
from spear_core.rpc._fd_passing import FdsInFlightError
from spear_core.rpc.codec import encode_head
from spear_core.rpc.framing import encode_header

OpenSides = Callable[..., AbstractAsyncContextManager[Any]]


def a_file(content: bytes = b"content") -> OwnedFd:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, content)
    return OwnedFd(fd)


def content(fd: OwnedFd | None) -> bytes:
    assert fd is not None
    return os.pread(fd.fileno(), 1000, 0)


def open_fds() -> int:
    gc.collect()  # what an earlier test left to it must not go in the middle of this one
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before


def pair() -> tuple[SocketChannel, SocketChannel]:
    near, far = map(SocketChannel, socket.socketpair())
    near.pass_fds()
    far.pass_fds()
    return near, far


def raw(*, payload: bytes = b"", kind: int = 3, flags: int = MessageFlag.FD) -> bytes:
    message = Message(kind, 2, flags, b"", payload)
    return encode_header(message) + payload


def rights(*fds: OwnedFd) -> list[tuple[int, int, bytes]]:
    numbers = array.array("i", [fd.fileno() for fd in fds])
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())]


# ---- one owner


def test_an_owned_descriptor_closes_once() -> None:
    owned = a_file()
    number = owned.fileno()
    owned.close()
    owned.close()
    assert owned.closed
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
    with pytest.raises(ValueError, match="closed"):
        owned.fileno()


def test_a_dropped_descriptor_closes() -> None:
    number = a_file().fileno()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_a_detached_descriptor_is_the_callers() -> None:
    number = a_file().detach()
    assert os.pread(number, 10, 0) == b"content"
    os.close(number)


# ---- the channel


async def test_it_arrives_with_its_own_message() -> None:
    near, far = pair()
    async with near, far:
        for number in range(20):  # all of it is there before the first is read
            with a_file(b"%d" % number) as fd:
                has = fd if number % 3 == 0 else None
                await near.send(Message(3, number, 1, b"h", bytes(number), has))
        for number in range(20):
            message = await far.receive()
            assert (message.id, message.flags, len(message.payload)) == (number, 1, number)
            assert (message.fd is not None) == (number % 3 == 0)
            if message.fd is not None:
                assert content(message.fd) == b"%d" % number
                assert not os.get_inheritable(message.fd.fileno())


async def test_it_comes_with_the_first_byte_of_a_large_frame() -> None:
    near, far = pair()
    async with near, far, trio.open_nursery() as nursery:
        with a_file() as fd:
            nursery.start_soon(near.send, Message(3, 1, 0, b"", bytes(5 << 20), fd))
            message = await far.receive()
        assert content(message.fd) == b"content"
        assert len(message.payload) == 5 << 20


async def test_a_frame_in_single_bytes() -> None:
    far, bare = socket.socketpair()
    with bare:
        channel = SocketChannel(far)
        channel.pass_fds()
        data = raw(payload=b"payload")

        async def drip() -> None:
            with a_file() as fd:
                bare.sendmsg([data[:1]], rights(fd))
            for byte in data[1:]:
                await trio.testing.wait_all_tasks_blocked()
                bare.send(bytes([byte]))

        async with channel, trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert content((await channel.receive()).fd) == b"content"


async def test_a_cancelled_send_goes_whole_or_not_at_all() -> None:
    near, far = pair()
    async with near, far:
        sent = 0

        async def fill() -> None:
            nonlocal sent
            while True:
                with a_file(b"%d" % sent) as fd:
                    await near.send(Message(3, sent, 0, b"", bytes(30_000), fd))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert sent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, Message(3, 10_000))
            number = 0
            while (message := await far.receive()).id != 10_000:
                assert content(message.fd) == b"%d" % number
                number += 1
        assert number in (sent, sent + 1)


async def test_what_was_not_read_is_closed_with_the_channel() -> None:
    near, far = pair()
    async with near, far:
        with a_file() as fd:
            for _ in range(5):
                await near.send(Message(3, fd=fd))
        await far.receive()


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([(raw(flags=0), 1)], "belongs to no message"),
        ([(raw(), 0)], "announces"),
        ([(raw(), 2)], "several"),
        ([(raw(), 30)], "several"),
        ([(raw()[:5], 1), (raw()[5:], 1)], "belongs to no message"),
        ([(raw(), 1), (raw(), 0)], "announces"),
    ],
)
async def test_a_peer_that_lies_about_descriptors(
    pieces: list[tuple[bytes, int]], reason: str
) -> None:
    far, bare = socket.socketpair()
    with bare:
        channel = SocketChannel(far)
        channel.pass_fds()
        async with channel:
            for data, count in pieces:
                fds = [a_file() for _ in range(count)]
                bare.sendmsg([data], rights(*fds) if fds else [])
            with pytest.raises(ProtocolError, match=reason):
                await _receive_all(channel)
            with pytest.raises(ChannelBrokenError):
                await channel.send(Message(3))


async def _receive_all(channel: SocketChannel) -> None:
    while True:
        await channel.receive()


async def test_descriptors_nobody_agreed_on_are_dropped() -> None:
    far, bare = socket.socketpair()
    with bare:
        async with SocketChannel(far) as channel:
            with a_file() as fd:
                bare.sendmsg([raw(payload=b"x")], rights(fd))
            message = await channel.receive()
            assert (message.fd, message.flags) == (None, MessageFlag.FD)
            with a_file() as fd, pytest.raises(ValueError, match="do not pass"):
                await channel.send(Message(3, fd=fd))


async def test_only_unix_sockets_pass_them() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as bare:
        channel = SocketChannel(bare)
        assert not channel.can_pass_fds
        with pytest.raises(ValueError, match="Unix"):
            channel.pass_fds()


# ---- agreeing on it


@pytest.mark.parametrize("wanted", [True, False])
async def test_both_sides_agree(wanted: bool) -> None:
    near, far = map(SocketChannel, socket.socketpair())
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(welcome, far, lambda head: {"node": "n"})
        answer = await hello(near, {"role": "client"} | ({"fds": True} if wanted else {}))
        assert answer.get("fds", False) is wanted
        assert near.passes_fds is wanted
    assert far.passes_fds is wanted


# ---- the session


async def test_a_request_and_its_answer_have_one(open_sides: OpenSides) -> None:
    kept: list[OwnedFd] = []

    async def handler(call: Call) -> Reply:
        assert call.fd is not None
        kept.append(call.fd)
        return Reply(call.args, call.payload, a_file(content(call.fd).upper()))

    async with open_sides(handler, passes_fds=True) as sides:
        assert sides.client.passes_fds
        with a_file() as fd:
            reply = await sides.client.request("m", {"a": 1}, b"beside", fd=fd)
            assert not fd.closed
        assert (reply.head, reply.payload) == ({"a": 1}, b"beside")
        assert content(reply.fd) == b"CONTENT"
        assert kept[0].closed


async def test_an_answer_nobody_waits_for_leaks_nothing(open_sides: OpenSides) -> None:
    asked, release = trio.Event(), trio.Event()

    async def handler(call: Call) -> Reply:
        if call.method == "slow":
            asked.set()
            with trio.CancelScope(shield=True):
                await release.wait()
        return Reply(fd=a_file())

    async with open_sides(handler, passes_fds=True) as sides:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sides.client.request, "slow")
            await asked.wait()
            nursery.cancel_scope.cancel()
        release.set()
        with await _fd_of(sides.client.request("again")):
            pass


async def _fd_of(asking: Any) -> OwnedFd:
    reply: Reply = await asking
    assert reply.fd is not None
    return reply.fd


async def test_too_much_beside_one(open_sides: OpenSides) -> None:
    async def handler(call: Call) -> Reply:
        return Reply({}, bytes(300_000), a_file())

    async with open_sides(handler, passes_fds=True) as sides:
        with a_file() as fd, pytest.raises(InvalidRequestError, match="beside a file"):
            await sides.client.request("m", payload=bytes(300_000), fd=fd)
        with pytest.raises(InvalidRequestError, match="beside a file"):
            await sides.client.request("m")


async def test_a_file_where_none_can_go(open_sides: OpenSides) -> None:
    async def handler(call: Call) -> Reply:
        return Reply(fd=a_file()) if call.method == "file" else Reply()

    async with open_sides(handler) as sides:
        with a_file() as fd, pytest.raises(InvalidRequestError, match="no files"):
            await sides.client.request("m", fd=fd)
        with pytest.raises(InvalidRequestError, match="no files"):
            await sides.client.request("file")
        assert (await sides.client.request("m")).fd is None


async def test_requests_that_hold_files_are_counted(open_sides: OpenSides) -> None:
    release = trio.Event()

    async def handler(call: Call) -> Reply:
        await release.wait()
        return Reply()

    async with open_sides(handler, passes_fds=True, limits=SessionLimits(max_fds=3)) as sides:
        async with trio.open_nursery() as nursery:
            with a_file() as fd:
                for _ in range(3):
                    nursery.start_soon(lambda: sides.client.request("m", fd=fd))
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(ResourceExhaustedError, match="files"):
                    await sides.client.request("m", fd=fd)
            release.set()
        with a_file() as fd:
            await sides.client.request("m", fd=fd)


async def test_while_the_kernel_takes_no_more_files_everything_else_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts those of all of a user's processes that nobody has received."""
    near, far = pair()
    refused = trio.Event()

    def refuse(*args: Any) -> int:
        refused.set()
        raise FdsInFlightError

    async with near, far, trio.open_nursery() as nursery:
        with a_file(b"late") as fd, monkeypatch.context() as patched:
            patched.setattr(socket_channel, "send_with_fd", refuse)
            nursery.start_soon(near.send, Message(3, 1, fd=fd))
            await refused.wait()
            with trio.fail_after(60):
                await near.send(Message(3, 2))
                assert (await far.receive()).id == 2
            patched.undo()
            with trio.fail_after(60):
                message = await far.receive()
        assert (message.id, content(message.fd)) == (1, b"late")


@pytest.mark.parametrize("with_fd", [True, False])
async def test_a_peer_that_asks_and_does_not_read_holds_few_answers(with_fd: bool) -> None:
    asked, held, most = 1500, 0, 0

    async def handler(call: Call) -> Reply:
        nonlocal held, most
        await trio.lowlevel.checkpoint()
        held += 1
        most = max(most, held)
        return Reply(fd=a_file()) if with_fd else Reply(payload=memoryview(large))

    near, far = pair()
    large, head = bytes(256 << 10), encode_head({"method": "m"})
    fds = open_fds()
    async with near, open_session(far, initiator=False, handler=handler):
        for number in range(asked):
            await near.send(Message(MessageKind.REQUEST, 2 * number + 2, head=head))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < held < asked
        assert open_fds() - fds < 300
        for _ in range(asked):  # and each is answered once it reads
            message = await near.receive()
            assert (message.fd is not None) is with_fd
            held -= 1
        assert held == 0
        assert most < 1000


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (MessageKind.NOTICE, 0),
        (MessageKind.DATA, 0),
        (MessageKind.REQUEST, MessageFlag.MORE),
        (MessageKind.REQUEST, MessageFlag.STREAM),
        (99, 0),
    ],
)
async def test_one_with_any_other_message_ends_the_session(kind: int, flags: int) -> None:
    near, far = pair()
    async with near, open_session(far, initiator=False) as session:
        with a_file() as fd:
            await near.send(Message(kind, 2, flags, fd=fd))
        assert "a file descriptor with a message of kind" in await session.wait_closed()
