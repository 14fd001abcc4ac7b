"""Agents: warm executions, hostcalls, logs, health, death, cancellation, shutdown."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trio.testing

from spear_core.api import ExecutionStatus, IsolationLevel, Limits
from spear_core.errors import (
    InstanceError,
    InstanceLostError,
    InstanceStartError,
    IsolationUnavailableError,
)
from spear_runtime_process._cgroup import find_cgroups
from spear_runtime_process._inside import wire
from spear_runtime_process._machine import look_around

HAS_CGROUPS = find_cgroups()[0] is not None
ECHO = """
    import os, sys, time
    from spear_sdk import Context, function

    @function
    def main(data: bytes) -> bytes:
        return data

    @function
    def pid() -> str:
        return str(os.getpid())

    @function
    def talk(ctx: Context) -> str:
        print("printed")
        print("complained", file=sys.stderr)
        sys.stdout.write("no newline")
        ctx.log.warn("logged")
        return "said"

    @function
    def shout(data: bytes, ctx: Context) -> bytes:
        return ctx.hostcall("upper", data)

    @function
    def misuse(data: bytes, ctx: Context) -> bytes:
        ctx.execution_id = "someone-elses"
        ctx.log.info("not mine")
        try:
            return ctx.hostcall("upper", data)
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}".encode()

    @function
    def fail() -> None:
        raise ValueError("no good")

    @function
    def spin() -> None:
        print("spinning", flush=True)
        while True:
            pass

    @function
    def stubborn() -> None:
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
        print("stubborn", flush=True)
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass

    @function
    def hog() -> None:
        keep = []
        while True:
            keep.append(bytearray(1 << 20))
    """


@pytest.fixture(params=["zygote", "cold"])
def start(request: pytest.FixtureRequest) -> dict[str, str]:
    """Both ways in which an agent's process comes to be."""
    return {"zygote": "lazy" if request.param == "zygote" else "off"}


@pytest.fixture
def echo(place: Any) -> Any:
    return place.artifact("echo.py", ECHO)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits to be collected doesn't."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def call(instance: Any, make_request: Any, entry: str, payload: bytes = b"") -> Any:
    return await instance.execute(make_request(payload, entry=entry))


async def test_one_worker_serves_many(single, echo, make_request, start, use_cgroups) -> None:
    async with single(echo, use_cgroups=use_cgroups, **start) as instance:
        pids = {(await call(instance, make_request, "pid")).payload for _ in range(3)}
        assert pids == {str(instance.statistics().pid).encode()}
        response = await call(instance, make_request, "main", b"\0\1\2" * 100_000)
        assert response.payload == b"\0\1\2" * 100_000
        assert response.usage.isolation >= IsolationLevel.SYSCALLS
        await instance.check_health()
        statistics = instance.statistics()
        assert statistics.executions == 4
        assert statistics.memory_bytes > 1 << 20
        assert statistics.cpu_seconds > 0


async def test_the_zygote_forks_and_the_cold_start_does_not(
    single, echo, make_request, start
) -> None:
    async with single(echo, **start) as instance:
        line = psutil.Process(instance.statistics().pid).cmdline()
        # a forked worker has the command line of the zygote, which serves a descriptor
        assert ('"descriptor"' in line[-1]) == (start["zygote"] == "lazy")


async def test_it_ends_with_its_block_and_by_itself(single, echo, make_request, start) -> None:
    async with single(echo, stop_grace_ms=60_000, **start) as instance:
        process = psutil.Process(int((await call(instance, make_request, "pid")).payload))
        assert alive(process)
    assert not alive(process)
    ended = await instance._guest.process.wait()
    assert (ended.code, ended.signal) == (0, None)  # nobody had to end it


async def test_what_is_printed_and_logged_belongs_to_the_execution(
    single, echo, make_request, hostcalls, start
) -> None:
    async with single(echo, **start) as instance:
        request = make_request(entry="talk")
        await instance.execute(request)
        entries = set(hostcalls.entries)
        assert entries == {
            (request.execution_id, "info", "stdout", "printed"),
            (request.execution_id, "info", "stderr", "complained"),
            (request.execution_id, "info", "stdout", "no newline"),
            (request.execution_id, "warn", "guest", "logged"),
        }


@pytest.mark.parametrize("name", ["stdout", "stderr"])
async def test_what_lies_in_a_pipe_is_taken_before_an_answer_is_given(
    single, echo, make_request, hostcalls, start, name: str
) -> None:
    async with single(echo, **start) as instance:
        pid = int((await call(instance, make_request, "pid")).payload)
        number = {"stdout": 1, "stderr": 2}[name]
        Path(f"/proc/{pid}/fd/{number}").write_text("in the pipe")
        instance._drain()  # nobody else has had a turn to read it
        assert hostcalls.lines(name) == ["in the pipe"]


