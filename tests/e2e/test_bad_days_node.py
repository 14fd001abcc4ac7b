"""``kill -9`` of the node in the middle of work, SIGTERM under load, a second node."""

from __future__ import annotations

import signal
from typing import Any

import psutil


def test_kill_9_of_the_node_leaves_no_worker_and_tells_the_client(home: Any) -> None:
    node = home.node()
    home.deploy_functions()
    waiting = home.start("invoke", "bad:nap", "--input", "600")
    node.running_instance()
    below = node.below()
    assert below
    node.stop(signal.SIGKILL)
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (4, b"")
    assert b"node" in err
    assert b"Traceback" not in err
    home.wait_until(lambda: home.gone(below), "the workers of a killed node end")


def test_a_client_finds_no_node_and_says_what_to_do(home: Any) -> None:
    node = home.node()
    home.deploy_functions()
    node.stop(signal.SIGKILL)
    told = home.spear("invoke", "bad:nap", "--input", "0")
    assert told.status == 4
    assert "spear node" in told.err
    assert "Traceback" not in told.err


def test_the_next_node_recovers_the_socket_and_what_was_deployed(home: Any) -> None:
    node = home.node()
    home.deploy_functions()
    home.start("invoke", "bad:nap", "--input", "600")
    node.running_instance()
    node.stop(signal.SIGKILL)
    assert (home.state / "node.sock").exists(), "nothing stale: the test tests nothing"
    assert not home.answers(home.state / "node.sock")

    node = home.node()
    told = home.spear("invoke", "bad:nap", "--input", "0")
    assert (told.status, told.out) == (0, "slept 0")
    assert node.stop() == 0


def test_the_next_node_accounts_for_the_tasks_of_a_killed_one(home: Any) -> None:
    (home.folder / "one.toml").write_text("[execution]\nmax_concurrent_tasks = 1\n")
    node = home.node("--config", str(home.folder / "one.toml"))
    home.deploy_functions()

    def submit(seconds: str, *more: str) -> str:
        told = home.spear("invoke", "bad:nap", "--input", seconds, "--async", *more)
        assert told.status == 0, told.err
        task_id: str = told.out.strip()
        return task_id

    finished = submit("0.01")
    assert home.spear("result", finished, "--wait").out == "slept 0.01"
    running = submit("600")
    queued = [submit("0.02"), submit("0.03", "--idempotency-key", "k")]
    node.running_instance()
    node.stop(signal.SIGKILL)

    node = home.node("--config", str(home.folder / "one.toml"))
    told = home.spear("result", finished)
    assert (told.status, told.out) == (0, "slept 0.01")
    assert [home.spear("result", t, "--wait").out for t in queued] == ["slept 0.02", "slept 0.03"]
    told = home.spear("result", running, "--wait")
    assert (told.status, told.out) == (1, "")
    assert "the node ended while task" in told.err
    assert "idempotent" in told.err
    assert "Traceback" not in told.err
    assert submit("0.03", "--idempotency-key", "k") == queued[1]
    assert {task["task_id"] for task in node.listed("ps")} == {finished, running, *queued}
    assert "restarted" in home.spear("logs", queued[0]).out


def test_without_a_store_that_lasts_tasks_are_told_to_be_unknown(home: Any) -> None:
    (home.folder / "off.toml").write_text('[stores]\nmetadata = "memory"\n')
    node = home.node("--config", str(home.folder / "off.toml"))
    home.deploy_functions()
    task_id = home.spear("invoke", "bad:nap", "--input", "600", "--async").out.strip()
    node.running_instance()
    node.stop(signal.SIGKILL)

    node = home.node("--config", str(home.folder / "off.toml"))
    assert node.listed("ps") == []
    told = home.spear("result", task_id)
    assert (told.status, told.out) == (3, ""), "not found"
    assert task_id in told.err
    assert "no task" in told.err
    assert "Traceback" not in told.err


