"""What ``Resources`` sees."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import trio

from spear_core.testing import Resources


def test_nothing_new() -> None:
    before = Resources.now()
    assert Resources.now().more_than(before) == []


def test_a_new_process_and_its_child() -> None:
    before = Resources.now()
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], stdout=subprocess.DEVNULL) as process:
        try:
            found = Resources.now().more_than(before)
            assert any(f"process {process.pid} " in line for line in found)
        finally:
            subprocess.run(["pkill", "-P", str(process.pid)], check=False)
            process.kill()
    assert Resources.now().more_than(before) == []


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
        await nursery.start(trio.run_process, ["sleep", "0.2"])
        assert await Resources.settled(before, seconds=0.02) != []
        assert await Resources.settled(before, seconds=5) == []


def test_cpu_of_children_counts() -> None:
    before = Resources.now().cpu_seconds
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as process:
        while Resources.now().cpu_seconds - before < 0.1:
            assert process.poll() is None
        process.kill()
