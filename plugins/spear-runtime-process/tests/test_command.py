"""Commands: input, output, log, exit, cancellation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ExecutionStatus
from spear_core.errors import InstanceStartError, UnsupportedArtifactError
from spear_runtime_process._recognise import recognise


async def test_a_script_reads_stdin_writes_stdout_and_logs_stderr(place, hostcalls) -> None:
    artifact = place.artifact(
        "count.sh",
        """
        #!/bin/sh
        echo first >&2
        printf 'no newline' >&2
        wc -c
        """,
    )
    response = await place.run(artifact, b"hello world")
    assert response.status is ExecutionStatus.COMPLETED
    assert response.payload.strip() == b"11"
    assert hostcalls.lines() == ["first", "no newline"]
    assert response.usage.isolation is not None
    assert response.usage.cpu_seconds is not None
    assert response.usage.cpu_seconds > 0


async def test_the_standard_streams_can_be_opened_by_name(place, hostcalls) -> None:
    text = "#!/bin/sh\ncat /dev/stdin >/dev/stdout\necho note >/dev/stderr\n"
    response = await place.run(place.artifact("named.sh", text), b"through")
    assert response.payload == b"through"
    assert hostcalls.lines() == ["note"]


@pytest.mark.parametrize("size", [0, 1, 8 << 20])
async def test_bytes_go_through_unchanged(place, size) -> None:
    cat = shutil.which("cat")
    assert cat
    artifact = place.artifact("cat", Path(cat).read_bytes())
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    response = await place.run(artifact, payload)
    assert response.payload == payload


async def test_python_runs_with_the_nodes_python(place) -> None:
    artifact = place.artifact("who.py", "import sys, attrs; print(sys.prefix, *sys.argv[1:])")
    import sys

    response = await place.run(artifact)
    assert response.payload.decode().split() == [sys.prefix]


async def test_exit_code_and_last_lines(place) -> None:
    artifact = place.artifact(
        "fail.sh", "#!/bin/sh\nfor i in $(seq 100); do echo line $i >&2; done\nexit 7\n"
    )
    response = await place.run(artifact)
    assert response.status is ExecutionStatus.FAILED
    assert response.error is not None
    assert response.error.kind == "exit"
    assert response.error.code == "unknown"
    assert response.error.details["exit_code"] == "7"
    assert response.error.details["stderr"].splitlines()[-1] == "line 100"
    assert len(response.error.details["stderr"].splitlines()) == 20
    assert response.error.message == "fail@1 ended with exit code 7: line 100"


async def test_a_signal_has_its_name(place, use_cgroups) -> None:
    artifact = place.artifact("crash.sh", "#!/bin/sh\nkill -SEGV $$\n")
    response = await place.run(artifact, use_cgroups=use_cgroups)
    assert response.error is not None
    assert response.error.kind == "signal"
    assert response.error.details["signal"] == "SIGSEGV"


async def test_environment_arguments_and_scratch(place, single, make_request) -> None:
    artifact = place.artifact(
        "env.sh",
        '#!/bin/sh\necho "$GREETING $1 $SPEAR_TASK_ID $(pwd) $HOME $TMPDIR"\ntouch left behind\n',
        env={"GREETING": "hi"},
        args=("there",),
    )
    async with single(artifact) as instance:
        request = make_request()
        response = await instance.execute(request)
        greeting, argument, task, cwd, home, tmp = response.payload.decode().split()
        assert (greeting, argument, task) == ("hi", "there", request.task_id)
        assert cwd == home == tmp
        assert not Path(cwd).exists()
        again = await instance.execute(make_request())
        assert again.payload.split()[3] != cwd.encode()
        assert instance.statistics().executions == 2
        await instance.check_health()


async def test_nothing_of_the_nodes_environment_leaks(place, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    response = await place.run(place.artifact("env.sh", "#!/bin/sh\nenv\n"))
    assert b"secret" not in response.payload


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.sh", "#!/nowhere/sh\n", "'/nowhere/sh', which is not on this machine"),
        ("a.sh", "#!/bin/sh\r\n", "Windows line ends"),
        ("a.txt", "just text", "is no program"),
        ("a.sh", "echo hello\n", "first line such as `#!/bin/sh`"),
        ("a.sh", "", "is no program"),
    ],
)
async def test_what_cannot_run_is_refused_when_prepared(place, name, text, complaint) -> None:
    artifact = place.artifact(name, text.encode(), shape="command")
    with pytest.raises(UnsupportedArtifactError, match=complaint):
        await place.run(artifact)


async def test_a_program_that_cannot_start_says_why(place, use_cgroups) -> None:
    artifact = place.artifact("broken", b"\x7fELF" + b"\0" * 100)
    with pytest.raises(InstanceStartError, match=r"broken@1 could not start: .*Exec format error"):
        await place.run(artifact, use_cgroups=use_cgroups)


async def test_cancelling_gives_time_to_clean_up(place, single, make_request, hostcalls) -> None:
    artifact = place.artifact(
        "polite.sh",
        "#!/bin/sh\ntrap 'echo cleaning >&2; exit' TERM\necho up >&2\nsleep 60 & wait\n",
    )
    async with single(artifact, cancel_grace_ms=30_000) as instance:
        with trio.move_on_after(60) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(instance.execute, make_request())
                while not hostcalls.lines():
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
    assert hostcalls.lines() == ["up", "cleaning"]


def test_recognise() -> None:
    def shape(name: str, head: bytes, entry: str = "") -> Any:
        return recognise(Path(name), head, entry)

    assert shape("a.py", b"print()") == "command"
    assert shape("a.py", b"print()", "main") == "agent"
    assert shape("a.py", b"from spear_sdk import function") == "agent"
    assert shape("tool", b"#!/usr/bin/env python3\nimport spear_sdk") == "agent"
    assert shape("tool", b"#!/bin/sh\n# spear_sdk") == "command"
    assert shape("tool", b"\x7fELF") == "command"
    assert shape("x.sh", b"echo hello") == "command"  # which is refused, with the remedy
    assert shape("x.wasm", b"\0asm") is None
    assert shape("x.wat", b"(module)") is None
