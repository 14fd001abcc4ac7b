"""The node's channel factory over real transports: order, fallback, secrets."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    Channel,
    ChannelConfig,
    ChannelListener,
    Message,
    MessageKind,
    RuntimeInstanceId,
    RuntimeSpec,
    Transport,
)
from spear_core.builtins.memory_transport import MemoryTransport
from spear_core.errors import (
    ChannelAuthError,
    ChannelCreationError,
    ChannelError,
    UnsupportedTransportError,
)
from spear_core.node._channels import NodeChannels
from spear_core.plugins import Owned, load_plugins
from spear_core.rpc import hello

ME = RuntimeInstanceId(runtime_type="steered", instance_id="i-1")


class BrokenTransport(Transport):
    def new_address(self, name: str) -> str:
        return f"broken://{name}"

    async def connect(self, address: str) -> Channel:
        raise AssertionError

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        raise ChannelError("the wire is cut")
        yield


class TwoTransports:
    """The only thing of the services that the factory uses."""

    def __init__(self) -> None:
        self.memory = MemoryTransport()

    async def transport(self, name: str) -> Transport:
        if name == "memory":
            return self.memory
        if name == "broken":
            return BrokenTransport()
        raise UnsupportedTransportError(name)


@pytest.fixture
def services() -> TwoTransports:
    return TwoTransports()


@pytest.fixture
def make_channels(services: Any, log: logging.Logger) -> Callable[..., NodeChannels]:
    def make(*wanted: str, chosen: str | None = None) -> NodeChannels:
        def unused(*args: object) -> Any:
            raise AssertionError

        spec = RuntimeSpec(
            name="steered", open=unused, config_cls=object, recognise=unused, transports=wanted
        )
        plugins = attrs.evolve(
            load_plugins([]),
            runtimes={"steered": Owned(spec, "p")},
            transports={"memory": Owned(spec, "p"), "broken": Owned(spec, "p")},
        )

        class Choosing:
            runtimes = plugins.runtimes
            transports = plugins.transports

            def choose_transport(self, runtime: str, offered: Sequence[str]) -> str | None:
                return chosen

        return NodeChannels(services, Choosing(), node_id="n-1", log=log)  # type: ignore[arg-type]

    return make


async def test_the_next_transport_is_taken_when_the_favourite_fails(make_channels: Any) -> None:
    async with make_channels("broken", "absent", "memory").open_offer(ME) as offer:
        assert offer.transport == "memory"
        assert len(offer.secret) == 32


async def test_a_plugins_choice_goes_first(make_channels: Any) -> None:
    channels = make_channels("memory", "broken", chosen="broken")
    assert channels._strategy("steered") == ["broken", "memory"]


async def test_when_all_fail_every_reason_is_given(make_channels: Any) -> None:
    with pytest.raises(ChannelCreationError, match="broken: the wire is cut") as failed:
        async with make_channels("broken").open_offer(ME):
            pass
    assert failed.value.failures == (("broken", "the wire is cut"),)


async def test_a_runtime_without_an_installed_transport_hears_what_to_install(
    make_channels: Any,
) -> None:
    with pytest.raises(ChannelCreationError, match="pip install spear-transport-unix"):
        async with make_channels("unix").open_offer(ME):
            pass


async def test_only_the_right_secret_of_the_right_instance_gets_in(
    make_channels: Any, services: TwoTransports
) -> None:
    async with make_channels("memory").open_offer(ME) as offer:
        right = {"role": "instance", "instance": "i-1", "secret": offer.secret}
        refused = 0

        async def knock() -> None:
            nonlocal refused
            for wrong in (
                {**right, "secret": b"x" * 32},
                {**right, "secret": "text"},
                {**right, "instance": "i-2"},
                {},
            ):
                with pytest.raises(ChannelAuthError):
                    await hello(await services.memory.connect(offer.address), wrong)
                refused += 1
            channel = await services.memory.connect(offer.address)
            assert (await hello(channel, right))["node"] == "n-1"
            await channel.send(Message(MessageKind.PING, payload=b"me"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            channel = await offer.accept()
        assert refused == 4
        assert (await channel.receive()).payload == b"me"
    assert channel.is_connected


async def test_a_peer_that_says_nothing_does_not_block_the_instance(
    make_channels: Any, services: TwoTransports, autojump_clock: Any
) -> None:
    async with make_channels("memory").open_offer(ME) as offer:
        await services.memory.connect(offer.address)

        async def come_later() -> None:
            await trio.sleep(1)
            channel = await services.memory.connect(offer.address)
            await hello(channel, {"instance": "i-1", "secret": offer.secret})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_later)
            await offer.accept()
        assert trio.current_time() < 10


async def test_a_channel_for_a_runtime_alone_is_one_for_a_new_instance(
    make_channels: Any, services: TwoTransports
) -> None:
    channels = make_channels("broken", "memory")
    async with (
        channels.create_channel("steered", None) as one,
        channels.create_channel("steered") as other,
    ):
        assert one.transport == other.transport == "memory"
        assert one.instance_id.runtime_type == "steered"
        assert one.instance_id != other.instance_id
        assert one.address != other.address
        assert one.secret != other.secret


async def test_a_channel_for_an_instance_is_as_its_runtime_wants_it(make_channels: Any) -> None:
    async with make_channels("memory").create_channel_for_instance(ME) as offer:
        assert (offer.instance_id, offer.transport) == (ME, "memory")


async def test_a_config_names_the_transports_to_try(make_channels: Any) -> None:
    channels = make_channels("memory")
    config = ChannelConfig(transports=("absent", "broken"))
    with pytest.raises(ChannelCreationError) as failed:
        async with channels.create_channel_for_instance(ME, config):
            pass
    assert [name for name, _ in failed.value.failures] == ["absent", "broken"]
    async with channels.create_channel("steered", ChannelConfig()) as offer:
        assert offer.transport == "memory"


async def test_an_instance_cannot_take_the_channel_of_another(
    make_channels: Any, services: TwoTransports
) -> None:
    channels = make_channels("memory")
    async with (
        channels.create_channel("steered") as mine,
        channels.create_channel("steered") as other,
    ):
        own = {"instance": other.instance_id.instance_id, "secret": other.secret}
        posing = {**own, "instance": mine.instance_id.instance_id}

        async def knock() -> None:
            for wrong in (own, posing):
                with pytest.raises(ChannelAuthError):
                    await hello(await services.memory.connect(mine.address), wrong)
            right = {"instance": mine.instance_id.instance_id, "secret": mine.secret}
            mine_channel = await services.memory.connect(mine.address)
            await hello(mine_channel, right)
            other_channel = await services.memory.connect(other.address)
            await hello(other_channel, own)
            await mine_channel.send(Message(MessageKind.PING, payload=b"mine"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            channel = await mine.accept()
            others = await other.accept()
        assert (await channel.receive()).payload == b"mine"
        # Statistics are each channel's own: the other instance has only said hello.
        assert channel.statistics().messages_received == 2
        assert others.statistics().messages_received == 1


INSTALLED = {"process": ["unix", "tcp"], "wasm": ["memory"]}


@pytest.mark.parametrize("runtime", INSTALLED)
def test_the_strategies_of_our_runtimes(runtime: str, log: logging.Logger) -> None:
    plugins = load_plugins()
    if runtime not in plugins.runtimes:
        pytest.skip(f"the runtime {runtime} is not installed")
    channels = NodeChannels(None, plugins, node_id="n", log=log)  # type: ignore[arg-type]
    assert channels._strategy(runtime) == INSTALLED[runtime]