async def test_the_end_of_a_line_does_not_have_to_be_printed(
    single, echo, make_request, hostcalls, start
) -> None:
    async with single(echo, **start) as instance:
        instance.stdout.feed(b"all but its end")  # as it does with what comes while the code runs
        await call(instance, make_request, "main")
        assert hostcalls.lines("stdout") == ["all but its end"]


@pytest.mark.parametrize("told", [None, 42.0])
async def test_the_cpu_time_of_an_execution_is_told_or_measured(
    single, place, make_request, start, told: float | None
) -> None:
    usage = {} if told is None else {"cpu_seconds": told}
    artifact = place.artifact(
        "busy.py",
        f"""
        import time
        from spear_sdk import _worker, function
        from spear_sdk._msgpack import pack

        usage = pack("usage") + pack({usage!r})
        _worker.Worker._usage_head = lambda self: usage

        @function
        def busy() -> None:
            until = time.process_time() + 0.01
            while time.process_time() < until:
                pass
        """,
    )
    async with single(artifact, **start) as instance:
        for _ in range(2):
            spent = (await call(instance, make_request, "busy")).usage.cpu_seconds
            assert spent >= 0.01 if told is None else spent == told


async def test_nothing_of_the_nodes_environment_leaks(
    single, place, make_request, start, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-node")
    monkeypatch.setenv("TZ", "UTC")  # one that the launcher keeps for itself
    text = """
        import os
        from spear_sdk import function

        @function
        def main(data: bytes) -> bytes:
            with open("/proc/self/environ", "rb") as file:
                return file.read() + repr(dict(os.environ)).encode()
        """
    artifact = place.artifact("env.py", text, env={"OWN": "given"})
    async with single(artifact, **start) as instance:
        seen = (await call(instance, make_request, "main")).payload
        assert b"secret-of-the-node" not in seen
        assert b"'OWN': 'given'" in seen
        assert b"'TZ'" not in seen


async def test_hostcalls_are_answered(single, echo, make_request, start) -> None:
    async with single(echo, **start) as instance:
        assert (await call(instance, make_request, "shout", b"hey")).payload == b"HEY"


async def test_hostcalls_are_for_the_running_execution_only(
    single, echo, make_request, hostcalls, start
) -> None:
    async with single(echo, **start) as instance:
        answer = (await call(instance, make_request, "misuse", b"hey")).payload
        assert b"is not running here" in answer
        assert not hostcalls.entries


async def test_an_exception_is_a_response_and_the_worker_goes_on(
    single, echo, make_request, start
) -> None:
    async with single(echo, **start) as instance:
        response = await call(instance, make_request, "fail")
        assert response.status is ExecutionStatus.FAILED
        assert response.error.kind == "ValueError"
        assert "no good" in response.error.message
        assert (await call(instance, make_request, "main", b"x")).payload == b"x"


@pytest.mark.alone
async def test_kill_9_in_mid_execution_is_told_at_once(
    single, echo, make_request, hostcalls, start, use_cgroups
) -> None:
    async with single(echo, use_cgroups=use_cgroups, **start) as instance:
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                while "spinning" not in hostcalls.lines("stdout"):
                    await trio.sleep(0.005)
                os.kill(instance.statistics().pid, signal.SIGKILL)

            nursery.start_soon(kill)
            with trio.fail_after(30), pytest.raises(InstanceLostError, match="SIGKILL"):
                await call(instance, make_request, "spin")
        with trio.fail_after(30):
            assert "SIGKILL" in await instance.wait_failed()
        with pytest.raises(InstanceError):
            await instance.check_health()


async def test_an_idle_worker_that_dies_is_noticed(single, echo, start) -> None:
    async with single(echo, **start) as instance:
        os.kill(instance.statistics().pid, signal.SIGTERM)
        with trio.fail_after(30):
            assert "echo@1" in await instance.wait_failed()


@pytest.mark.alone
async def test_cancel_stops_a_function_that_never_looks_up(
    single, echo, make_request, hostcalls, start
) -> None:
    async with single(echo, **start) as instance:
        process = psutil.Process(instance.statistics().pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, instance, make_request, "spin")
            while "spinning" not in hostcalls.lines("stdout"):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert not alive(process)


LAST_WORDS = """
    import os, sys, time
    from spear_sdk import Context, function

    def say_much(ctx):
        for number in range(3000):
            ctx.log.info(f"word {number}")
        print("printed")
        sys.stdout.flush()
        sys.stderr.write("complained")
        sys.stderr.flush()

    @function
    def cancelled(ctx: Context) -> None:
        ctx.log.info("begun")
        while not ctx.cancelled:
            time.sleep(0.001)
        say_much(ctx)
        ctx.raise_if_cancelled()

    @function
    def exits(ctx: Context) -> None:
        ctx.log.info("begun")
        say_much(ctx)
        os._exit(3)
    """


@pytest.fixture
def busy_node(hostcalls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes in what workers log so slowly that a dead one's last entries still wait to be read."""
    log = hostcalls.log

    def slowly(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.0002)
        log(*args, **kwargs)

    monkeypatch.setattr(type(hostcalls), "log", lambda _, *args, **kwargs: slowly(*args, **kwargs))


def assert_heard_out(hostcalls: Any) -> None:
    """Everything that `say_much` says is there, what came one way in its order."""
    said = [text for _, _, source, text in hostcalls.entries if source == "guest"]
    assert said == ["begun", *(f"word {number}" for number in range(3000))]
    assert hostcalls.lines("stdout") == ["printed"]
    assert hostcalls.lines("stderr") == ["complained"]


@pytest.mark.usefixtures("busy_node")
@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_the_last_words_of_what_is_cancelled_are_heard(
    way, single, place, make_request, hostcalls
) -> None:
    artifact = place.artifact("last_words.py", LAST_WORDS)
    async with single(artifact, cancel_grace_ms=30_000) as instance:

        async def run() -> None:
            request = make_request(entry="cancelled", deadline_s=30)
            if way == "execute":
                await instance.execute(request)
            async with instance.stream(request) as stream:
                await stream.send_eof()
                await stream.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with trio.fail_after(30):
                while not hostcalls.entries:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert_heard_out(hostcalls)


@pytest.mark.usefixtures("busy_node")
async def test_the_last_words_of_a_worker_that_exits_are_heard(
    single, place, make_request, hostcalls
) -> None:
    artifact = place.artifact("last_words.py", LAST_WORDS)
    async with single(artifact) as instance:
        with trio.fail_after(30), pytest.raises(InstanceLostError, match="exit code 3"):
            await instance.execute(make_request(entry="exits", deadline_s=30))
        assert_heard_out(hostcalls)


async def test_cancel_kills_what_clings(
    single, echo, make_request, hostcalls, start, use_cgroups
) -> None:
    opened = single(echo, use_cgroups=use_cgroups, cancel_grace_ms=100, **start)
    async with opened as instance:
        process = psutil.Process(instance.statistics().pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, instance, make_request, "stubborn")
            while "stubborn" not in hostcalls.lines("stdout"):
                await trio.sleep(0.005)
            family = [process, *process.children(recursive=True)]
            assert len(family) >= 2
            nursery.cancel_scope.cancel()
        assert not [member for member in family if alive(member)]


@pytest.mark.alone
async def test_memory_limit(single, place, make_request, start, use_cgroups) -> None:
    artifact = place.artifact("hog.py", ECHO, limits=Limits(memory_bytes=96 << 20))
    async with single(artifact, use_cgroups=use_cgroups, **start) as instance:
        response = await call(instance, make_request, "hog")
        assert response.status is ExecutionStatus.FAILED
        if response.error.kind == "MemoryError":  # RLIMIT_DATA; the worker lives on
            assert not (use_cgroups and HAS_CGROUPS)
        else:
            assert response.error.code == "resource_exhausted"
            assert "memory limit of 96 MiB" in response.error.message
            with trio.fail_after(30):
                await instance.wait_failed()


async def test_cpu_limit_is_for_each_execution(single, place, make_request, start) -> None:
    artifact = place.artifact("busy.py", ECHO, limits=Limits(cpu_seconds=0.4))
    async with single(artifact, **start) as instance:
        assert (await call(instance, make_request, "main", b"x")).payload == b"x"
        response = await call(instance, make_request, "spin")
        assert response.error.code == "resource_exhausted"
        assert "0.4 seconds of CPU time" in response.error.message


async def test_output_limit(single, place, make_request, start) -> None:
    artifact = place.artifact("big.py", ECHO, limits=Limits(output_bytes=1000))
    async with single(artifact, **start) as instance:
        response = await call(instance, make_request, "main", b"x" * 1001)
        assert response.error.code == "resource_exhausted"
        assert (await call(instance, make_request, "main", b"x" * 1000)).payload == b"x" * 1000


async def test_tcp_serves_as_well(place, single, echo, make_request, context, start) -> None:
    context.channels.transport = "tcp"
    async with single(echo, network=False, **start) as instance:
        assert (await call(instance, make_request, "main", b"x")).payload == b"x"


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_one_connection_serves_a_worker_for_life(
    transport, single, echo, make_request, context
) -> None:
    context.channels.transport = transport
    async with single(echo) as instance:
        await call(instance, make_request, "main", b"first")
        before = psutil.Process(instance.statistics().pid).num_fds()
        for number in range(20):
            payload = str(number).encode()
            assert (await call(instance, make_request, "main", payload)).payload == payload
            assert (await call(instance, make_request, "shout", b"x")).payload == b"X"
            async with instance.stream(make_request(entry="main", deadline_s=30)) as stream:
                await stream.send(payload)
                await stream.send_eof()
                assert await stream.receive() == payload
                await stream.result()
            await instance.check_health()
        (channel,) = context.channels.accepted
        assert channel.statistics().messages_received > 80
        assert psutil.Process(instance.statistics().pid).num_fds() == before


async def test_namespaces_mean_a_cold_start(single, place, make_request) -> None:
    artifact = place.artifact("echo.py", ECHO, required_isolation=IsolationLevel.NAMESPACES)
    machine = await look_around(bwrap="bwrap", use_cgroups=False)
    if not machine.bwrap:
        with pytest.raises(IsolationUnavailableError, match="bwrap"):
            await place.run(artifact)
        return
    async with single(artifact) as instance:
        response = await call(instance, make_request, "pid")
        assert int(response.payload) <= 3  # of its own process namespace
        assert response.usage.isolation >= IsolationLevel.NAMESPACES


async def test_code_that_cannot_be_loaded_says_why(single, place, make_request, start) -> None:
    artifact = place.artifact("broken.py", "import spear_sdk\nimport no_such_module\n")
    async with single(artifact, **start) as instance:
        response = await call(instance, make_request, "")
        assert response.status is ExecutionStatus.FAILED
        assert "no_such_module" in response.error.message


async def test_a_worker_that_ends_before_it_connects(single, echo, start, monkeypatch) -> None:
    monkeypatch.setattr("spear_runtime_process._agent.SDK_WORKER", "no_such_worker")
    with pytest.raises(InstanceStartError, match="no_such_worker"):
        async with single(echo, **start):
            pass


async def test_the_zygote_is_started_again(place, echo) -> None:
    async with place.open() as runtime:
        await runtime.prepare(echo)
        async with runtime.open_instance(place.spec(echo)) as instance:
            zygote = await runtime._launchers.zygote()
            os.kill(zygote.pid, signal.SIGKILL)
            with trio.fail_after(30):
                assert "SIGKILL" in await instance.wait_failed()
        async with runtime.open_instance(place.spec(echo)) as instance:
            await instance.check_health()
            assert await runtime._launchers.zygote() is not zygote


async def test_a_module_that_cannot_be_preloaded_is_reported(
    place, echo, make_request, caplog
) -> None:
    async with place.open(zygote="start", preload=("no_such_module",)) as runtime:
        await runtime.prepare(echo)
        with trio.fail_after(30):
            while "no_such_module" not in caplog.text:
                await trio.sleep(0.01)
        async with runtime.open_instance(place.spec(echo)) as instance:
            assert (await call(instance, make_request, "main", b"x")).payload == b"x"


async def test_an_unfit_zygote_means_cold_starts(place, echo, make_request, caplog) -> None:
    async with place.open() as runtime:
        await runtime.prepare(echo)
        for _ in range(3):
            zygote = await runtime._launchers.zygote()
            assert zygote is not None
            os.kill(zygote.pid, signal.SIGKILL)
            with trio.fail_after(30):
                await zygote.wait_unfit()
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await runtime._launchers.zygote() is None
        async with runtime.open_instance(place.spec(echo)) as instance:
            assert (await call(instance, make_request, "main", b"x")).payload == b"x"


PRELOAD = """
import socket, sys
sys.path[:0] = sys.argv[2:]
from spear_runtime_process._inside.launcher import Launcher
Launcher(socket.socket(fileno=int(sys.argv[1]))).preload("threaded")
"""


def test_a_preload_that_starts_a_thread_makes_the_zygote_unfit(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [sys.executable, "-c", PRELOAD, str(theirs.fileno()), str(tmp_path)]
        subprocess.run(arguments, pass_fds=[theirs.fileno()], check=True)
        reader = wire.Reader(ours)
        assert reader.receive()
        received = reader.next()
    assert received is not None
    assert received[0]["op"] == "unfit"
    assert "preloading threaded started a thread" in received[0]["text"]
