"""Every command that talks to a node does so over gRPC as over the local socket."""

from __future__ import annotations

import importlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from spear_core.cli._group import COMMANDS

pytest.importorskip("spear_transport_grpc")

SPEAR = str(Path(sys.executable).with_name("spear"))
TRIED: set[str] = set()


@pytest.fixture(params=["unix", "tcp"])
def node(home: Any, request: pytest.FixtureRequest) -> Any:
    """A node with both doors; ``home.spear`` goes through the one that is meant."""
    config = home.folder / "config.toml"
    config.write_text(
        '[plugins.transport-grpc]\nlisten = ["grpc.sock", "grpc://127.0.0.1:0"]\n'
        if request.param == "tcp"
        else ""
    )
    process = home.node("--config", str(config))
    urls = process.log.read_text().split(" is ready: ")[1].splitlines()[0].split()
    scheme = {"unix": "grpc+unix://", "tcp": "grpc://"}[request.param]
    (url,) = (url.strip(",") for url in urls if url.startswith(scheme))
    return Through(home, url)


class Through:
    """Commands with ``--node``."""

    def __init__(self, home: Any, url: str) -> None:
        self.home = home
        self.url = url

    def spear(self, *args: str, status: int = 0) -> str:
        TRIED.add(args[0])
        TRIED.add(" ".join(args[:2]))
        told = self.home.spear(*args, "--node", self.url)
        assert told.status == status, told.err
        return str(told.out if status == 0 else told.err)