def test_sigterm_lets_running_work_finish_and_leaves_nothing(home: Any) -> None:
    settings = "[execution]\nmax_concurrent_tasks = 4\nshutdown_grace_ms = 600_000\n"
    (home.folder / "few.toml").write_text(settings)
    node = home.node("--config", str(home.folder / "few.toml"))
    home.deploy_functions()
    assert home.spear("invoke", "bad:nap", "--input", "0").status == 0
    waiting = [home.start("invoke", "bad:nap", "--input", "0.8") for _ in range(10)]
    home.wait_until(lambda: len(node.listed("ps")) == 11, "ten calls are in the node")
    below = node.below()
    assert node.stop() == 0
    for client in waiting:
        out, err = client.communicate(timeout=60)
        assert (client.returncode, out) == (0, b"slept 0.8"), err.decode()
    assert home.gone(below)
    assert not (home.state / "node.sock").exists()
    assert not (home.state / "run").exists()


def test_what_waits_when_a_node_stops_goes_on_with_the_next(home: Any) -> None:
    settings = "[execution]\nmax_concurrent_tasks = 1\nshutdown_grace_ms = 100\n"
    (home.folder / "one.toml").write_text(settings)
    node = home.node("--config", str(home.folder / "one.toml"))
    home.deploy_functions()
    running, *waiting = [
        home.spear("invoke", "bad:nap", "--input", seconds, "--async").out.strip()
        for seconds in ("600", "0.02", "0.03")
    ]
    node.running_instance()
    assert node.stop() == 0

    node = home.node()
    told = [home.spear("result", task_id, "--wait").out for task_id in waiting]
    assert told == ["slept 0.02", "slept 0.03"]
    told = home.spear("result", running)
    assert (told.status, told.out) == (130, "")
    assert "shutting down" in told.err
    assert node.stop() == 0


def test_a_hang_up_stops_it_in_order_unless_it_is_ignored(home: Any) -> None:
    assert home.node().stop(signal.SIGHUP) == 0
    assert not (home.state / "node.sock").exists()
    deaf = home.node(wrapper="trap '' HUP; exec \"$@\"")
    deaf.process.send_signal(signal.SIGHUP)
    assert home.spear("status").status == 0
    assert deaf.stop() == 0


def test_sigterm_refuses_new_work_at_once_and_a_second_one_hurries(home: Any) -> None:
    (home.folder / "long.toml").write_text("[execution]\nshutdown_grace_ms = 600_000\n")
    node = home.node("--config", str(home.folder / "long.toml"))
    home.deploy_functions()
    waiting = home.start("invoke", "bad:nap", "--input", "600", "--timeout", "600s")
    node.running_instance()
    node.process.send_signal(signal.SIGTERM)
    home.wait_until(lambda: "stopping" in node.log.read_text(), "the signal has arrived")
    told = home.spear("invoke", "bad:nap", "--input", "0")
    assert told.status == 4
    assert "shutting down" in told.err
    assert "Traceback" not in told.err
    assert waiting.poll() is None, "what runs goes on"
    assert node.stop() == 0
    assert waiting.wait(60) == 130


def test_the_grace_period_ends_what_does_not_end(home: Any) -> None:
    (home.folder / "short.toml").write_text("[execution]\nshutdown_grace_ms = 300\n")
    node = home.node("--config", str(home.folder / "short.toml"))
    home.deploy_functions()
    waiting = home.start("invoke", "bad:nap", "--input", "600")
    node.running_instance()
    below = node.below()
    assert node.stop() == 0, "600 s are not waited for"
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert b"shutting down" in err
    assert home.gone(below)


def test_a_second_node_is_refused_with_the_pid_of_the_first(home: Any) -> None:
    node = home.node()
    told = home.spear("node")
    assert told.status == 6
    assert f"pid {node.process.pid}" in told.err
    assert "--state-dir" in told.err
    assert psutil.pid_exists(node.process.pid)
    assert node.listed("ps") == []
