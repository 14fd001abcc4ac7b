"""Bundles, secrets and versions with a real node, and what becomes of them on bad days."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

SECRET = "correct horse battery staple"
AGENT = """
import os
from spear_sdk import Context, function
from part import WORD

@function
def main(text: str, context: Context) -> str:
    context.log.info("the key is %s", os.environ["KEY"])
    print("printed", os.environ["KEY"])
    if text == "fail":
        raise ValueError("wrong key " + os.environ["KEY"])
    return WORD + " " + str(len(os.environ["KEY"]))
"""
SPEC = """
name = "vault"
file = "agent.py"
secrets = { KEY = "horse" }
"""


@pytest.fixture
def project(home: Any) -> Path:
    root = Path(home.folder) / "project"
    root.mkdir()
    (root / "agent.py").write_text(AGENT)
    (root / "part.py").write_text("WORD = 'one'\n")
    (root / "spear.toml").write_text(SPEC)
    secret = Path(home.folder) / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    (Path(home.folder) / "node.toml").write_text(f'[secrets]\nhorse = {{ file = "{secret}" }}\n')
    return root


def deploy(home: Any, project: Path) -> str:
    told = home.spear("deploy", str(project))
    assert told.status == 0, told.err
    return str(told.out.strip())


def files_with(text: str, root: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_a_secret_is_nowhere_but_in_the_guest(home: Any, project: Path) -> None:
    node = home.node("--config", "node.toml")
    deploy(home, project)
    assert home.spear("invoke", "vault", "--input", "x").out == f"one {len(SECRET)}"
    failed = home.spear("invoke", "vault", "--input", "fail")
    assert failed.status == 1
    assert "wrong key ***" in failed.err
    (task, _) = json.loads(home.spear("ps", "--json").out)
    told = [failed]
    for command in (
        *(("logs", task["task_id"]), ("result", task["task_id"], "--json"), ("ps", "--json")),
        *(("artifacts", "describe", "vault", "--json"), ("artifacts", "describe", "vault")),
        *(("instances", "--json"), ("status", "--json"), ("logs", "--system")),
        ("config", "check", "--config", "node.toml"),
    ):
        told.append(home.spear(*command))
    assert "the key is ***" in told[1].out
    assert "printed ***" in told[1].out
    assert SECRET not in repr(told)
    assert files_with(SECRET, home.state) == []
    assert SECRET not in node.log.read_text()
    for process in (home.processes[0].pid,):
        assert SECRET.encode() not in Path(f"/proc/{process}/environ").read_bytes()


def test_a_secret_that_is_not_there_is_named(home: Any, project: Path) -> None:
    home.node("--config", "node.toml")
    (project / "spear.toml").write_text(SPEC.replace('"horse"', '"hrose"'))
    told = home.spear("deploy", str(project))
    assert told.status == 6
    assert "'hrose'" in told.err
    assert "(defined: horse)" in told.err
    (project / "spear.toml").write_text(SPEC)
    deploy(home, project)
    (Path(home.folder) / "secret").unlink()
    told = home.spear("invoke", "vault")
    assert told.status == 1
    assert "the secret 'horse' cannot be read" in told.err


def test_run_has_bundles_and_secrets_too(home: Any, project: Path) -> None:
    told = home.spear("run", str(project), "--config", "node.toml", "--input", "x")
    assert (told.out, told.status) == (f"one {len(SECRET)}", 0)
    assert "the key is ***" in told.err


def test_versions_over_a_restart(home: Any, project: Path) -> None:
    node = home.node("--config", "node.toml")
    assert deploy(home, project) == "vault@1"
    (project / "part.py").write_text("WORD = 'two'\n")
    assert deploy(home, project) == "vault@2"
    assert home.spear("invoke", "vault").out.startswith("two")
    assert home.spear("artifacts", "rollback", "vault").out == "vault@1\n"
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    home.node("--config", "node.toml")
    assert home.spear("invoke", "vault").out.startswith("one")
    assert home.spear("invoke", "vault@2").out.startswith("two")
    assert home.spear("artifacts", "disable", "vault@1").status == 0
    told = home.spear("invoke", "vault")
    assert told.status == 6
    assert "disabled" in told.err
    assert home.spear("artifacts", "delete", "vault@1").status == 0
    assert home.spear("invoke", "vault").out.startswith("two")


def test_damaged_code_is_refused_and_mended(home: Any, project: Path) -> None:
    node = home.node("--config", "node.toml")
    deploy(home, project)
    node.process.terminate()
    node.process.wait()
    (part,) = (home.state / "artifacts" / "code").rglob("part.py")
    part.chmod(0o600)
    part.write_text("WORD = 'bad'\n")
    home.node("--config", "node.toml")
    told = home.spear("invoke", "vault")
    assert told.status != 0
    assert "is not what was deployed" in told.err
    assert deploy(home, project) == "vault@1"
    assert home.spear("invoke", "vault").out.startswith("one")


def test_a_node_that_is_killed_in_the_middle_of_a_deploy(home: Any, project: Path) -> None:
    """An installer that never ends stands for a slow network."""
    installer = Path(home.folder) / "uv"
    installer.write_text("#!/bin/sh\necho waiting for the network >&2\nexec sleep 600\n")
    installer.chmod(0o755)
    with (Path(home.folder) / "node.toml").open("a") as config:
        config.write(f'[plugins.runtime-process]\nuv = "{installer}"\n')
    node = home.node("--config", "node.toml")
    client = home.start("deploy", str(project), "-r", "six")

    def preparing() -> Any:
        listed = node.listed("artifacts")
        return listed and listed[0]["message"] == "waiting for the network"

    home.wait_until(preparing, "the installer is seen to work")
    (info,) = node.listed("artifacts")
    assert (info["state"], info["latest"]) == ("preparing", False)
    below = node.below()
    node.process.send_signal(signal.SIGKILL)
    assert client.wait(60) == 4
    again = home.node("--config", "node.toml")
    assert again.listed("artifacts") == []
    assert list((home.state / "artifacts" / "code").iterdir()) == []
    for process in below:  # the installer belongs to nobody now
        if process.is_running() and process.name() == "sleep":
            os.kill(process.pid, signal.SIGKILL)
    assert deploy(home, project) == "vault@1"


def test_two_clients_deploy_at_once(home: Any, project: Path) -> None:
    home.node("--config", "node.toml")
    clients = [home.start("deploy", str(project), "--env", f"N={n % 2}") for n in range(6)]
    told = [client.communicate(timeout=60)[0].decode().strip() for client in clients]
    versions = sorted({int(line.partition("@")[2]) for line in told})
    assert versions == list(range(1, len(versions) + 1))
    assert home.spear("invoke", "vault").out.startswith("one")
