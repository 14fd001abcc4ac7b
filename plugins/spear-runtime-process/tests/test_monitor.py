"""The monitor: what it and its guest report, whoever of them gets to it first."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import trio

from spear_runtime_process._guest import Guest
from spear_runtime_process._launcher import Exit, Process
from spear_runtime_process._plan import Bounds

SLOW = """
import os, sys, time
from spear_runtime_process._inside import monitor

report = int(sys.argv[1])
monitor.os.nice = lambda number: time.sleep(60)  # as one that gets no processor after its fork
monitor.supervise(monitor.TreeLimits(), report)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_the_guests_id_is_known_before_anything_else_of_it_can_be_seen() -> None:
    report, end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(end)], pass_fds=[end], stdout=subprocess.PIPE
    ) as process:
        try:
            os.close(end)
            os.set_blocking(report, False)
            assert process.stdout is not None
            seen = process.stdout.readline()
            assert os.read(report, 200) == seen
        finally:
            process.kill()  # and its guest dies with it
            os.close(report)


@pytest.mark.parametrize("told", ["17\nmemory 90\nmemory 95\n", "memory 90\n17\nmemory 95\n"])
async def test_who_reports_first_does_not_matter(told: str) -> None:
    report, end = os.pipe()
    ours, theirs = socket.socketpair()
    os.write(end, told.encode())
    os.close(end)
    with theirs:
        async with trio.lowlevel.FdStream(ours.detach()) as stream, trio.lowlevel.FdStream(report):
            guest = Guest(
                name="g@1",
                process=Process(5, -1, True, trio.Event()),
                wrapped=False,
                bounds=Bounds(memory=1 << 20, cpu=None, files=9, processes=9, output=9),
                stdout=stream,
                stderr=stream,
                cgroup=None,
                report=report,
            )
            assert guest.pid == 17
            error = guest.explain(Exit(code=None, signal=9), "")
    assert error.message == "g@1 went over its memory limit of 1 MiB and was ended"
