"""Several nodes, and `spear run` beside them, use one cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from spear_runtime_process._workspace import open_workspace


async def test_a_second_runtime_on_the_same_cache_disturbs_nobody(place, make_request) -> None:
    artifact = place.artifact("f.sh", "#!/bin/sh\ncat\n")
    async with place.open() as first:
        await first.prepare(artifact)
        async with place.open() as second:
            await second.prepare(artifact)
        async with first.open_instance(place.spec(artifact)) as instance:
            answer = await instance.execute(make_request(b"still there"))
    assert answer.payload == b"still there"
    assert list(place.context.cache_dir.iterdir()) == []


def test_what_a_killed_node_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib, time\n"
        "from spear_runtime_process._workspace import open_workspace\n"
        "with open_workspace(pathlib.Path(sys.argv[1])) as place:\n"
        "    (place / 'code').mkdir(); print(place, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with open_workspace(tmp_path) as mine:
            assert left.is_dir()
            assert mine != left
        other.send_signal(signal.SIGKILL)
    assert left.is_dir()
    with open_workspace(tmp_path) as mine:
        assert not left.exists()
        assert mine.stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path) == []