def wait_for(node: Through, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        tasks = json.loads(node.spear("ps", "--json"))
        return next((task for task in tasks if task["state"] == state), None)

    found: dict[str, Any] = node.home.wait_until(look, f"a task is {state}")
    return found


@pytest.mark.parametrize("node", ["unix"], indirect=True)
def test_a_day_at_the_node(node: Through) -> None:
    script = node.home.folder / "hello.sh"
    script.write_text('#!/bin/sh\nread -r name\necho "hello $name"\necho noted >&2\n')
    assert node.spear("deploy", str(script)) == "hello@1\n"
    assert node.spear("invoke", "hello", "--input", "you") == "hello you\n"
    script.write_text("#!/bin/sh\nexit 3\n")
    assert node.spear("deploy", str(script)) == "hello@2\n"
    node.spear("invoke", "hello", "--input", "you", status=1)
    assert "no artifact named 'nobody'" in node.spear("invoke", "nobody", "--input", "", status=3)

    task_id = node.spear("invoke", "hello@1", "--input", "me", "--async").strip()
    assert node.spear("result", task_id, "--wait") == "hello me\n"
    assert node.spear("logs", task_id) == "noted\n"
    assert "hello@2" in node.spear("ps")

    assert (
        json.loads(node.spear("artifacts", "describe", "hello", "--json"))["info"]["version"] == 2
    )
    node.spear("artifacts", "promote", "hello@1")
    assert node.spear("invoke", "hello", "--input", "you") == "hello you\n"
    node.spear("artifacts", "disable", "hello@2")
    node.spear("artifacts", "enable", "hello@2")
    node.spear("artifacts", "promote", "hello@2")
    node.spear("artifacts", "rollback", "hello")
    assert [a["version"] for a in json.loads(node.spear("artifacts", "--json"))] == [2, 1]
    node.spear("artifacts", "list")
    node.spear("artifacts", "delete", "hello")
    assert json.loads(node.spear("artifacts", "--json")) == []

    node.spear("instances", "--json")
    assert json.loads(node.spear("status", "--json"))["total_executions"] >= 4
    assert node.spear("top", "--once")
    node.spear("config", "reload")


def test_cancelling_and_leaving(node: Through) -> None:
    script = node.home.folder / "slow.sh"
    script.write_text("#!/bin/sh\necho up >&2\nsleep 600\n")
    node.spear("deploy", str(script))
    process = node.home.start("invoke", "slow", "--node", node.url)
    wait_for(node, "running")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(node, "cancelled")

    vanishes = node.home.start("invoke", "slow", "--node", node.url)
    wait_for(node, "running")
    vanishes.kill()
    node.home.wait_until(
        lambda: {t["state"] for t in json.loads(node.spear("ps", "--json"))} == {"cancelled"},
        "the task of a client that vanished is cancelled",
    )

    task_id = node.spear("invoke", "slow", "--async").strip()
    follows = node.home.start("logs", task_id, "-f", "--node", node.url)
    assert follows.stdout.readline() == b"up\n"
    assert node.spear("cancel", task_id) == f"{task_id} cancelled\n"
    assert follows.wait(60) == 0
    node.spear("result", task_id, status=130)
    node.spear("invoke", "slow", "--timeout", "300ms", status=124)


def test_a_large_input_and_output(node: Through) -> None:
    script = node.home.folder / "cat.sh"
    script.write_text("#!/bin/sh\nexec cat\n")
    node.spear("deploy", str(script))
    data = node.home.folder / "data"
    data.write_bytes(b"0123456789abcdef" * (1 << 19))
    told = node.spear("invoke", "cat", "--input-file", str(data))
    assert told.encode() == data.read_bytes()


def test_a_node_that_goes_away(node: Through) -> None:
    script = node.home.folder / "slow.sh"
    script.write_text("#!/bin/sh\nsleep 600\n")
    node.spear("deploy", str(script))
    process = node.home.start("invoke", "slow", "--node", node.url)
    wait_for(node, "running")
    node.home.processes[0].kill()
    assert process.wait(60) == 4
    (line,) = process.stderr.read().decode().splitlines()
    assert "went away in the middle of InvokeFunction" in line
    assert "may have run or not" in line
    assert "no node answers" in node.spear("ps", status=4)


def test_a_stream(node: Through) -> None:
    script = node.home.folder / "upper.sh"
    script.write_text("#!/bin/sh\nexec tr a-z A-Z\n")
    node.spear("deploy", str(script))
    told = node.home.spear("invoke", "upper", "--stream", "--node", node.url, stdin=b"abc\n" * 1000)
    assert (told.status, told.out) == (0, "ABC\n" * 1000), told.err


def objects(node: Through, *args: str, status: int = 0) -> str:
    return node.spear("objects", *args, status=status)


@pytest.mark.parametrize("node", ["tcp"], indirect=True)
def test_objects(node: Through) -> None:
    big = node.home.folder / "big"
    big.write_bytes(random.Random(1).randbytes(40_000_000))
    assert objects(node, "put", "a/big", "big") == "a/big is version 1\n"
    objects(node, "get", "a/big", "-o", "copy")
    assert (node.home.folder / "copy").read_bytes() == big.read_bytes()
    (node.home.folder / ".more.1.part").write_bytes(big.read_bytes()[:30_000_001])
    objects(node, "get", "a/big", "-o", "more", "--resume")
    assert (node.home.folder / "more").read_bytes() == big.read_bytes()

    (node.home.folder / "small.txt").write_text("small")
    objects(node, "put", "a/small", "small.txt", "--expect", "0")
    refused = objects(node, "put", "a/small", "small.txt", "--expect", "0", status=6)
    assert "version 1" in refused
    assert objects(node, "get", "a/small") == "small"
    assert json.loads(objects(node, "stat", "a/small", "--json"))["content_type"] == "text/plain"
    listed = json.loads(objects(node, "ls", "a/", "--json"))
    assert [stat["key"] for stat in listed] == ["a/big", "a/small"]
    objects(node, "ref", "a/small", "--holder", "me")
    assert "me" in objects(node, "holders", "a/small")
    objects(node, "pin", "a/small")
    objects(node, "unref", "a/small", "--holder", "me")
    assert "collected" in objects(node, "unpin", "a/small")
    assert "a/small" in objects(node, "stat", "a/small", status=3)
    assert json.loads(objects(node, "df", "--json"))["objects"] == 1
    objects(node, "rm", "a/big")


@pytest.mark.parametrize("node", ["unix"], indirect=True)
def test_objects_as_inputs_and_outputs(node: Through) -> None:
    folder = node.home.folder / "double"
    folder.mkdir()
    (folder / "double.sh").write_text("#!/bin/sh\ncat >in; cat in in\n")
    (folder / "double.sh").chmod(0o755)
    node.spear("deploy", str(folder / "double.sh"))
    data = node.home.folder / "data"
    data.write_bytes(b"0123456789abcdef" * (1 << 17))
    objects(node, "put", "somebody/data", str(data))
    told = node.spear("invoke", "double", "--input-object", "somebody/data")
    assert told.encode() == data.read_bytes() * 2
    assert "nothing" in node.spear("invoke", "double", "--input-object", "nothing", status=3)
    task_id = node.spear("invoke", "double", "--input-object", "somebody/data", "--async").strip()
    node.home.wait_until(
        lambda: json.loads(node.spear("ps", "--json"))[0]["state"] == "completed", "it has ended"
    )
    assert node.spear("result", task_id).encode() == data.read_bytes() * 2


@pytest.mark.parametrize("node", ["tcp"], indirect=True)
def test_a_client_that_is_killed_in_mid_put_leaves_nothing(node: Through) -> None:
    putting = subprocess.Popen(
        [SPEAR, "objects", "put", "a/x", "-", "--node", node.url],
        env=node.home.environ(),
        stdin=subprocess.PIPE,
    )
    node.home.processes.append(putting)
    assert putting.stdin is not None
    putting.stdin.write(bytes(4_000_000))
    putting.stdin.flush()

    def used() -> int:
        return int(json.loads(objects(node, "df", "--json"))["bytes"])

    node.home.wait_until(used, "the node has some of the value")
    putting.kill()
    putting.wait()
    node.home.wait_until(lambda: not used(), "what was sent is gone")
    assert json.loads(objects(node, "ls", "--json")) == []


@pytest.mark.parametrize("node", ["unix"], indirect=True)
def test_a_backup(node: Through) -> None:
    objects(node, "put", "a/x", str(Path(__file__)))
    node.spear("backup", str(node.home.folder / "backup"))
    assert (node.home.folder / "backup").is_dir()


def test_every_command_with_a_node_was_tried() -> None:
    """Keeps this file complete; it runs last."""
    wanted = set()
    for section in COMMANDS.values():
        for name in section:
            command = importlib.import_module(f"spear_core.cli.commands.{name}").command
            wanted |= set(talkers(name, command))
    assert wanted <= TRIED


def talkers(name: str, command: click.Command) -> Iterator[str]:
    """The commands that have ``--node``."""
    if any("--node" in parameter.opts for parameter in command.params):
        yield name
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from talkers(f"{name} {below}", each)
