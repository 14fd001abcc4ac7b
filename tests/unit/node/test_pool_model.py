"""The pool against a model of what it promises, whatever happens in whatever order.

Hypothesis makes up histories of tasks that come, go away and give back, instances that break, die,
hang or cannot start, time that passes and limits that change; after every step the promises hold.

The pool lives in a trio of its own whose clock stands still but for the steps that let time pass.
The model was seen to find these kinds of planted mistakes:

- an instance ended under an execution: retired at once when one of several borrowers breaks it,
  when limits shrink, when it is idle for too long by a clock that was not reset;
- drained or retired ones that are lent again, or that stay when their last borrower has left;
- one instance too many: those that end, start or are checked left out of the count;
- more borrowers than an instance takes; one that waits beside an instance with room; those that
  came later served first; waiters that nobody serves after a start that failed;
- lent in its health check, never checked, kept although its check fails or hangs;
- no way back: the minimum not kept, idle ones not ended, a pool that does not close.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
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

from spear_core.api import (
    Artifact,
    Instance,
    InstanceSpec,
    InstanceState,
    InstanceStatistics,
    PoolConfig,
    RuntimeInstanceId,
)
from spear_core.errors import InstanceError, InstanceLostError, InstanceStartError
from spear_core.node._background import open_background
from spear_core.node._pool import InstancePool, PooledInstance

ARTIFACT = Artifact(
    name="f", version=1, digest="0" * 64, runtime="r", shape="s", path=Path("f"), filename="f"
)


class ModelInstance(Instance):
    def __init__(self, spec: InstanceSpec, runtime: ModelRuntime) -> None:
        self.id = spec.id
        self.dead = trio.Event()
        self.checking = False
        self.checked_at = -math.inf
        self._runtime = runtime

    async def execute(self, request: Any) -> Any:
        raise NotImplementedError

    async def check_health(self) -> None:
        self.checking = True
        self.checked_at = trio.current_time()
        try:
            if self._runtime.health == "hangs":
                await trio.sleep_forever()
            if self._runtime.health == "unwell":
                raise InstanceLostError("unwell")
            await trio.sleep(self._runtime.slow)
        finally:
            self.checking = False

    async def wait_failed(self) -> str:
        await self.dead.wait()
        return "it died"

    def statistics(self) -> InstanceStatistics:
        return InstanceStatistics()


class ModelRuntime:
    def __init__(self) -> None:
        self.open: dict[str, ModelInstance] = {}
        self.starting = 0
        self.limit = 0
        self.too_many = False
        self.is_held: Callable[[str], bool] = lambda instance_id: False
        self.cut_off = False
        self.slow = 0.0
        self.starts_fail = False
        self.health = "well"

    @asynccontextmanager
    async def open_instance(self, spec: InstanceSpec) -> AsyncIterator[ModelInstance]:
        self.starting += 1
        if self.starting + len(self.open) > self.limit:
            self.too_many = True
        try:
            await trio.sleep(self.slow)
            if self.starts_fail:
                raise InstanceStartError("no luck")
        finally:
            self.starting -= 1
        instance = self.open[spec.id.instance_id] = ModelInstance(spec, self)
        try:
            yield instance
            if self.is_held(spec.id.instance_id) and not instance.dead.is_set():
                self.cut_off = True
            with trio.CancelScope(shield=True):
                await trio.sleep(self.slow)
        finally:
            del self.open[spec.id.instance_id]


@attrs.define(eq=False)
class Client:
    number: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    held: PooledInstance | None = None
    state: str = "waiting"


class History:
    """A pool with its clients, and what it has promised them."""

    def __init__(self, config: PoolConfig, concurrency: int) -> None:
        self.config = config
        self.concurrency = concurrency
        self.runtime = ModelRuntime()
        self.runtime.limit = config.max_instances
        self.runtime.is_held = self.is_held
        self.clients: list[Client] = []
        self.served: list[int] = []
        self.lent: Counter[PooledInstance] = Counter()
        self.spent: set[PooledInstance] = set()
        """Those that must not be lent any more."""
        self.came_back: dict[PooledInstance, float] = {}
        """When each was given back last."""
        self.looked_since = -math.inf
        """When the times of all looks were set anew."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        numbers = itertools.count(1)
        async with open_background() as background, trio.open_nursery() as nursery:
            self.nursery = nursery
            self.pool = InstancePool(
                ARTIFACT,
                self.runtime,  # type: ignore[arg-type]
                self.config,
                background=background,
                new_id=lambda: RuntimeInstanceId(
                    runtime_type="r", instance_id=f"i-{next(numbers)}"
                ),
                log=logging.getLogger("spear.test"),
                concurrency=self.concurrency,
            )
            yield

    def is_held(self, instance_id: str) -> bool:
        return any(pooled.spec.id.instance_id == instance_id for pooled in self.held())

    def having(self, state: str) -> list[Client]:
        return [client for client in self.clients if client.state == state]

    def held(self) -> Counter[PooledInstance]:
        return Counter(c.held for c in self.having("holding") if c.held is not None)

    def borrow(self, client: Client, pooled: PooledInstance) -> None:
        assert pooled not in self.spent, "lent although it was to be lent no more"
        instance = self.runtime.open[pooled.spec.id.instance_id]
        assert not instance.dead.is_set(), "lent although it is dead"
        client.held, client.state = pooled, "holding"
        self.lent[pooled] += 1
        most = self.config.max_executions_per_instance
        if most and self.lent[pooled] >= most:
            self.spent.add(pooled)

    async def _acquire(self, client: Client) -> None:
        with client.scope:
            try:
                pooled = await self.pool.acquire()
            except InstanceError:
                client.state = "failed"
                return
            self.borrow(client, pooled)
            self.served.append(client.number)
            return
        client.state = "cancelled"

    async def come(self, count: int) -> None:
        for _ in range(count):
            client = Client(len(self.clients))
            self.clients.append(client)
            self.nursery.start_soon(self._acquire, client)
            await trio.testing.wait_all_tasks_blocked()

    async def take(self) -> None:
        if (pooled := self.pool.take_idle()) is not None:
            assert not self.having("waiting")
            assert not pooled.cold
            client = Client(len(self.clients))
            self.clients.append(client)
            self.borrow(client, pooled)

    async def leave(self, which: int) -> None:
        waiting = self.having("waiting")
        waiting[which % len(waiting)].scope.cancel()

    async def give_back(
        self, which: int, broken: str | None = None, cancelled: bool = False
    ) -> None:
        holding = self.having("holding")
        client = holding[which % len(holding)]
        assert client.held is not None
        client.state = "gone"
        if broken is not None:
            self.spent.add(client.held)
        self.came_back[client.held] = trio.current_time()
        self.pool.release(client.held, broken=broken, cancelled=cancelled)

    async def die(self, which: int) -> None:
        live = list(self.runtime.open.values())
        live[which % len(live)].dead.set()

    async def configure(self, config: PoolConfig) -> None:
        self.config = config
        self.pool.configure(config)
        self.runtime.limit = config.max_instances
        self.looked_since = trio.current_time()

    async def keep_warm(self, warm: bool) -> None:
        self.pool.keep_warm(warm)
        self.looked_since = trio.current_time()

    async def pass_time(self, seconds: float) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.autojump_threshold = 0
        await trio.sleep(seconds)
        clock.autojump_threshold = math.inf

    def check(self) -> None:
        """Everything that must be so whenever nothing moves."""
        pool, open_ = self.pool, self.runtime.open
        assert not self.runtime.too_many, "one was started beside max_instances others"
        assert set(open_) <= set(pool.live), "an instance that the pool does not know"
        assert not self.runtime.cut_off, "one that was well was ended under an execution"
        held = self.held()
        checked = {name for name, instance in open_.items() if instance.checking}
        assert not checked & {pooled.spec.id.instance_id for pooled in held}, "lent in a check"
        assert not held or max(held.values()) <= self.concurrency
        for pooled in pool.live.values():
            self.check_instance(pooled, held[pooled])
        self.check_waiting()
        self.check_idle()

    def check_idle(self) -> None:
        """None has gone for its idleness that was busy a moment ago."""
        least = self.config.idle_timeout_ms / 1000
        for pooled, at in list(self.came_back.items()):
            if pooled.retired.is_set():
                del self.came_back[pooled]
                idle = trio.current_time() - at
                assert not pooled.reason.startswith("it was idle") or idle >= least - 0.01

    def check_instance(self, pooled: PooledInstance, borrowers: int) -> None:
        assert pooled.outstanding == borrowers
        if pooled.state is InstanceState.RUNNING:
            assert borrowers
        elif pooled.state in (InstanceState.READY, InstanceState.CREATING):
            assert not borrowers
        if pooled in self.spent and not borrowers:
            assert pooled.retired.is_set(), "nobody has it any more, and it stays"
        if pooled.state is InstanceState.READY:
            instance = self.runtime.open[pooled.spec.id.instance_id]
            interval = self.config.health_check_interval_ms / 1000
            looked = max(instance.checked_at, pooled.idle_since, self.looked_since)
            limit = self.config.health_check_timeout_ms / 1000
            if instance.checking:
                assert trio.current_time() - instance.checked_at <= limit + 0.01, "it hangs"
            else:
                assert trio.current_time() - looked <= interval + 0.01, "it is not looked at"

    def check_waiting(self) -> None:
        waiting = {client.number for client in self.having("waiting")}
        if waiting:
            assert self.pool.take_idle() is None, "somebody waits beside an idle instance"
            assert self.pool.live, "somebody waits for nothing"
            late = [number for number in self.served if number > min(waiting)]
            assert not late, "somebody was served before one who came earlier"

    async def recover(self) -> None:
        """Once nothing goes wrong any more, everybody is served and just the minimum is left."""
        runtime = self.runtime
        runtime.starts_fail, runtime.health, runtime.slow = False, "well", 0.0
        self.pool.keep_warm(True)
        for _ in range(len(self.clients) + 1):
            for _held in self.having("holding"):
                await self.give_back(0)
            if not self.having("waiting") and not self.having("holding"):
                break
            await self.pass_time(100)
        assert not self.having("waiting")
        await self.pass_time(4 * self.config.idle_timeout_ms / 1000 + 100)
        self.check()
        ready = [p for p in self.pool.live.values() if p.state is InstanceState.READY]
        assert len(ready) == self.config.min_instances

    async def close(self) -> None:
        await self.come(self.config.max_instances * self.concurrency + 2)
        self.pool.close("we close")
        await trio.testing.wait_all_tasks_blocked()
        assert not self.having("waiting"), "told nothing"
        while self.having("holding"):
            await self.give_back(0)
        await self.pass_time(100)
        await self.pool.wait_empty()
        assert not self.runtime.open
        assert not self.runtime.starting
        assert not self.pool.live
        assert not self.having("waiting")


