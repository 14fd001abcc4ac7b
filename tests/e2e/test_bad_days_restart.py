"""``kill -9`` of a node at any moment: the next one accounts for everything that was accepted."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    NodeApi,
    TaskInfo,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import NodeUnreachableError

WORK = '''
"""Functions that say when they begin."""

import time

from spear_sdk import Context, function


@function
def work(text: str, context: Context) -> str:
    """``milliseconds number`` → the same, in capitals, a little later."""
    context.log.info("began %s", text)
    time.sleep(int(text.split()[0]) / 1000)
    return f"did {text}"
'''
ROUNDS = 10
KEEP = "[tasks]\nkeep_finished = 100000\n[execution]\nmax_concurrent_tasks = 8\n"


@attrs.define
class Ledger:
    """What the node has said, and so must stand by."""

    inputs: dict[str, bytes] = attrs.field(factory=dict)
    """Of every task that was accepted."""
    idempotent: set[str] = attrs.field(factory=set)
    ends: dict[str, TaskInfo] = attrs.field(factory=dict)
    """Of every task whose end somebody was told."""
    keys: dict[str, str] = attrs.field(factory=dict)
    """Idempotency key → task."""

    def ended(self, task: TaskInfo) -> None:
        assert task.state.is_final
        told = self.ends.setdefault(task.task_id, task)
        assert (told.state, told.result) == (task.state, task.result), "an end is an end"


async def deploy(api: NodeApi) -> None:
    upload = ArtifactUpload(name="once", filename="work.py", content=WORK.encode(), entry="work")
    await api.deploy(upload)
    await api.deploy(attrs.evolve(upload, name="twice", idempotent=True))


async def load(api: NodeApi, ledger: Ledger, rng: random.Random) -> None:
    """Ask for this and that, and note what is answered, until the node is gone."""

    async def submit() -> None:
        while True:
            name = rng.choice(["once", "twice"])
            text = f"{rng.choice([0, 1, 5, 30])} {rng.getrandbits(48)}"
            key = str(rng.getrandbits(48)) if rng.random() < 0.3 else ""
            mode = rng.choice([ExecutionMode.ASYNC, ExecutionMode.ASYNC, ExecutionMode.SYNC])
            request = InvokeRequest(
                function=name, payload=text.encode(), mode=mode, idempotency_key=key
            )
            task = (await api.invoke(request)).task
            ledger.inputs[task.task_id] = request.payload
            if name == "twice":
                ledger.idempotent.add(task.task_id)
            if key:
                ledger.keys[key] = task.task_id
            if task.state.is_final:
                ledger.ended(task)

    async def hear() -> None:
        while True:
            open_ones = [t for t in ledger.inputs if t not in ledger.ends]
            if open_ones:
                task_id = rng.choice(open_ones)
                if rng.random() < 0.1:
                    ledger.ended(await api.cancel_task(task_id))
                else:
                    ledger.ended(await api.get_task(task_id, wait=True))
            else:
                await api.status()

    async with trio.open_nursery() as nursery:
        for each in (submit, submit, submit, hear, hear):
            nursery.start_soon(_until_it_is_gone, each)


async def _until_it_is_gone(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except NodeUnreachableError:
        return


async def check(api: NodeApi, ledger: Ledger) -> None:
    """Hold the node to what the one before it has said."""
    for task_id, told in ledger.ends.items():
        task = await api.get_task(task_id)
        assert (task.state, task.result) == (told.state, told.result)
    for task_id, payload in ledger.inputs.items():
        task = await api.get_task(task_id, wait=True)
        ledger.ended(task)
        begun = [e for e in (await api.read_log(task_id)).entries if e.source == "guest"]
        assert all(e.message == f"began {payload.decode()}" for e in begun)
        if task.state is TaskState.COMPLETED:
            assert task.result is not None
            assert task.result.output == b"did " + payload
            assert begun
        elif task.state is TaskState.FAILED:
            assert task.result is not None
            assert task.result.error is not None
            assert task.result.error.kind == "NodeRestartedError"
        else:
            assert task.state is TaskState.CANCELLED
        if task_id not in ledger.idempotent:
            assert len(begun) <= 1, "at most once"


async def again(api: NodeApi, ledger: Ledger) -> None:
    """Who comes again with an idempotency key gets what there is."""
    for key, task_id in ledger.keys.items():
        name = "twice" if task_id in ledger.idempotent else "once"
        request = InvokeRequest(function=name, payload=ledger.inputs[task_id], idempotency_key=key)
        assert (await api.invoke(request)).task == await api.get_task(task_id)


async def long_one(api: NodeApi) -> tuple[str, bytes]:
    """A task that may not run twice, and whose guest runs."""
    request = InvokeRequest(
        function="once", payload=b"600000 long", mode=ExecutionMode.ASYNC, timeout_s=3600
    )
    task_id = (await api.invoke(request)).task.task_id
    while not (await api.read_log(task_id, wait=True)).entries:
        pass
    return task_id, request.payload


def test_ten_kills_at_random_moments_lose_nothing(home: Any) -> None:
    (home.folder / "keep.toml").write_text(KEEP)
    moments = random.Random(4)
    rng = random.Random(20)
    ledger = Ledger()
    url = f"unix://{home.state}/node.sock"
    for number in range(ROUNDS):
        node = home.node("--config", str(home.folder / "keep.toml"))

        async def one_life(node: Any = node, first: bool = not number) -> None:
            async with connect(url) as api:
                if first:
                    await deploy(api)
                await check(api, ledger)
                await again(api, ledger)
                long_id, payload = await long_one(api)
                enough = len(ledger.inputs) + moments.randint(1, 30)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(load, api, ledger, rng)
                    while len(ledger.inputs) < enough:  # noqa: ASYNC110 - counted, not timed
                        await trio.sleep(0.001)
                    await trio.sleep(moments.uniform(0.0, 0.05))
                    node.process.kill()
                    node.process.wait()
                ledger.inputs[long_id] = payload

        trio.run(one_life)
    node = home.node("--config", str(home.folder / "keep.toml"))

    async def the_end() -> None:
        async with connect(url) as api:
            await check(api, ledger)
            await again(api, ledger)
            status = await api.status()
            assert (status.running, status.queued) == (0, 0)

    trio.run(the_end)
    assert node.stop() == 0
    states = [task.state for task in ledger.ends.values()]
    assert len(states) == len(ledger.inputs) > 50
    assert states.count(TaskState.COMPLETED) > 20
    assert states.count(TaskState.FAILED) >= ROUNDS, "one at least ran whenever a node was killed"
