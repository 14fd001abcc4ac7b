"""The contract suite for transports and their channels."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from spear_core.api import (
    Channel,
    ChannelListener,
    Transport,
    TransportSpec,
)
from spear_core.errors import ChannelClosedError, ChannelError
from spear_core.testing._channel_contract import ChannelContract, ChannelPair, numbered
from spear_core.testing._fakes import make_context
from spear_core.testing._promise import promise
from spear_core.testing._resources import Resources

__all__ = ["TransportContract"]


class TransportContract(ChannelContract):
    """What every transport and its channels promise. Subclass it and set :attr:`spec`::

    class TestPipe(TransportContract):
        spec = SPEC
    """

    spec: ClassVar[TransportSpec[Any]]
    """The transport under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults."""

    @asynccontextmanager
    async def open_transport(self, tmp_path: Path) -> AsyncGenerator[Transport, None]:
        """The transport, as a node opens it. Override it to open yours in another way."""
        config = self.spec.config_cls() if self.config is None else self.config
        async with self.spec.open(make_context(tmp_path), config) as transport:
            yield transport

    @asynccontextmanager
    async def open_pair(self, tmp_path: Path) -> AsyncGenerator[ChannelPair, None]:
        """A connected channel on a transport of its own, closed at the end of the block."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("instance")) as listener,
        ):
            near, far = await self.connect(transport, listener)
            async with near, far:
                yield ChannelPair(near=near, far=far)

    async def connect(
        self, transport: Transport, listener: ChannelListener
    ) -> tuple[Channel, Channel]:
        """One connection to ``listener``: the end that connected, the end that was accepted."""
        ends: dict[str, Channel] = {}

        async def connect() -> None:
            ends["near"] = await transport.connect(listener.address)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            ends["far"] = await listener.accept()
        return ends["near"], ends["far"]

    # ---- addresses, listening, connecting

    @promise
    async def test_two_names_have_two_addresses(self, tmp_path: Path) -> None:
        """``new_address``: two names give two addresses."""
        async with self.open_transport(tmp_path) as transport:
            addresses = [transport.new_address(f"instance-{number}") for number in range(20)]
            async with (
                transport.listen(addresses[0]) as first,
                transport.listen(addresses[1]) as second,
            ):
                assert first.address != second.address

    @promise
    async def test_addresses_have_the_name_as_scheme(self, tmp_path: Path) -> None:
        """``TransportSpec.name`` is the scheme of its addresses."""
        async with self.open_transport(tmp_path) as transport:
            address = transport.new_address("instance")
            assert address.startswith(f"{self.spec.name}:")
            async with transport.listen(address) as listener:
                assert listener.address.startswith(f"{self.spec.name}:")

    @promise
    async def test_listener_is_ready_on_entry(self, tmp_path: Path) -> None:
        """``listen``: ready when the block is entered; its ``address`` is where a peer connects."""
        async with self.open_pair(tmp_path) as pair:
            assert pair.near.is_connected
            assert pair.far.is_connected

    @promise
    async def test_address_is_free_after_the_block(self, tmp_path: Path) -> None:
        """``listen``: leaving the block frees the address."""
        async with self.open_transport(tmp_path) as transport:
            async with transport.listen(transport.new_address("again")) as listener:
                address = listener.address
                near, far = await self.connect(transport, listener)
            async with near, far, transport.listen(address) as second:
                assert second.address == address
                for end in await self.connect(transport, second):
                    await end.aclose()

    @promise
    async def test_used_address_is_refused(self, tmp_path: Path) -> None:
        """``listen`` raises ``ChannelError`` when the address cannot be used."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("taken")) as listener,
        ):
            with pytest.raises(ChannelError):
                async with transport.listen(listener.address):
                    pytest.fail("two listeners at one address")

    @promise
    async def test_connecting_to_nobody_is_refused(self, tmp_path: Path) -> None:
        """``connect`` raises ``ChannelError`` when nobody listens there."""
        async with self.open_transport(tmp_path) as transport:
            async with transport.listen(transport.new_address("gone")) as listener:
                address = listener.address
            with pytest.raises(ChannelError):
                await transport.connect(address)

    @promise
    async def test_malformed_address_is_refused(self, tmp_path: Path) -> None:
        """``connect`` and ``listen`` raise ``ChannelError`` for a malformed address."""
        async with self.open_transport(tmp_path) as transport:
            for address in ("", "no address at all", "other-scheme://x"):
                with pytest.raises(ChannelError):
                    await transport.connect(address)
                with pytest.raises(ChannelError):
                    async with transport.listen(address):
                        pytest.fail(f"it listens at {address!r}")

    @promise
    async def test_accepted_channels_outlive_the_listener(self, tmp_path: Path) -> None:
        """``listen``: accepted channels live on after the block."""
        async with self.open_transport(tmp_path) as transport:
            async with transport.listen(transport.new_address("short")) as listener:
                near, far = await self.connect(transport, listener)
            async with near, far:
                await near.send(numbered(1))
                assert (await far.receive()).id == 1

    @promise
    async def test_accept_after_close(self, tmp_path: Path) -> None:
        """``accept`` raises ``ChannelClosedError`` after ``aclose``; closing twice is fine."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("closed")) as listener,
        ):
            await listener.aclose()
            await listener.aclose()
            with pytest.raises(ChannelClosedError):
                await listener.accept()

    @promise
    async def test_cancelled_accept_loses_no_connection(self, tmp_path: Path) -> None:
        """``accept``, cancelled: no connection is lost."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("patient")) as listener,
        ):
            for _ in range(5):
                with trio.move_on_after(0.01) as scope:
                    await listener.accept()
                assert scope.cancelled_caught
                near, far = await self.connect(transport, listener)
                async with near, far:
                    await near.send(numbered(7))
                    assert (await far.receive()).id == 7

    @promise
    async def test_cancelled_connect_leaves_nothing_open(self, tmp_path: Path) -> None:
        """``connect``, cancelled: nothing stays open."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("busy")) as listener,
        ):
            before = Resources.now()
            for _ in range(10):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await transport.connect(listener.address)
                assert scope.cancelled_caught
            assert await Resources.settled(before, seconds=self.patience / 4) == []

    @promise
    async def test_connections_are_separate(self, tmp_path: Path) -> None:
        """Each connection to one listener is a channel of its own."""
        async with (
            self.open_transport(tmp_path) as transport,
            transport.listen(transport.new_address("many")) as listener,
        ):
            pairs = [await self.connect(transport, listener) for _ in range(5)]
            for number, (near, _) in enumerate(pairs):
                await near.send(numbered(number))
            assert [(await far.receive()).id for _, far in pairs] == list(range(5))
            await pairs[0][0].aclose()
            assert pairs[1][0].is_connected
            await pairs[1][0].send(numbered(9))
            assert (await pairs[1][1].receive()).id == 9
            for pair in pairs:
                for end in pair:
                    await end.aclose()