class TrioThread:
    """Runs async functions, one after the other, in one trio with a clock that stands still."""

    def __init__(self, history: History) -> None:
        self._token: queue.SimpleQueue[trio.lowlevel.TrioToken] = queue.SimpleQueue()
        self._over: trio.CancelScope
        self._thread = threading.Thread(target=self._serve, args=(history,))
        self._thread.start()
        self._in_trio = self._token.get()

    def _serve(self, history: History) -> None:
        with contextlib.suppress(Exception):  # what it raises, a step has told
            trio.run(self._open, history, clock=trio.testing.MockClock())

    async def _open(self, history: History) -> None:
        with trio.CancelScope() as self._over:
            async with history.open():
                self._token.put(trio.lowlevel.current_trio_token())
                await trio.sleep_forever()

    def run(self, step: Callable[..., Awaitable[object]], *args: Any) -> None:
        trio.from_thread.run(step, *args, trio_token=self._in_trio)

    def end(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._end, trio_token=self._in_trio)
        self._thread.join()

    def _end(self) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.autojump_threshold = 0  # what is slow to end has its time
        self._over.cancel()


CONFIGS = st.builds(
    lambda sizes, **more: PoolConfig(min_instances=sizes[0], max_instances=sizes[1], **more),
    st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 3), (2, 3), (1, 5)]),
    idle_timeout_ms=st.sampled_from([500, 5_000, 60_000]),
    health_check_interval_ms=st.sampled_from([1_000, 7_000]),
    health_check_timeout_ms=st.just(1_000),
    max_executions_per_instance=st.sampled_from([0, 0, 1, 3]),
    start_timeout_ms=st.just(10_000),
    selection=st.sampled_from(["least_outstanding", "round_robin", "weighted"]),
)
WHICH = st.integers(0, 20)


