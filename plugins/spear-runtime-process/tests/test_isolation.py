"""What guests can't reach at each level, and what is refused where a level can't be had."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import ExecutionStatus, Health, IsolationLevel
from spear_core.errors import IsolationUnavailableError
from spear_runtime_process._machine import Machine, look_around

LEVELS = [IsolationLevel.SYSCALLS, IsolationLevel.NAMESPACES, IsolationLevel.CGROUP]


@pytest.fixture
async def machine() -> Machine:
    return await look_around(bwrap="bwrap", use_cgroups=True)


async def attempt(place: Any, machine: Machine, level: IsolationLevel, code: str) -> str:
    """The guest's answer at this level; where it can't be had, that it is refused instead."""
    artifact = place.artifact("probe.py", code, required_isolation=level)
    if missing := machine.missing_for(level):
        with pytest.raises(IsolationUnavailableError) as caught:
            await place.run(artifact)
        assert missing in str(caught.value)
        return "refused"
    response = await place.run(artifact)
    assert response.status is ExecutionStatus.COMPLETED, response.error
    assert response.usage.isolation is not None
    assert response.usage.isolation >= level
    return str(response.payload.decode().strip())


@pytest.mark.parametrize("level", LEVELS)
async def test_files_of_others_are_out_of_reach(place, machine, tmp_path, level) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    code = f"""
        try:
            print(open({str(secret)!r}).read())
        except OSError as exc:
            print(type(exc).__name__)
        """
    assert await attempt(place, machine, level, code) in (
        "PermissionError",
        "FileNotFoundError",
        "refused",
    )


async def test_without_isolation_they_are_not(place, tmp_path) -> None:
    """The tests of this file would see a guest that isn't held."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    artifact = place.artifact("probe.py", f"print(open({str(secret)!r}).read())")
    response = await place.run(artifact, isolation="none")
    assert response.payload == b"secret\n"
    assert response.usage.isolation is IsolationLevel.NONE


@pytest.mark.parametrize("level", LEVELS)
async def test_only_the_scratch_directory_can_be_written(place, machine, level) -> None:
    code = """
        import os, pathlib
        pathlib.Path("here").write_text("x")
        results = []
        for name in ("/usr/spear-test", "/etc/spear-test", os.path.dirname(__file__) + "/x"):
            try:
                pathlib.Path(name).write_text("x")
                results.append("written")
            except OSError:
                results.append("held")
        print(*results)
        """
    assert await attempt(place, machine, level, code) in ("held held held", "refused")


@pytest.mark.parametrize("level", LEVELS)
async def test_the_node_cannot_be_looked_into_or_signalled(place, machine, level) -> None:
    code = f"""
        import os
        for action in (
            lambda: open("/proc/{os.getpid()}/environ", "rb").read(),
            lambda: os.kill({os.getpid()}, 0),
        ):
            try:
                action()
                print("reached", end=" ")
            except OSError:
                print("held", end=" ")
        """
    assert await attempt(place, machine, level, code) in ("held held", "refused")


@pytest.mark.parametrize("level", LEVELS)
async def test_dangerous_system_calls_are_refused(place, machine, level) -> None:
    code = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        answers = []
        for name, argument in (("unshare", 0x10000000), ("ptrace", 0), ("mount", 0)):
            result = getattr(libc, name)(argument, 0, 0, 0, 0)
            answers.append(result == -1 and ctypes.get_errno() == 1)
        print(*answers)
        """
    assert await attempt(place, machine, level, code) in ("True True True", "refused")


@pytest.mark.parametrize("level", LEVELS)
async def test_there_is_no_way_to_privileges(place, machine, level) -> None:
    code = """
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
        print(int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"].strip())
        """
    assert await attempt(place, machine, level, code) in ("0 0 1", "refused")


async def test_namespaces_hide_other_processes(place, machine) -> None:
    code = "import os; print(len([name for name in os.listdir('/proc') if name.isdigit()]))"
    seen = await attempt(place, machine, IsolationLevel.NAMESPACES, code)
    assert seen == "refused" or int(seen) <= 3


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("network", [True, False])
async def test_network_can_be_switched_off(place, machine, level, network) -> None:
    if machine.missing_for(level):
        pytest.skip("refused here, as the tests above see")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
            import socket
            try:
                socket.create_connection(("127.0.0.1", {port}), 30)
                print("connected")
            except OSError as exc:
                print("held")
            """
        artifact = place.artifact("net.py", code, required_isolation=level)
        response = await place.run(artifact, network=network)
    held = not network and (machine.landlock_abi >= 4 or level > IsolationLevel.SYSCALLS)
    assert response.payload.strip() == (b"held" if held else b"connected")


async def test_configured_directories(place, tmp_path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    work.mkdir()
    (data / "in").write_text("content")
    code = f"""
        text = open("{data}/in").read()
        open("{work}/out", "w").write(text)
        try:
            open("{data}/in", "w")
        except OSError:
            print("held")
        """
    response = await place.run(
        place.artifact("copy.py", code), read=(str(data),), write=(str(work),)
    )
    assert (work / "out").read_text() == "content"
    assert response.payload == b"held\n"


async def test_fingerprint_tells_every_layer(place) -> None:
    async with place.open() as runtime:
        fingerprint = await runtime.fingerprint()
    assert fingerprint.health is Health.HEALTHY
    assert list(fingerprint.details) == [
        *("isolation", "limits", "syscalls", "namespaces", "cgroup"),
        "requirements",
    ]


async def test_what_is_missing_is_named_with_its_remedy(place) -> None:
    """A machine without bubblewrap and control groups: lower levels go on, higher are refused."""
    missing = {"bwrap": "no-such-bwrap", "use_cgroups": False}
    text = "#!/bin/sh\necho fine\n"
    response = await place.run(place.artifact("a.sh", text), **missing)
    assert response.payload == b"fine\n"
    assert response.usage.isolation <= IsolationLevel.SYSCALLS
    demanding = place.artifact("a.sh", text, required_isolation=IsolationLevel.CGROUP)
    with pytest.raises(IsolationUnavailableError) as caught:
        await place.run(demanding, **missing)
    message = str(caught.value)
    assert message.startswith("a@1 requires isolation level 'cgroup'")
    assert "'no-such-bwrap' is not installed (Debian and Fedora: package `bubblewrap`)" in message
    assert "use_cgroups = false" in message


async def test_the_configuration_can_insist_too(place) -> None:
    with pytest.raises(IsolationUnavailableError, match=r"plugins\.runtime-process\.isolation"):
        await place.run(
            place.artifact("a.sh", "#!/bin/sh\n"), isolation="namespaces", bwrap="no-such-bwrap"
        )


async def test_a_bwrap_that_does_not_work_counts_as_none(place, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'no user namespaces' >&2\nexit 1\n")
    fake.chmod(0o700)
    machine = await look_around(bwrap=str(fake), use_cgroups=False)
    assert machine.bwrap is None
    assert "no user namespaces" in machine.bwrap_reason
    assert "unprivileged user namespaces" in machine.missing_for(IsolationLevel.NAMESPACES)


async def test_a_kernel_without_landlock_reaches_only_limits(machine) -> None:
    old = attrs.evolve(machine, landlock_abi=0)
    assert old.reachable is IsolationLevel.LIMITS
    assert "Landlock (Linux 5.13 or newer" in old.missing_for(IsolationLevel.SYSCALLS)
