"""The client's asyncio and blocking faces, from real programs, against a real node."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import TaskState
from spear_core.client import aio, sync
from spear_core.errors import NodeUnreachableError, TaskCancelledError, TaskFailedError

FUNCTIONS = b"""
import time

from spear_sdk import Context, FunctionError, function


@function
def shout(text: str) -> str:
    return text.upper()


@function
def refuse(ctx: Context) -> None:
    ctx.log.info("about to refuse")
    raise FunctionError("no such city", code="not_found")


@function
def nap(seconds: str, ctx: Context) -> str:
    ctx.log.info("napping")
    time.sleep(float(seconds))
    return "rested"
"""


def client_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "spear-client"]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    """Every test leaves as many threads and open files as it found."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert client_threads() == []
    assert len(os.listdir("/proc/self/fd")) <= before


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_asyncio_program_calls_functions_side_by_side(node: Any) -> None:
    async def main() -> None:
        async with aio.connect(node.url) as client:
            await client.deploy(FUNCTIONS, name="a", filename="a.py")
            answers = await asyncio.gather(*(client.invoke("a:shout", f"n{n}") for n in range(20)))
            assert [answer.text for answer in answers] == [f"N{n}" for n in range(20)]
            with pytest.raises(TaskFailedError, match="no such city") as failed:
                await client.invoke("a:refuse")
            assert failed.value.code == "not_found"
            task = client.task(failed.value.task_id)
            assert [entry.message async for entry in task.logs(follow=True)] == ["about to refuse"]
            submitted = await client.submit("a:shout", "x", timeout_s=30)
            assert (await submitted.wait()).output == b"X"
            assert (await submitted.status()).state is TaskState.COMPLETED
            assert "a" in {artifact.name for artifact in await client.artifacts()}
            assert (await client.status()).pid == node.process.pid
        with pytest.raises(NodeUnreachableError, match="closed"):
            await client.status()

    asyncio.run(main())


def test_cancelling_an_asyncio_task_cancels_the_call(node: Any) -> None:
    async def main() -> None:
        async with aio.connect(node.url) as client:
            await client.deploy(FUNCTIONS, name="a", filename="a.py")
            before = {task.task_id for task in await client.tasks()}
            call = asyncio.create_task(client.invoke("a:nap", "600"))
            while not (new := {t.task_id for t in await client.tasks()} - before):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(TaskCancelledError):
                await client.task(new.pop()).wait()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.invoke("a:nap", "600")
            patient = await client.submit("a:nap", "600")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await patient.wait()
            assert not (await patient.status()).state.is_final
            await patient.cancel()

    asyncio.run(main())


def test_many_threads_share_one_client(node: Any) -> None:
    with sync.connect(node.url) as client:
        client.deploy(FUNCTIONS, name="s", filename="s.py")
        assert len(client_threads()) == 1

        def work(number: int) -> str:
            return client.invoke("s:shout", f"t{number}").text

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(40))) == [f"T{n}" for n in range(40)]
        with pytest.raises(TaskFailedError, match="no such city"):
            client.invoke("s:refuse")
        task = client.submit("s:shout", "x")
        assert task.wait().text == "X"
        assert [entry.message for entry in task.logs()] == []
        assert task.cancel().state is TaskState.COMPLETED


def test_closing_a_client_ends_what_other_threads_wait_for(node: Any) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            client.invoke("s:nap", "600")
        except BaseException as exc:
            raised.append(exc)

    with sync.connect(node.url) as client:
        client.deploy(FUNCTIONS, name="s", filename="s.py")
        worker = threading.Thread(target=work)
        worker.start()
        wait_until(lambda: client.status().running > 0)
    worker.join(60)
    assert [type(exc) for exc in raised] == [NodeUnreachableError]
    with sync.connect(node.url) as client:
        wait_until(lambda: client.status().running == 0)


def test_an_interrupt_cancels_the_call(node: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from spear_core.client.sync import connect\n"
        "with connect(sys.argv[1]) as node:\n"
        "    try:\n"
        "        node.invoke('s:nap', '600', context={'who': 'interrupted'})\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', node.status().pid, flush=True)\n"
    )
    with sync.connect(node.url) as client:
        client.deploy(FUNCTIONS, name="s", filename="s.py")
        before = {task.task_id for task in client.tasks()}
        with subprocess.Popen(
            [sys.executable, str(program), node.url], stdout=subprocess.PIPE, text=True
        ) as process:
            wait_until(lambda: client.status().running > 0)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"interrupted {node.process.pid}\n")
        (new,) = {task.task_id for task in client.tasks()} - before
        with pytest.raises(TaskCancelledError):
            client.task(new).wait()


def test_a_program_that_forgets_to_close_still_ends(node: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from spear_core.client.sync import connect\n"
        "opened = connect(sys.argv[1])\n"
        "node = opened.__enter__()\n"
        "print(node.status().pid)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), node.url], capture_output=True, timeout=60, check=True
    )
    assert int(done.stdout) == node.process.pid


ECHO = b"""
from collections.abc import AsyncIterator

from spear_sdk import function


@function
async def louder(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()
"""


def test_a_stream_goes_both_ways(node: Any) -> None:
    with sync.connect(node.url) as client:
        client.deploy(ECHO, name="echo", filename="echo.py")
        with client.stream("echo:louder") as stream:
            for word in (b"one", b"two"):
                stream.send(word)
                assert next(stream) == word.upper()
            stream.send_eof()
            assert list(stream) == []
            assert stream.result().success
        with client.stream("echo:louder") as left:
            left.send(b"x")
        with pytest.raises(TaskCancelledError):
            client.task(left.task_id).wait()

    async def main() -> None:
        async with aio.connect(node.url) as client, client.stream("echo:louder") as stream:
            await stream.send(b"one")
            await stream.send_eof()
            assert [chunk async for chunk in stream] == [b"ONE"]
            assert (await stream.result()).success

    asyncio.run(main())


def test_nobody_there(tmp_path: Path) -> None:
    with (
        pytest.raises(NodeUnreachableError, match="no node is running"),
        sync.connect(state_dir=tmp_path),
    ):
        raise AssertionError

    async def main() -> None:
        async with aio.connect(state_dir=tmp_path):
            raise AssertionError

    with pytest.raises(NodeUnreachableError, match="no node is running"):
        asyncio.run(main())


def test_what_the_block_raises_comes_out_as_it_is(node: Any) -> None:
    with pytest.raises(ZeroDivisionError), sync.connect(node.url):
        raise ZeroDivisionError
