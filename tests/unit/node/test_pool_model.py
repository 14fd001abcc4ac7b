"""The pool against a model of what it promises, whatever happens in whatever order.

Hypothesis makes up histories of tasks that come, go away and give back, instances that break, die,
hang or cannot start, time that passes and limits that change; after every step the promises hold.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
        self._runtime = runtime

    async def execute(self, request: Any) -> Any:
        raise NotImplementedError

    async def check_health(self) -> None:
        self.checking = True
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
    """Plays steps and checks the promises."""

    def __init__(self, pool: InstancePool, runtime: ModelRuntime, nursery: trio.Nursery) -> None:
        self.pool = pool
        self.runtime = runtime
        self.nursery = nursery
        self.clients: list[Client] = []
        self.served: list[int] = []
        runtime.is_held = self.is_held

    def is_held(self, instance_id: str) -> bool:
        return any(
            client.held is not None and client.held.spec.id.instance_id == instance_id
            for client in self.having("holding")
        )

    def having(self, state: str) -> list[Client]:
        return [client for client in self.clients if client.state == state]

    async def _acquire(self, client: Client) -> None:
        with client.scope:
            try:
                client.held = await self.pool.acquire()
            except InstanceError:
                client.state = "failed"
                return
            client.state = "holding"
            self.served.append(client.number)
            return
        client.state = "cancelled"

    def come(self, which: int) -> None:
        client = Client(len(self.clients))
        self.clients.append(client)
        self.nursery.start_soon(self._acquire, client)

    def take(self, which: int) -> None:
        if (pooled := self.pool.take_idle()) is not None:
            assert not self.having("waiting")
            assert not pooled.cold
            self.clients.append(Client(len(self.clients), held=pooled, state="holding"))

    def leave(self, which: int) -> None:
        if waiting := self.having("waiting"):
            waiting[which % len(waiting)].scope.cancel()

    def give_back(self, which: int, *, broken: str | None = None) -> None:
        if holding := self.having("holding"):
            client = holding[which % len(holding)]
            assert client.held is not None
            client.state = "gone"
            self.pool.release(client.held, broken=broken)

    def break_one(self, which: int) -> None:
        self.give_back(which, broken="it broke")

    def die(self, which: int) -> None:
        if live := list(self.runtime.open.values()):
            live[which % len(live)].dead.set()

    def start_badly(self, which: int) -> None:
        self.runtime.starts_fail = which % 4 == 0

    def fall_ill(self, which: int) -> None:
        self.runtime.health = ("well", "well", "unwell", "hangs")[which % 4]

    def slow_down(self, which: int) -> None:
        self.runtime.slow = (0.0, 0.0, 0.0, 0.1, 3.0, 30.0)[which % 6]

    def keep_warm(self, which: int) -> None:
        self.pool.keep_warm(which % 3 != 0)

    def check(self, concurrency: int) -> None:
        pool, open_ = self.pool, self.runtime.open
        assert not self.runtime.too_many, "one was started beside max_instances others"
        assert set(open_) <= set(pool.live), "an instance that the pool does not know"
        assert not self.runtime.cut_off, "one that was well was ended under an execution"
        held: dict[PooledInstance, int] = {}
        for client in self.having("holding"):
            assert client.held is not None
            held[client.held] = held.get(client.held, 0) + 1
        checked = {name for name, instance in open_.items() if instance.checking}
        assert not checked & {pooled.spec.id.instance_id for pooled in held}, "lent in a check"
        for pooled, times in held.items():
            assert pooled.outstanding == times <= concurrency
        for pooled in pool.live.values():
            assert pooled.outstanding == held.get(pooled, 0)
            if pooled.state is InstanceState.RUNNING:
                assert pooled.outstanding
            elif pooled.state in (InstanceState.READY, InstanceState.CREATING):
                assert not pooled.outstanding
        if self.having("waiting"):
            assert pool.take_idle() is None, "somebody waits beside an idle instance"
            assert pool.live, "somebody waits for nothing"
        waiting = {client.number for client in self.having("waiting")}
        if waiting:
            late = [number for number in self.served if number > min(waiting)]
            assert not late, "somebody was served before one who came earlier"


STEP = st.tuples(
    st.sampled_from(
        [
            *["come"] * 5,
            *["give_back"] * 3,
            *["take", "leave", "break_one", "die", "start_badly", "fall_ill", "slow_down"],
            *["keep_warm", "configure", "pass_time"],
        ]
    ),
    st.integers(0, 100),
)
STEPS = st.integers(0, 60).flatmap(lambda n: st.lists(STEP, min_size=n, max_size=n))
"""Of any length alike; lists alone are mostly short."""


def config(which: int) -> PoolConfig:
    return PoolConfig(
        min_instances=which % 3,
        max_instances=2 + which % 5,
        idle_timeout_ms=(500, 5_000, 60_000)[which % 3],
        health_check_interval_ms=(300, 7_000)[which % 2],
        health_check_timeout_ms=1_000,
        max_executions_per_instance=(0, 1, 3)[which % 3],
        start_timeout_ms=10_000,
        selection=("least_outstanding", "round_robin", "weighted")[which % 3],
    )


COME_DURING_A_CHECK = [
    *[("come", 0), ("give_back", 0), ("fall_ill", 3)],
    *[("pass_time", 0)] * 4,
    *[("take", 0), ("come", 0)],
]
"""With ``config(2)``; chance seldom finds it."""


@settings(max_examples=100, deadline=None)
@given(STEPS, st.integers(0, 100), st.sampled_from([1, 3]))
@example(COME_DURING_A_CHECK, 2, 1)
def test_the_pool_keeps_its_promises(
    steps: list[tuple[str, int]], first: int, concurrency: int
) -> None:
    trio.run(
        play, steps, config(first), concurrency, clock=trio.testing.MockClock(autojump_threshold=0)
    )


async def play(steps: list[tuple[str, int]], current: PoolConfig, concurrency: int) -> None:
    runtime = ModelRuntime()
    numbers = itertools.count(1)
    async with open_background() as background, trio.open_nursery() as nursery:
        pool = InstancePool(
            ARTIFACT,
            runtime,  # type: ignore[arg-type]
            current,
            background=background,
            new_id=lambda: RuntimeInstanceId(runtime_type="r", instance_id=f"i-{next(numbers)}"),
            log=logging.getLogger("spear.test"),
            concurrency=concurrency,
        )
        runtime.limit = current.max_instances
        history = History(pool, runtime, nursery)
        for step, which in steps:
            if step == "pass_time":
                await trio.sleep((0.1, 1, 20, 500)[which % 4])
            elif step == "configure":
                current = config(which)
                pool.configure(current)
                runtime.limit = current.max_instances
            else:
                getattr(history, step)(which)
            await trio.testing.wait_all_tasks_blocked()
            history.check(concurrency)
        await recover(history, current)
        pool.close("we close")
        for _ in history.having("holding"):
            history.give_back(0)
        await pool.wait_empty()
        assert not runtime.open
        assert not runtime.starting
        assert not pool.live
        assert not history.having("waiting")


async def recover(history: History, current: PoolConfig) -> None:
    """Once nothing goes wrong any more, everybody is served and the minimum is there again."""
    history.runtime.starts_fail = False
    history.runtime.health = "well"
    history.runtime.slow = 0.0
    history.pool.keep_warm(True)
    for _ in range(len(history.clients) + 1):
        for _held in history.having("holding"):
            history.give_back(0)
        await trio.sleep(100)
    assert not history.having("waiting")
    ready = [p for p in history.pool.live.values() if p.state is InstanceState.READY]
    assert current.min_instances <= len(ready) <= current.max_instances
