"""Channels of instances over every installed transport: whose they are, and that they last."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import (
    Channel,
    ChannelConfig,
    ChannelOffer,
    Message,
    MessageKind,
    RuntimeInstanceId,
    Transport,
)
from spear_core.errors import ChannelError
from spear_core.node._channels import NodeChannels
from spear_core.plugins import load_plugins
from spear_core.rpc import hello
from spear_core.testing import make_context

TRANSPORTS = sorted(load_plugins().transports)


class OneTransport:
    """The only thing of the services that the factory uses."""

    def __init__(self, name: str, transport: Transport) -> None:
        self._name = name
        self._transport = transport

    async def transport(self, name: str) -> Transport:
        assert name == self._name
        return self._transport


@asynccontextmanager
async def opened(name: str, folder: Path) -> AsyncIterator[tuple[NodeChannels, Transport]]:
    plugins = load_plugins()
    spec: Any = plugins.transports[name].spec
    async with spec.open(make_context(folder), spec.config_cls()) as transport:
        services: Any = OneTransport(name, transport)
        log = logging.getLogger("spear.test")
        yield NodeChannels(services, plugins, node_id="n-1", log=log), transport


async def knock(transport: Transport, at: ChannelOffer, *, instance: str, secret: bytes) -> Channel:
    """What a worker does. Raises: ChannelError when it is turned away."""
    channel = await transport.connect(at.address)
    try:
        await hello(channel, {"instance": instance, "secret": secret})
    except BaseException:
        await trio.aclose_forcefully(channel)
        raise
    return channel


@pytest.mark.parametrize("name", TRANSPORTS)
async def test_an_instance_gets_in_at_its_own_address_only(name: str, tmp_path: Path) -> None:
    config = ChannelConfig(transports=(name,))
    mine_id, other_id = (
        RuntimeInstanceId(runtime_type="process", instance_id=each) for each in ("i-1", "i-2")
    )
    async with (
        opened(name, tmp_path) as (channels, transport),
        channels.create_channel_for_instance(mine_id, config) as mine,
        channels.create_channel_for_instance(other_id, config) as other,
    ):
        assert mine.transport == other.transport == name
        assert mine.secret != other.secret
        accepted: dict[str, Channel] = {}

        async def accept(offer: ChannelOffer) -> None:
            accepted[offer.instance_id.instance_id] = await offer.accept()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for offer in (mine, other):
                    nursery.start_soon(accept, offer)
                for instance, secret in [
                    ("i-2", other.secret),  # another one, with what is its own
                    ("i-1", other.secret),  # posing
                    ("i-2", mine.secret),  # with a secret that it has found
                    ("i-1", mine.secret[:-1]),
                    ("i-1", b""),
                ]:
                    with pytest.raises(ChannelError):
                        await knock(transport, mine, instance=instance, secret=secret)
                    assert not accepted
                near = await knock(transport, mine, instance="i-1", secret=mine.secret)
                far = await knock(transport, other, instance="i-2", secret=other.secret)
            async with near, far:
                await near.send(Message(MessageKind.PING, payload=b"mine"))
                assert (await accepted["i-1"].receive()).payload == b"mine"
                # Its HELLO and this; the other instance has only said hello.
                assert accepted["i-1"].statistics().messages_received == 2
                assert accepted["i-2"].statistics().messages_received == 1
                for channel in accepted.values():
                    await channel.aclose()
