"""A real runtime that cannot work for a while: the others go on, and it comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi, RetryPolicy
from spear_core.builtins.local_socket import connect
from spear_core.errors import RuntimeUnavailableError

AGENT = b"""
from spear_sdk import function


@function
def where(text: str) -> str:
    return "a process"
"""
ONCE = RetryPolicy(attempts=1)
EMPTY_WAT = b'(module (memory (export "memory") 1) (func (export "_start")))'


def launchers_of(node: Any) -> list[int]:
    """The processes that the node's process runtime starts guests with."""
    found = []
    for tasks in Path(f"/proc/{node.process.pid}/task").iterdir():
        with suppress(OSError):  # a thread or a process that has just ended
            for pid in (tasks / "children").read_text().split():
                if b"spear_runtime_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def wait_for_health(api: NodeApi, health: str) -> str:
    """Until the node's status says that of the runtime ``process``, and what else it says."""
    while True:
        for runtime in (await api.status()).runtimes:
            if runtime.name == "process" and runtime.health == health:
                return runtime.message
        await trio.sleep(0.05)


async def runs(api: NodeApi, function: str) -> bool:
    return (await api.invoke(InvokeRequest(function=function))).success


async def wait_until_refused(api: NodeApi, function: str) -> RuntimeUnavailableError:
    """Until a call is refused before anything is made for it."""
    while True:
        try:
            await api.invoke(InvokeRequest(function=function))
        except RuntimeUnavailableError as refused:
            return refused
        await trio.sleep(0.05)


async def wait_until_accepted(api: NodeApi, function: str) -> bool:
    """Whether it runs, once it is accepted again: the runtime is asked every second."""
    while True:
        with suppress(RuntimeUnavailableError):
            return await runs(api, function)
        await trio.sleep(0.05)


async def deploy(api: NodeApi) -> None:
    for name in ("first", "second"):
        upload = ArtifactUpload(name=name, filename=f"{name}.py", content=AGENT, retry=ONCE)
        await api.deploy(upload)
    await api.deploy(ArtifactUpload(name="wasm", filename="wasm.wat", content=EMPTY_WAT))


@pytest.mark.slow
async def test_processes_that_cannot_be_started_are_refused_at_once_and_wasm_goes_on(
    start_node: Callable[..., Any],
) -> None:
    config = "[execution]\ncircuit_failures = 0\n"
    node = start_node(config)
    file = node.state.parent / "config.toml"
    async with connect(node.url) as api:
        with trio.fail_after(240):
            await deploy(api)
            assert await runs(api, "first")
            assert await runs(api, "wasm")
            await wait_for_health(api, "healthy")
            launchers = launchers_of(node)
            assert launchers
            file.write_text(f"{config}[pool]\nstart_timeout_ms = 1000\n")
            await api.reload_config()
            with stopped(launchers):
                assert not await runs(api, "second")
                assert "launcher" in await wait_for_health(api, "unhealthy")
                refused = await wait_until_refused(api, "second")
                assert "unhealthy" in refused.message
                assert (refused.code, refused.retryable) == ("unavailable", True)
                assert await runs(api, "wasm")
            file.write_text(config)
            await api.reload_config()
            await wait_for_health(api, "healthy")
            assert await wait_until_accepted(api, "second")


async def test_a_launcher_that_is_killed_is_started_again_by_whoever_asks_first(
    start_node: Callable[..., Any],
) -> None:
    node = start_node()
    async with connect(node.url) as api:
        with trio.fail_after(120):
            await deploy(api)
            assert await runs(api, "first")
            killed = set(launchers_of(node))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            while killed & set(launchers_of(node)):  # noqa: ASYNC110 - until the node has seen it
                await trio.sleep(0.01)
            await wait_for_health(api, "healthy")
            assert set(launchers_of(node)) - killed
            assert await runs(api, "wasm")
            assert await runs(api, "second")
