"""Guests that misbehave: each limit holds, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from spear_core.api import ExecutionStatus, Limits
from spear_core.errors import InstanceLostError

MIB = 1 << 20


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with this word in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if mark in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


async def gone(mark: str) -> bool:
    """Whether they are all gone, give or take the moment the kernel takes."""
    with trio.move_on_after(30):
        while marked(mark):
            await trio.sleep(0.01)
        return True
    return False


def error_of(response: Any) -> Any:
    assert response.status is ExecutionStatus.FAILED
    assert response.error is not None
    return response.error


async def test_memory(place, use_cgroups) -> None:
    hog = "import time\nkeep = []\nwhile True: keep.append(bytearray(1 << 20))\n"
    artifact = place.artifact("hog.py", hog, limits=Limits(memory_bytes=64 * MIB))
    error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert error.code == "resource_exhausted"
    assert error.kind == "memory"
    assert error.message.startswith("hog@1 went over its memory limit of 64 MiB and was ended")


async def test_memory_of_a_whole_tree(place, use_cgroups) -> None:
    text = """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                keep = bytearray(os.urandom(1 << 20) * 24)
                time.sleep(60)
        time.sleep(60)
        """
    artifact = place.artifact("tree.py", text, limits=Limits(memory_bytes=100 * MIB))
    with trio.fail_after(60):
        error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert error.kind == "memory"
    assert error.code == "resource_exhausted"


@pytest.mark.alone
async def test_cpu_time_of_one_process(place, use_cgroups) -> None:
    artifact = place.artifact("spin.py", "while True: pass\n", limits=Limits(cpu_seconds=0.5))
    with trio.fail_after(60):
        error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert error.code == "resource_exhausted"
    assert "0.5 seconds of CPU time" in error.message


async def test_cpu_time_of_a_tree(place, use_cgroups) -> None:
    """Short-lived children don't hide what they use."""
    text = "#!/bin/sh\nwhile true; do python3 -S -c 'sum(range(10**6))'; done\n"
    artifact = place.artifact("relay.sh", text, limits=Limits(cpu_seconds=0.6))
    with trio.fail_after(60):
        error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert "CPU time" in error.message


async def test_open_files(place, use_cgroups) -> None:
    text = "keep = [open('/dev/null') for _ in range(200)]\n"
    artifact = place.artifact("files.py", text, limits=Limits(open_files=100))
    error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert "Too many open files" in error.message


async def test_fork_bomb(place, use_cgroups) -> None:
    text = """
        import os, sys, time
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, __file__, "spear-test-bomb"])
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
        """
    artifact = place.artifact("bomb.py", text, limits=Limits(processes=30))
    with trio.fail_after(60):
        response = await place.run(artifact, use_cgroups=use_cgroups)
    if response.error is not None:  # where the kernel refuses the forks, the bomb fizzles out
        assert "processes" in response.error.message
    assert await gone("spear-test-bomb")


STUBBORN_FLOOD = """#!/usr/bin/env python3
import os
while True:
    try:
        os.write(1, b"y" * 65536)
    except OSError:
        pass
"""


@pytest.mark.parametrize("text", ["#!/bin/sh\nyes\n", STUBBORN_FLOOD], ids=["yes", "stubborn"])
async def test_stdout_flood(place, use_cgroups, text) -> None:
    artifact = place.artifact("yes.sh", text, limits=Limits(output_bytes=MIB))
    with trio.fail_after(30):
        error = error_of(await place.run(artifact, use_cgroups=use_cgroups))
    assert error.code == "resource_exhausted"
    assert error.message == f"yes@1 wrote more than {MIB} bytes to stdout and was killed"


async def test_stderr_flood_does_not_stop_the_result(place) -> None:
    text = "#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x >&2\necho done\n"
    response = await place.run(place.artifact("noisy.sh", text))
    assert response.payload == b"done\n"
    assert max(map(len, place.context.hostcalls.lines())) <= 16 << 10


async def test_a_flood_of_log_lines_leaves_the_node_alive(
    place, single, make_request, hostcalls, use_cgroups
) -> None:
    """And is no way to keep an execution from being cancelled."""
    artifact = place.artifact("flood.sh", "#!/bin/sh\nyes >&2\n")
    most = 0
    async with single(artifact, use_cgroups=use_cgroups) as instance:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(instance.execute, make_request())
                while (seen := len(hostcalls.entries)) < 20_000:
                    await trio.lowlevel.checkpoint()
                    most = max(most, len(hostcalls.entries) - seen)
                nursery.cancel_scope.cancel()
    assert 0 < most <= 4096  # in one pass of the loop: each has its turn


