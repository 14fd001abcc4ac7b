"""What ``Resources`` sees."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import partial
from pathlib import Path

import trio

from spear_core.testing import Resources
from spear_core.testing._resources import busy_share, least_busy_share


def test_nothing_new() -> None:
    before = Resources.now()
    assert Resources.now().more_than(before) == []


async def test_a_new_process_and_its_child() -> None:
    before = Resources.now()
    command = ["sh", "-c", "sleep 60 & wait"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, check=False))
        found = Resources.now().more_than(before)
        await trio.run_process(["pkill", "-P", str(process.pid)], check=False)
        nursery.cancel_scope.cancel()
    assert any(f"process {process.pid} " in line for line in found)
    # The grandchild is init's to bury, which takes init a moment.
    assert await Resources.settled(before, seconds=60) == []


def test_a_new_file_and_a_new_thread() -> None:
    before = Resources.now()
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="left-behind")
    thread.start()
    with Path(os.devnull).open():
        found = Resources.now().more_than(before)
    done.set()
    thread.join()
    assert found == ["thread 'left-behind'", "1 open file descriptors"]


async def test_settled_waits_for_what_goes_away() -> None:
    before = Resources.now()
    async with trio.open_nursery() as nursery:
        sleeping = ["sleep", "600"]
        process = await nursery.start(partial(trio.run_process, sleeping, check=False))
        assert await Resources.settled(before, seconds=0.02) != []
        process.terminate()
        assert await Resources.settled(before, seconds=60) == []


async def test_idle_is_not_busy() -> None:
    assert await least_busy_share(seconds=60) < 0.5


async def test_a_looping_child_is_busy() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.run_process, ["sh", "-c", "while :; do :; done"])
        assert await busy_share() > 0.8
        nursery.cancel_scope.cancel()


async def test_a_looping_thread_is_busy() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=_spin, args=[stop])
    thread.start()
    assert await busy_share() > 0.8
    stop.set()
    thread.join()


async def test_a_looping_task_is_busy() -> None:
    async def spin() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        assert await busy_share() > 0.8
        nursery.cancel_scope.cancel()


def _spin(stop: threading.Event) -> None:
    while not stop.is_set():
        hashlib.sha256(bytes(1 << 16))
