"""The fakes behave as the node does."""

from __future__ import annotations

import gc
import stat
from pathlib import Path

import pytest
import trio

from spear_core.api import Message, MessageKind, RuntimeInstanceId
from spear_core.errors import ChannelCreationError, SpearError, UnsupportedTransportError
from spear_core.rpc import hello
from spear_core.testing import FakeChannels, FakeHostcalls, make_context, open_channels

WHO = RuntimeInstanceId(runtime_type="toy", instance_id="i1")


def test_hostcalls_keep_what_was_logged() -> None:
    hostcalls = FakeHostcalls()
    hostcalls.log("e1", "one\n", level="warn", source="stderr")
    hostcalls.log("e2", "two")
    hostcalls.log("e1", "three")
    assert hostcalls.text_of("e1") == "one\nthree"
    first = hostcalls.entries[0]
    assert (first.message, first.level, first.source) == ("one", "warn", "stderr")


async def test_hostcalls_answer_from_the_table() -> None:
    hostcalls = FakeHostcalls({"text.upper": bytes.upper})
    assert await hostcalls.call("e1", "text.upper", b"x") == b"X"
    with pytest.raises(SpearError, match=r"text\.lower") as caught:
        await hostcalls.call("e1", "text.lower", b"x")
    assert caught.value.code == "unimplemented"
    assert hostcalls.calls == [("e1", "text.upper", b"x"), ("e1", "text.lower", b"x")]


def test_two_contexts_share_what_survives_a_restart(tmp_path: Path) -> None:
    first, second = make_context(tmp_path), make_context(tmp_path)
    assert first.state_dir == second.state_dir
    assert first.cache_dir == second.cache_dir
    assert first.run_dir != second.run_dir
    assert not first.state_dir.exists(), "made on demand by the plugin"
    assert make_context(tmp_path, plugin="other").state_dir != first.state_dir


def test_run_dir_is_private_short_and_goes_with_the_context(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    run_dir = context.run_dir
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert len(str(run_dir)) < 60
    del context
    gc.collect()
    assert not run_dir.exists()


async def test_an_offer_takes_only_the_instance_with_the_secret(tmp_path: Path) -> None:
    accepted = []
    async with (
        open_channels(tmp_path, ["memory"]) as channels,
        channels.open_offer(WHO) as offer,
    ):
        transport = channels._transports["memory"]

        async def accept() -> None:
            accepted.append(await offer.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stranger = await transport.connect(offer.address)
            head = {"v": 1, "role": "instance", "instance": "i1", "pid": 1, "agent": "test"}
            with pytest.raises((SpearError, trio.EndOfChannel)):
                await hello(stranger, {**head, "secret": bytes(32)})
            await stranger.aclose()
            assert not accepted
            instance = await transport.connect(offer.address)
            await hello(instance, {**head, "secret": offer.secret})
        await instance.send(Message(kind=MessageKind.NOTICE, id=4))
        assert (await accepted[0].receive()).id == 4
        await instance.aclose()
        await accepted[0].aclose()
        assert offer.transport == "memory"


async def test_no_transport_no_offer() -> None:
    with pytest.raises(ChannelCreationError, match="none is installed"):
        async with FakeChannels().open_offer(WHO):
            pytest.fail("an offer on nothing")


async def test_none_of_the_transports_is_installed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTransportError, match="pigeon"):
        async with open_channels(tmp_path, ["pigeon"]):
            pytest.fail("opened a pigeon")


async def test_transports_that_are_not_installed_are_left_out(tmp_path: Path) -> None:
    async with (
        open_channels(tmp_path, ["pigeon", "memory"]) as channels,
        channels.open_offer(WHO) as offer,
    ):
        assert offer.transport == "memory"


async def test_a_local_pair_is_connected() -> None:
    near, far = FakeChannels().local_pair(WHO)
    async with near, far:
        await near.send(Message(kind=MessageKind.NOTICE, id=2))
        assert (await far.receive()).id == 2