async def test_what_leaves_its_session_ends_with_the_command(place, use_cgroups) -> None:
    text = """
        import os, sys, time
        def sleep():
            code = "import time; time.sleep(60)"
            os.execv(sys.executable, [sys.executable, "-S", "-c", code, "spear-test-escape"])
        if os.fork() == 0:
            sleep()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                sleep()
            os._exit(0)
        time.sleep(0.3)
        print("out")
        """
    with trio.fail_after(30):
        response = await place.run(place.artifact("escape.py", text), use_cgroups=use_cgroups)
    assert response.payload == b"out\n"
    assert await gone("spear-test-escape")


@pytest.mark.alone
async def test_cancel_kills_what_ignores_sigterm(
    place, single, make_request, hostcalls, use_cgroups
) -> None:
    text = """
        import os, signal, sys, time
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, __file__, "spear-test-stubborn"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        print("up", file=sys.stderr, flush=True)
        time.sleep(60)
        """
    artifact = place.artifact("stubborn.py", text)
    async with single(artifact, use_cgroups=use_cgroups, cancel_grace_ms=100) as instance:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instance.execute, make_request())
            while len(hostcalls.lines()) < 2:
                await trio.sleep(0.005)
            assert len(marked("spear-test-stubborn")) == 2
            nursery.cancel_scope.cancel()
        assert not marked("spear-test-stubborn")


async def test_a_killed_launcher_takes_the_guest_with_it(
    place, single, make_request, hostcalls, use_cgroups
) -> None:
    text = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            code = "import time; time.sleep(60)"
            os.execv(sys.executable, [sys.executable, "-S", "-c", code, "spear-test-lost"])
        print("up", file=sys.stderr, flush=True)
        time.sleep(60)
        """
    async with place.open(use_cgroups=use_cgroups) as runtime:
        artifact = place.artifact("long.py", text)
        await runtime.prepare(artifact)
        async with runtime.open_instance(place.spec(artifact)) as instance:
            async with trio.open_nursery() as nursery:

                async def kill() -> None:
                    while not (hostcalls.lines() and marked("spear-test-lost")):
                        await trio.sleep(0.01)
                    os.kill((await runtime._launchers.plain()).pid, signal.SIGKILL)

                nursery.start_soon(kill)
                with trio.fail_after(30), pytest.raises(InstanceLostError, match="launcher"):
                    await instance.execute(make_request())
            assert await gone("spear-test-lost")
        quick = place.artifact("quick.sh", "#!/bin/sh\necho again\n")
        await runtime.prepare(quick)
        async with runtime.open_instance(place.spec(quick)) as instance:
            assert (await instance.execute(make_request())).payload == b"again\n"


async def test_a_killed_monitor_takes_the_guest_with_it(
    single, place, make_request, hostcalls
) -> None:
    text = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            code = "import time; time.sleep(60)"
            os.execv(sys.executable, [sys.executable, "-S", "-c", code, "spear-test-unwatched"])
        print("up", file=sys.stderr, flush=True)
        time.sleep(60)
        """
    async with single(place.artifact("long.py", text), use_cgroups=False) as instance:
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                while not (hostcalls.lines() and marked("spear-test-unwatched")):
                    await trio.sleep(0.01)
                os.kill(instance._guest.process.pid, signal.SIGKILL)

            nursery.start_soon(kill)
            with trio.fail_after(30):
                error = error_of(await instance.execute(make_request()))
        assert error.details["signal"] == "SIGKILL"
        assert await gone("spear-test-unwatched")


NODE = """
import sys, trio
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import Place, RecordingHostcalls, request
from spear_core.api import PluginContext, SpearletConfig
import logging

folder = Path({folder!r})

async def main():
    context = PluginContext(
        node_id="n", plugin="runtime-process", state_dir=folder / "state",
        cache_dir=folder / "cache", run_dir=folder, log=logging.getLogger(),
        hostcalls=RecordingHostcalls(), channels=None, spearlet_config=SpearletConfig(),
    )
    place = Place(context, folder)
    text = '''#!/bin/sh
    setsid python3 -S -c "import time; time.sleep(60)" spear-test-orphan &
    python3 -S -c "import time; time.sleep(60)" spear-test-orphan
    '''
    await place.run(place.artifact("long.sh", text), use_cgroups={use_cgroups})

trio.run(main)
"""


async def test_the_death_of_the_node_ends_its_guests(tmp_path: Path, use_cgroups) -> None:
    program = NODE.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), use_cgroups=use_cgroups
    )
    node = subprocess.Popen([sys.executable, "-c", program])
    try:
        with trio.fail_after(60):
            while len(marked("spear-test-orphan")) < 2:
                assert node.poll() is None
                await trio.sleep(0.02)
    finally:
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
    assert await gone("spear-test-orphan")


@pytest.mark.parametrize("mark", ["spear-test-bomb", "spear-test-escape"])
def test_the_search_for_leftovers_finds_something(mark: str) -> None:
    """The tests above look for processes by name; see that this would find them."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", mark])
    try:
        deadline = time.monotonic() + 30
        while not marked(mark):
            assert time.monotonic() < deadline
    finally:
        process.kill()
        process.wait()
