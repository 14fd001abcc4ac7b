"""Tasks against a model of what a node promises about them, whatever happens in whatever order.

Hypothesis makes up histories of callers that come, wait and go away, of cancellations, deadlines,
attempts that break in the middle or before they begin, parents that end, keys that are used again
and limits that change; after every step each task is exactly where the model says, or forgotten.
Only who of several that wait goes next is left to the node: the run queue has a model of its own.

The node lives in a trio of its own whose clock stands still but for the steps that let time pass.
The model was seen to find these kinds of planted mistakes:

- *attempts*: one too many, not counted, with the same execution id; tried again although the guest
  had begun and is not idempotent, or not although it had not; at once, beyond the deadline, with a
  deadline of its own, or with the slot kept meanwhile;
- *deadlines*: of those that wait, never looked at; a child's beyond its parent's; called a
  cancellation; a slot that is not given back after one;
- *cancellations*: of one that waits, without effect; by a waiter that merely goes away;
- *keys*: not remembered, remembered for longer than the task, the same for another payload; a task
  with a key that ends with its caller;
- *parents*: children that go on after them, detached ones that do not, children of ended ones;
- *keeping*: one too many, the newest forgotten, lower limits that only count for what ends later;
- *waiting*: somebody who is not told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .task_history import ATTEMPTS, BACKOFF_S, CANCELLED, CONFIG, History, TrioThread

WHICH = st.integers(0, 20)
FUNCTIONS = st.sampled_from(["f", "again"])
TIMEOUTS = st.sampled_from([1.5, 5.5, 9.5, 30.0, 1000.0])


class TaskMachine(RuleBasedStateMachine):
    make_history: Callable[[], History]
    history: History | None = None

    @initialize()
    def open(self) -> None:
        self.sound = False
        history = type(self).make_history()
        self.trio = TrioThread(history)
        self.history = history
        self.step("pass_time", 1.0)

    def step(self, name: str, *args: Any) -> None:
        history = self.history
        assert history is not None

        async def step() -> None:
            await getattr(history, name)(*args)
            await trio.testing.wait_all_tasks_blocked()
            await history.check()

        self.sound = False
        self.trio.run(step)
        self.sound = True

    @rule(function=FUNCTIONS, sync=st.booleans(), timeout=TIMEOUTS)
    def come(self, function: str, sync: bool, timeout: float) -> None:
        self.step("come", function, sync, timeout)

    @rule(function=FUNCTIONS, timeout=TIMEOUTS)
    def crowd(self, function: str, timeout: float) -> None:
        self.step("crowd", function, timeout)

    @rule(sync=st.booleans(), key=st.sampled_from(["k", "l"]), which=WHICH, other=st.booleans())
    def come_with_a_key(self, sync: bool, key: str, which: int, other: bool) -> None:
        assert self.history is not None
        if any(record.key == key for record in self.history.records):
            self.step("come_again", which, sync, other)
        else:
            self.step("come", "again", sync, 30.0, key)

    @rule(which=WHICH, function=FUNCTIONS, detached=st.booleans(), timeout=TIMEOUTS)
    def bear(self, which: int, function: str, detached: bool, timeout: float) -> None:
        self.step("bear", which, function, detached, timeout)

    @precondition(lambda self: self.history is not None and self.history.kept())
    @rule(which=WHICH)
    def wait_for(self, which: int) -> None:
        self.step("wait_for", which)

    @rule(which=WHICH)
    def go_away(self, which: int) -> None:
        self.step("go_away", which)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        self.step("cancel", which)

    @precondition(lambda self: self.history is not None and self.history.running())
    @rule(which=WHICH, outcome=st.sampled_from(["ok", "fail", "lost", "unsent"]))
    def answer(self, which: int, outcome: str) -> None:
        self.step("give_answer", which, outcome)

    @precondition(lambda self: self.history is not None and self.history.running())
    @rule(which=WHICH, outcome=st.sampled_from(["lost", "unsent"]))
    def wear_out(self, which: int, outcome: str) -> None:
        assert self.history is not None
        for _ in range(ATTEMPTS):
            if self.history.running():
                self.step("give_answer", which, outcome)
            self.step("pass_time", BACKOFF_S)

    @rule(sync=st.booleans(), seconds=st.sampled_from([4.0, 8.0, 20.0]))
    def come_in_vain(self, sync: bool, seconds: float) -> None:
        self.step("set_starts", True)
        self.step("come", "f", sync, 1000.0)
        self.step("pass_time", seconds)

    @rule(broken=st.booleans())
    def break_starts(self, broken: bool) -> None:
        self.step("set_starts", broken)

    @rule(count=st.sampled_from([0, 1, 4, 20]))
    def keep_finished(self, count: int) -> None:
        self.step("keep_finished", count)

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.step("pass_time", seconds)

    def teardown(self) -> None:
        if self.history is None:
            return
        try:
            if self.sound and len(self.history.records) % 2:  # else it stops in the middle
                self.step("recover")
        finally:
            self.trio.end()
        if self.sound:
            self.check_the_end(self.history)

    def check_the_end(self, history: History) -> None:
        """A node that stops cancels what it has, and tells everybody."""
        assert self.trio.error is None, self.trio.error
        for record in history.unfinished():
            history.end(record, CANCELLED)
        for record in history.records:
            assert not record.inside
            history.check_told(record)
        assert not history.runtime.live


def test_tasks_keep_their_promises(open_steered_node: Any, runtime: Any, tmp_path: Path) -> None:
    numbers = itertools.count()

    class Machine(TaskMachine):
        @staticmethod
        def make_history() -> History:
            folder = tmp_path / str(next(numbers))
            return History(runtime, lambda: open_steered_node(CONFIG, state_dir=folder))

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
