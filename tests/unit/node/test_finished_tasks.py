"""Which finished tasks are remembered: the newest, within three limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import TaskConfig, TaskResult, TaskState
from spear_core.node._finished_tasks import FinishedTasks
from spear_core.node._task import Task

HOUR = 3_600


class Finished:
    """What is under test, and what it has let go of."""

    def __init__(self, make: Callable[[], Task], **limits: Any) -> None:
        self.make = make
        self.forgotten: list[Task] = []
        self.tasks = FinishedTasks(
            self.forgotten.append, **({"keep": 100, "keep_bytes": 1_000} | limits)
        )

    def ended(self, output: bytes = b"", *, completed_at: float | None = None) -> Task:
        task = self.make()
        task.finish(TaskState.CANCELLED, TaskResult(output=output))
        if completed_at is not None:
            task.completed_at = completed_at
        return task

    def add(self, output: bytes = b"") -> Task:
        task = self.ended(output)
        self.tasks.add(task)
        return task


@pytest.fixture
def new(make_task: Callable[[], Task]) -> Callable[..., Finished]:
    return lambda **limits: Finished(make_task, **limits)


def test_the_oldest_go_beyond_the_number(new: Callable[..., Finished]) -> None:
    finished = new(keep=2)
    tasks = [finished.add() for _ in range(5)]
    assert finished.forgotten == tasks[:3]


def test_the_oldest_go_beyond_the_bytes(new: Callable[..., Finished]) -> None:
    finished = new()
    tasks = [finished.add(bytes(400)) for _ in range(4)]
    assert finished.forgotten == tasks[:2]
    finished.add(bytes(200))
    assert finished.forgotten == tasks[:2], "1,000 bytes are within the limit"


def test_the_newest_is_kept_whatever_its_size(new: Callable[..., Finished]) -> None:
    finished = new()
    small, large = finished.add(), finished.add(bytes(5_000))
    assert finished.forgotten == [small]
    finished.add()
    assert finished.forgotten == [small, large]


def test_none_are_kept_where_none_are_wanted(new: Callable[..., Finished]) -> None:
    finished = new(keep=0)
    task = finished.add()
    assert finished.forgotten == [task]


def test_new_limits_count_for_what_has_finished_already(new: Callable[..., Finished]) -> None:
    finished = new()
    tasks = [finished.add() for _ in range(5)]
    finished.tasks.reconfigure(TaskConfig(keep_finished=1))
    assert finished.forgotten == tasks[:4]
    assert finished.tasks.most == 1


def test_those_of_an_earlier_run_are_taken_in_the_order_of_their_ends(
    new: Callable[..., Finished],
) -> None:
    finished = new(keep=1)
    now = time.time()
    last, first = finished.ended(completed_at=now - 1), finished.ended(completed_at=now - 2)
    finished.tasks.restore([last, first])
    assert finished.forgotten == [first]


def test_those_that_are_too_old_go_at_once(new: Callable[..., Finished]) -> None:
    finished = new(keep_s=HOUR)
    now = time.time()
    old, young = (finished.ended(completed_at=now - ago) for ago in (HOUR + 60, HOUR - 60))
    finished.tasks.restore([young, old])
    assert finished.forgotten == [old]


async def test_age_is_by_how_long_the_machine_was_up(
    new: Callable[..., Finished],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = new(keep_s=HOUR)
    wall, up = time.time, time.clock_gettime
    tomorrow = finished.ended(completed_at=wall() + 86_400)  # its clock was wrong
    finished.tasks.restore([tomorrow])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finished.tasks.keep_tidy)
        monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
        await trio.sleep(100)
        assert finished.forgotten == []
        monkeypatch.setattr(time, "clock_gettime", lambda clock: up(clock) + HOUR + 60)
        await trio.sleep(100)
        assert finished.forgotten == [tomorrow]
        nursery.cancel_scope.cancel()