class PoolMachine(RuleBasedStateMachine):
    concurrency = 1
    history: History | None = None

    @initialize(config=CONFIGS, warm=st.booleans())
    def open(self, config: PoolConfig, warm: bool) -> None:
        self.sound = True
        self.history = History(config, self.concurrency)
        self.trio = TrioThread(self.history)
        self.step("keep_warm", warm)

    def step(self, name: str, *args: Any) -> None:
        history = self.history
        assert history is not None

        async def step() -> None:
            await getattr(history, name)(*args)
            await trio.testing.wait_all_tasks_blocked()
            history.check()

        self.sound = False
        self.trio.run(step)
        self.sound = True

    def any(self, state: str) -> bool:
        return self.history is not None and bool(self.history.having(state))

    @rule(count=st.integers(1, 6))
    def come(self, count: int) -> None:
        self.step("come", count)

    @rule()
    def take(self) -> None:
        self.step("take")

    @precondition(lambda self: self.any("waiting"))
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        self.step("leave", which)

    @precondition(lambda self: self.any("holding"))
    @rule(which=WHICH)
    def give_back(self, which: int) -> None:
        self.step("give_back", which)

    @precondition(lambda self: self.any("holding"))
    @rule(which=WHICH, cancelled=st.booleans())
    def break_one(self, which: int, cancelled: bool) -> None:
        self.step("give_back", which, "it broke", cancelled)

    @precondition(lambda self: self.history is not None and self.history.runtime.open)
    @rule(which=WHICH)
    def die(self, which: int) -> None:
        self.step("die", which)

    @rule(
        starts_fail=st.sampled_from([False, False, True]),
        health=st.sampled_from(["well", "well", "unwell", "hangs"]),
        slow=st.sampled_from([0.0, 0.0, 0.1, 3.0, 30.0]),
    )
    def another_day(self, starts_fail: bool, health: str, slow: float) -> None:
        assert self.history is not None
        runtime = self.history.runtime
        runtime.starts_fail, runtime.health, runtime.slow = starts_fail, health, slow

    @rule(warm=st.booleans())
    def keep_warm(self, warm: bool) -> None:
        self.step("keep_warm", warm)

    @rule(config=CONFIGS)
    def configure(self, config: PoolConfig) -> None:
        self.step("configure", config)

    @precondition(lambda self: self.history is not None and len(self.history.runtime.open) > 1)
    @rule()
    def shrink(self) -> None:
        assert self.history is not None
        config = self.history.config
        self.step("configure", attrs.evolve(config, min_instances=0, max_instances=1))

    @precondition(lambda self: self.history is not None and self.history.runtime.open)
    @rule()
    def come_during_checks(self) -> None:
        assert self.history is not None
        self.history.runtime.health = "hangs"
        self.step("pass_time", self.history.config.health_check_interval_ms / 1000)
        self.step("take")
        self.step("come", 1)

    @precondition(lambda self: self.any("holding"))
    @rule(which=WHICH)
    def give_back_late(self, which: int) -> None:
        self.step("pass_time", 100.0)
        self.step("give_back", which)
        self.step("pass_time", 1.0)

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0, 20.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.step("pass_time", seconds)

    def teardown(self) -> None:
        if self.history is None:
            return
        try:
            if self.sound:
                self.step("recover")
                self.step("close")
        finally:
            self.trio.end()


class SeveralAtOnce(PoolMachine):
    concurrency = 3


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_pool_keeps_its_promises() -> None:
    run_state_machine_as_test(PoolMachine, settings=SETTINGS)


def test_so_it_does_with_several_borrowers_of_one_instance() -> None:
    run_state_machine_as_test(SeveralAtOnce, settings=SETTINGS)
