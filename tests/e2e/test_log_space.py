"""What all task logs of a real node take of the disk together."""

from __future__ import annotations

from typing import Any

MOST = 60_000


def test_the_newest_logs_stay_within_the_limit(home: Any) -> None:
    config = home.folder / "node.toml"
    config.write_text(f"[logs]\nmax_total_bytes = {MOST}\n")
    node = home.node("--config", str(config))
    home.deploy_functions()
    logs = home.state / "logs" / "tasks"
    tasks = []
    for _ in range(5):  # of 20 KB or so each
        submitted = home.spear("invoke", "bad:chatter", "--input", "100", "--async")
        assert submitted.status == 0, submitted.err
        tasks.append(submitted.out.strip())
        assert home.spear("result", tasks[-1], "--wait").out.strip() == "still here"
        assert sum(path.stat().st_size for path in logs.iterdir()) <= MOST
    assert (logs / f"{tasks[-1]}.log").exists()
    assert not (logs / f"{tasks[0]}.log").exists()
    newest, oldest = home.spear("logs", tasks[-1]), home.spear("logs", tasks[0])
    assert len(newest.out.splitlines()) == 100
    assert "deleted to make room" in oldest.out + oldest.err

    assert node.stop() == 0
    config.write_text(f"[logs]\nmax_total_bytes = {MOST // 2}\n")
    node = home.node("--config", str(config))  # finds them, and keeps the newest
    assert [path.stem for path in logs.iterdir()] == tasks[-1:]
    assert len(home.spear("logs", tasks[-1]).out.splitlines()) == 100
    assert node.stop() == 0
