"""The part of the contract suite for channels that is about file descriptors."""

from __future__ import annotations

import gc
import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import Channel, Message, MessageKind, OwnedFd
from spear_core.testing._promise import promise

__all__ = ["ChannelPair", "FdContract"]

_LAST = 1 << 40
_NAME = "spear-passed-file"


@attrs.frozen(kw_only=True)
class ChannelPair:
    """Both ends of a channel."""

    near: Channel
    """The end that connected."""
    far: Channel
    """The end that was accepted."""

    def pass_fds(self) -> None:
        """Both ends agree."""
        self.near.pass_fds()
        self.far.pass_fds()


class FdContract(ABC):
    """What channels promise about file descriptors; a part of :class:`ChannelContract`."""

    patience: float
    passes_fds: ClassVar[bool] = False
    """Whether file descriptors can go along here."""

    @abstractmethod
    def open_pair(self, tmp_path: Path) -> AbstractAsyncContextManager[ChannelPair]:
        """A connected channel, closed at the end of the block."""

    def _needs_fds(self) -> None:
        if not self.passes_fds:
            pytest.skip("no file descriptors can pass through this kind of channel")

    @promise
    async def test_says_whether_fds_can_pass(self, tmp_path: Path) -> None:
        """``can_pass_fds`` tells the truth, and nothing passes before both ends have agreed."""
        async with self.open_pair(tmp_path) as pair:
            for end, other in ((pair.near, pair.far), (pair.far, pair.near)):
                assert end.can_pass_fds is self.passes_fds
                assert not end.passes_fds
                with _a_file(b"1") as fd, pytest.raises(ValueError):  # noqa: PT011
                    await end.send(Message(kind=MessageKind.REQUEST, id=1, fd=fd))
                await end.send(Message(kind=MessageKind.REQUEST, id=2))
                message = await other.receive()
                assert (message.id, message.fd) == (2, None)
                if not self.passes_fds:
                    with pytest.raises(ValueError):  # noqa: PT011
                        end.pass_fds()
            if self.passes_fds:
                pair.pass_fds()
                assert pair.near.passes_fds
                assert pair.far.passes_fds

    @promise
    async def test_fd_arrives_with_its_message(self, tmp_path: Path) -> None:
        """``Message.fd`` arrives with its message and no other, in both directions."""
        self._needs_fds()
        sizes = (0, 10, 70_000, 300_000)
        async with self.open_pair(tmp_path) as pair:
            pair.pass_fds()
            for end, other in ((pair.near, pair.far), (pair.far, pair.near)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_send_numbered, end, sizes)
                    for number in range(40):
                        message = await other.receive()
                        assert (message.id, message.flags) == (number, 0)
                        assert len(message.payload) == sizes[number % 4]
                        _assert_own(message, with_fd=number % 3 == 0)

    @promise
    async def test_fd_is_the_receivers_own(self, tmp_path: Path) -> None:
        """``Message.fd``: what was sent stays the sender's, and the receiver has one of its own."""
        self._needs_fds()
        async with self.open_pair(tmp_path) as pair:
            pair.pass_fds()
            with _a_file(b"0") as fd:
                await pair.near.send(Message(kind=MessageKind.REQUEST, id=0, fd=fd))
                assert os.pread(fd.fileno(), 10, 0) == b"0"
            _assert_own(await pair.far.receive(), with_fd=True)

    @promise
    async def test_cancelled_send_of_an_fd_is_whole_or_nothing(self, tmp_path: Path) -> None:
        """``send``, cancelled: the file descriptor went with its message, or neither did."""
        self._needs_fds()
        async with self.open_pair(tmp_path) as pair:
            pair.pass_fds()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_numbered, pair.near, (40_000,), 1_000_000, 1)
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()
            with _a_file(b"%d" % _LAST) as fd:
                async with trio.open_nursery() as nursery:
                    last = Message(kind=MessageKind.REQUEST, id=_LAST, fd=fd)
                    nursery.start_soon(pair.near.send, last)
                    number = 0
                    while (message := await pair.far.receive()).id != _LAST:
                        assert message.id == number
                        _assert_own(message, with_fd=True)
                        number += 1
            _assert_own(message, with_fd=True)

    @promise
    async def test_fds_are_not_leaked(self, tmp_path: Path) -> None:
        """A file descriptor is closed with a message that nobody received, or that is dropped; no
        cancelled ``receive`` loses one."""
        self._needs_fds()
        async with self.open_pair(tmp_path) as pair:
            pair.pass_fds()
            gc.collect()  # else what others have left would be closed meanwhile, and hide a leak
            before = _count_of_files()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_numbered, pair.near, (0, 30_000), 30)
                for number in range(30):
                    with trio.CancelScope() as scope:
                        scope.cancel()
                        await pair.far.receive()
                        raise AssertionError("a cancelled receive returned")
                    if number < 20:
                        message = await pair.far.receive()
                        _assert_own(message, with_fd=number % 3 == 0)
                        del message
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            await pair.near.aclose()
            await pair.far.aclose()
            gc.collect()
            assert _count_of_files() <= before


async def _send_numbered(
    channel: Channel, sizes: tuple[int, ...], count: int = 40, every: int = 3
) -> None:
    """Messages with their number as id; every third, say, brings a file with that number in it."""
    for number in range(count):
        payload = bytes(sizes[number % len(sizes)])
        with _a_file(b"%d" % number) as fd:
            has = fd if number % every == 0 else None
            await channel.send(
                Message(kind=MessageKind.REQUEST, id=number, payload=payload, fd=has)
            )


def _assert_own(message: Message, *, with_fd: bool) -> None:
    """It has the file that belongs to it, or none."""
    assert (message.fd is not None) is with_fd
    if message.fd is not None:
        with message.fd as fd:
            assert os.pread(fd.fileno(), 100, 0) == b"%d" % message.id


def _count_of_files() -> int:
    """How many descriptors of our files are open, in whoever's hands: others' come and go."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            count += _NAME in os.readlink(f"/proc/self/fd/{number}")
    return count


def _a_file(content: bytes) -> OwnedFd:
    fd = OwnedFd(os.memfd_create(_NAME, os.MFD_CLOEXEC))
    os.write(fd.fileno(), content)
    return fd
