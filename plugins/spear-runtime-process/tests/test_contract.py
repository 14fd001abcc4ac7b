"""The public contract of runtimes, for each way in which guests are started and held."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spear_core.api import ChannelFactory
from spear_core.testing import RuntimeContract, Sample, check_plugin
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process.plugin import spear_runtimes

(SPEC,) = spear_runtimes()
DEGRADED = ProcessConfig(use_cgroups=False, bwrap="no-such-bwrap")


class OwnChannels(RuntimeContract):
    """This distribution's tests run where no transport is installed, too."""

    @pytest.fixture(autouse=True)
    def _bring_channels(self, make_channels: Callable[[], ChannelFactory]) -> None:
        self._make_channels = make_channels

    @asynccontextmanager
    async def open_channels(self, tmp_path: Path) -> AsyncGenerator[ChannelFactory]:
        yield self._make_channels()


def agent(body: str) -> Sample:
    """Python with the SDK; the function takes and gives bytes."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    head = "import sys, time\nfrom spear_sdk import function\n\n@function\n"
    return Sample(filename="sample.py", content=f"{head}def main(data: bytes) -> bytes:\n{lines}")


class TestCommand(OwnChannels):
    spec = SPEC
    config = ProcessConfig()
    echo = Sample(filename="echo.sh", content="#!/bin/sh\nexec cat\n")
    fails = Sample(filename="fails.sh", content="#!/bin/sh\necho no >&2\nexit 3\n")
    loops = Sample(filename="loops.py", content="while True: pass\n")
    hungry = Sample(filename="hungry.py", content="x = b'x' * (256 << 20)\nprint(len(x))\n")
    logs = Sample(filename="logs.sh", content="#!/bin/sh\necho hello from the guest >&2\n")
    malformed = Sample(filename="malformed", content="#!/no/such/interpreter\n")
    streams = Sample(filename="streams.sh", content="#!/bin/sh\nexec cat\n")
    floods = Sample(filename="floods.sh", content="#!/bin/sh\nexec yes\n")


class TestCommandDegraded(TestCommand):
    config = DEGRADED


class TestAgent(OwnChannels):
    spec = SPEC
    config = ProcessConfig()
    echo = agent("return data")
    fails = agent("raise ValueError('no')")
    loops = agent("while True: pass")
    hungry = agent("x = b'x' * (256 << 20)\nreturn b'%d' % len(x)")
    logs = agent("print('hello from the guest')\nreturn data")
    streams = Sample(
        filename="streams.py",
        content="""
from collections.abc import AsyncIterator
from spear_sdk import function

@function
async def main(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
""",
    )
    meets = Sample(
        filename="meets.py",
        content="""
import asyncio
from spear_sdk import function

here = set()
everybody = asyncio.Condition()

@function
async def main(name: str) -> str:
    print("hello from", name)
    me = object()
    async with everybody:
        here.add(me)
        everybody.notify_all()
        try:
            await everybody.wait_for(lambda: len(here) >= 3)
        except asyncio.CancelledError:
            here.discard(me)
            raise
    return name
""",
    )
    floods = Sample(
        filename="floods.py",
        content="""
from collections.abc import Iterator
from spear_sdk import function

@function
def main(chunks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        yield bytes(4096)
""",
    )


class TestAgentDegraded(TestAgent):
    config = DEGRADED


class TestAgentWithoutZygote(TestAgent):
    config = ProcessConfig(zygote="off")


def test_the_plugin_is_in_order() -> None:
    assert check_plugin("runtime-process") == []
