"""A node with tasks whose every move is steered, and the model of what it has promised them."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    ErrorInfo,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    RetryPolicy,
    SpearletConfig,
    TaskConfig,
    TaskInfo,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    InstanceLostError,
    InvalidRequestError,
    TaskNotFoundError,
)

PENDING, RUNNING, RETRYING = TaskState.PENDING, TaskState.RUNNING, TaskState.RETRYING
COMPLETED, FAILED = TaskState.COMPLETED, TaskState.FAILED
CANCELLED, TIMEOUT = TaskState.CANCELLED, TaskState.TIMEOUT
BROKEN = "unavailable"
CODES = {CANCELLED: "cancelled", TIMEOUT: "deadline_exceeded"}
SLOTS, ATTEMPTS, BACKOFF_S = 2, 3, 4.0
UPLOAD = ArtifactUpload(
    name="f",
    filename="f.st",
    content=b"code",
    reuse=False,
    retry=RetryPolicy(attempts=ATTEMPTS, initial_backoff_s=BACKOFF_S, multiplier=1, jitter=0),
)
CONFIG = SpearletConfig(
    execution=ExecutionConfig(
        circuit_failures=0, max_concurrent_tasks=SLOTS, max_call_depth=64, shutdown_grace_ms=0
    ),
    tasks=TaskConfig(keep_finished=4, keep_finished_ms=0),
)


@attrs.define(eq=False)
class Waiting:
    """One who waits for a task's end."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    told: list[TaskInfo] = attrs.field(factory=list)
    gone: bool = False


@attrs.define(eq=False, repr=False)
class Record:
    """What the model knows of one task."""

    number: int
    request: InvokeRequest
    deadline: float
    parent: Record | None
    """Only if it ends with it."""
    id: str = ""
    state: TaskState = PENDING
    attempt: int = 1
    due: float = -math.inf
    """When the next attempt may begin."""
    executions: list[str] = attrs.field(factory=list)
    """Those that have begun."""
    inside: int = 0
    """How many executions of it are in their guest."""
    began: trio.Event = attrs.field(factory=trio.Event)
    answer: trio.Event = attrs.field(factory=trio.Event)
    outcome: str = ""
    code: str = ""
    also: tuple[TaskState, int, str] | None = None
    """The state, attempt and error that it may have instead: two things happened at once."""
    ended: int = 0
    """In which step."""
    caller: Waiting | None = None
    """Who called it and waits, and takes it along by going away."""
    waiting: list[Waiting] = attrs.field(factory=list)
    forgotten: bool = False

    def __repr__(self) -> str:
        return f"task {self.number} (attempt {self.attempt}, {self.state.value}, due {self.due})"

    @property
    def key(self) -> str:
        return self.request.idempotency_key


class History:
    """A node with its tasks, and what it has promised about them."""

    def __init__(self, runtime: Any, open_node: Callable[[], Any]) -> None:
        self.runtime = runtime
        self.open_node = open_node
        self.records: list[Record] = []
        self.complaints: list[str] = []
        self.keep = CONFIG.tasks.keep_finished
        self.expected_kept = self.seen_ended = 0
        self.broken = False
        """No attempt can begin at present."""
        self.step = 0

    async def live(self, started: Callable[[], None], over: trio.Event) -> None:
        runtime = self.runtime
        runtime.opens, runtime.open_error, runtime.behaviour = 0, None, self.behave
        runtime.opened, runtime.closed = [], []
        async with trio.open_nursery() as self.nursery:
            async with self.open_node() as node:
                self.api = node.api
                self.reconfigure = node.api.reconfigure
                for name in ("f", "again"):
                    upload = attrs.evolve(UPLOAD, name=name, idempotent=name == "again")
                    await self.api.deploy(upload)
                    # The first one waits for a thread that reads the code, any other for none.
                    await self.call(InvokeRequest(function=name, mode=ExecutionMode.ASYNC))
                    await self.records[-1].began.wait()
                    self.answer(self.records[-1], "ok")
                    await self.api.get_task(self.records[-1].id, wait=True)
                started()
                await over.wait()
            await trio.testing.wait_all_tasks_blocked()
            self.nursery.cancel_scope.cancel()

    # What happens --------------------------------------------------------------------------------

    async def behave(self, request: ExecutionRequest) -> ExecutionResponse:
        record = self.records[int(request.payload)]
        self.begin(record, request)
        record.began.set()
        record.inside += 1
        try:
            await record.answer.wait()
        finally:
            record.inside -= 1
        record.answer = trio.Event()
        match record.outcome:
            case "lost":
                raise InstanceLostError("shot")
            case "unsent":
                raise InstanceLostError("it was gone already", unsent=True)
            case "fail":
                return ExecutionResponse.failed(ErrorInfo(code="unknown", message="boom"))
        return ExecutionResponse.completed(b"answer to %d" % record.number)

    def begin(self, record: Record, request: ExecutionRequest) -> None:
        now = trio.current_time()
        self.expect(record.state in (PENDING, RETRYING), record, "begins")
        self.expect(record.due <= now, record, "begins before its time")
        self.expect(not self.broken, record, "begins although none can")
        self.expect(request.attempt == record.attempt, record, "begins another attempt")
        self.expect(request.execution_id not in record.executions, record, "has its id twice")
        self.expect(request.deadline_s == record.deadline - now, record, "has another deadline")
        record.id = record.id or request.task_id
        self.expect(request.task_id == record.id, record, "is another task")
        record.executions.append(request.execution_id)
        record.state = RUNNING

    def expect(self, so: bool, record: Record, what: str) -> None:
        if not so:
            self.complaints.append(f"{record} {what}")

    def end(self, record: Record, state: TaskState, code: str = "") -> None:
        """In the model; its children end with it."""
        if record.state.is_final:
            return
        record.state, record.ended = state, self.step
        record.code = code or CODES.get(state, "")
        for child in self.children(record):
            self.end(child, CANCELLED)

    def children(self, record: Record) -> Iterator[Record]:
        return (each for each in self.records if each.parent is record)

    def break_off(self, record: Record, *, again: bool) -> None:
        """In the model: an attempt breaks.

        :param again: another one may follow.
        """
        if again and self.may_retry(record):
            record.state, record.due = RETRYING, trio.current_time() + BACKOFF_S
            record.attempt += 1
        else:
            self.end(record, FAILED, BROKEN)

    def may_retry(self, record: Record) -> bool:
        due = trio.current_time() + BACKOFF_S
        return record.attempt < ATTEMPTS and due < record.deadline

    def unfinished(self) -> list[Record]:
        return [record for record in self.records if not record.state.is_final]

    def pick(self, which: int) -> Record:
        """Any; usually one that has not ended."""
        records = self.records if which % 4 == 0 else self.unfinished() or self.records
        return records[which % len(records)]

    def ready(self) -> list[Record]:
        now = trio.current_time()
        waiting = (r for r in self.unfinished() if r.state is not RUNNING)
        return [record for record in waiting if record.due <= now]

    def running(self) -> list[Record]:
        return [record for record in self.records if record.state is RUNNING]

    def kept(self) -> list[Record]:
        return [record for record in self.records if not record.forgotten]

    # Steps ---------------------------------------------------------------------------------------

    async def come(self, function: str, sync: bool, timeout: float, key: str = "") -> None:
        await self.call(self.request(function, sync, timeout, key))

    def request(self, function: str, sync: bool, timeout: float, key: str = "") -> InvokeRequest:
        return InvokeRequest(
            function=function,
            mode=ExecutionMode.SYNC if sync else ExecutionMode.ASYNC,
            timeout_s=timeout + len(self.records) / 1024,  # no two of them end at once
            idempotency_key=key,
        )

    async def call(self, request: InvokeRequest, parent: Record | None = None) -> None:
        """Somebody comes with a request of which there was none before."""
        number = len(self.records)
        request = attrs.evolve(
            request,
            payload=b"%d" % number,
            timeout_s=request.timeout_s or 1000,
            parent_task_id=parent.id if parent else "",
        )
        deadline = trio.current_time() + (request.timeout_s or 0)
        if request.detached:
            parent = None
        if parent is not None:
            deadline = min(deadline, parent.deadline)
        record = Record(number, request, deadline, parent)
        self.records.append(record)
        if request.mode is ExecutionMode.SYNC:
            waiting = Waiting()
            record.waiting.append(waiting)
            if not record.key:
                record.caller = waiting
            self.nursery.start_soon(self._invoke, record, waiting)
        else:
            answer = await self.api.invoke(request)
            record.id = answer.task.task_id
            self.expect(answer.task.state is PENDING, record, "was not accepted as pending")
        await trio.testing.wait_all_tasks_blocked()
        if not record.id and (newest := await self.api.list_tasks(limit=1)):
            record.id = newest[0].task_id

    async def _invoke(self, record: Record, waiting: Waiting) -> None:
        with waiting.scope:
            answer = await self.api.invoke(record.request)
            waiting.told.append(answer.task)
            record.id = record.id or answer.task.task_id
            done = answer.task.state is COMPLETED
            self.expect(answer.success is done, record, "is told of wrongly")

    async def come_again(self, which: int, sync: bool, other: bool) -> None:
        """Somebody uses a key that was used before."""
        keyed = [record for record in self.records if record.key]
        record = keyed[which % len(keyed)]
        record = [each for each in keyed if each.key == record.key][-1]
        request = attrs.evolve(record.request, parent_task_id="")
        if record.forgotten:
            await self.call(self.request("f", sync, 9.5, record.key))
        elif other:
            request = attrs.evolve(request, mode=ExecutionMode.ASYNC)
            with pytest.raises(IdempotencyConflictError, match=record.id):
                await self.api.invoke(attrs.evolve(request, payload=b"%d " % record.number))
        elif sync:
            waiting = Waiting()
            record.waiting.append(waiting)
            again = attrs.evolve(record, request=attrs.evolve(request, mode=ExecutionMode.SYNC))
            self.nursery.start_soon(self._invoke, again, waiting)
        else:
            request = attrs.evolve(request, mode=ExecutionMode.ASYNC)
            answer = await self.api.invoke(request)
            assert answer.task.task_id == record.id, "the same key made another task"

    async def bear(self, which: int, function: str, detached: bool, timeout: float) -> None:
        """Somebody says that a task of ours asks; usually it has not ended."""
        parent = self.pick(which)
        request = attrs.evolve(self.request(function, False, timeout), detached=detached)
        if parent.forgotten or (parent.state.is_final and not detached):
            with pytest.raises(InvalidRequestError, match="parent_task_id"):
                await self.api.invoke(attrs.evolve(request, parent_task_id=parent.id))
        else:
            await self.call(request, parent)

    async def wait_for(self, which: int) -> None:
        kept = self.kept()
        record, waiting = kept[which % len(kept)], Waiting()
        record.waiting.append(waiting)
        self.nursery.start_soon(self._wait, record, waiting)

    async def _wait(self, record: Record, waiting: Waiting) -> None:
        with waiting.scope:
            waiting.told.append(await self.api.get_task(record.id, wait=True))

    async def crowd(self, function: str, timeout: float) -> None:
        """More come than there are slots."""
        for _ in range(SLOTS + 1):
            await self.come(function, False, timeout)

    async def go_away(self, which: int) -> None:
        patient = [
            (record, waiting)
            for record in self.unfinished()
            for waiting in record.waiting
            if not waiting.gone
        ]
        if patient:
            record, waiting = patient[which % len(patient)]
            waiting.gone = True
            if waiting is record.caller:
                self.end(record, CANCELLED)
            waiting.scope.cancel()

    async def cancel(self, which: int) -> None:
        record = self.pick(which)
        if record.forgotten:
            with pytest.raises(TaskNotFoundError):
                await self.api.cancel_task(record.id)
            return
        self.end(record, CANCELLED)
        told: list[TaskInfo] = []

        async def ask() -> None:
            told.append(await self.api.cancel_task(record.id, reason="enough"))

        self.nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert [info.state for info in told] == [record.state], "cancelled, and who asked waits"
        below = [record]
        for each in below:  # they have ended already when the answer comes
            assert not each.inside
            below += self.children(each)

    async def give_answer(self, which: int, outcome: str) -> None:
        running = self.running()
        self.answer(running[which % len(running)], outcome)

    def answer(self, record: Record, outcome: str) -> None:
        record.outcome = outcome
        record.answer.set()
        if outcome == "ok":
            self.end(record, COMPLETED)
        elif outcome == "fail":
            self.end(record, FAILED, "unknown")
        else:
            again = outcome == "unsent" or record.request.function == "again"
            self.break_off(record, again=again)

    async def set_starts(self, broken: bool) -> None:
        self.broken = broken
        self.runtime.open_error = InstanceLostError("no luck") if broken else None

    async def keep_finished(self, count: int) -> None:
        self.keep = count
        limits = attrs.evolve(CONFIG.tasks, keep_finished=count)
        self.reconfigure(attrs.evolve(CONFIG, tasks=limits))

    async def pass_time(self, seconds: float) -> None:
        """From one moment at which something is to happen to the next."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        until = trio.current_time() + seconds
        while (now := trio.current_time()) < until:
            moments = [at for r in self.unfinished() for at in (r.deadline, r.due)]
            later = min([until, *(at for at in moments if at > now)])
            clock.jump(later - now)
            self.expire(later)
            await trio.testing.wait_all_tasks_blocked()
            await self.check()

    def expire(self, now: float) -> None:
        late = [record for record in self.unfinished() if record.deadline <= now]
        for record in late:
            if record.parent in late:
                # by its parent, which ends just as it does
                record.also = CANCELLED, record.attempt, CODES[CANCELLED]
            record.state, record.ended, record.code = TIMEOUT, self.step, CODES[TIMEOUT]
        for record in late:
            for child in self.children(record):
                self.end(child, CANCELLED)

    # What must be so -----------------------------------------------------------------------------

    def settle(self) -> None:
        """In the model: attempts that cannot begin have been tried."""
        if self.broken and len(self.running()) < SLOTS:
            for record in self.ready():
                if record.state.is_final:  # with its parent just now, perhaps after its own attempt
                    more = self.may_retry(record)
                    record.also = (
                        (CANCELLED, record.attempt + 1, CODES[CANCELLED])
                        if more
                        else (FAILED, record.attempt, BROKEN)
                    )
                else:
                    self.break_off(record, again=True)

    async def check(self) -> None:
        """Everything that must be so whenever nothing moves."""
        self.settle()
        self.step += 1
        assert not self.complaints, self.complaints
        assert len(self.running()) == SLOTS or not self.ready(), "it waits beside a free slot"
        assert len(self.running()) <= SLOTS
        for record in self.kept():
            await self.look_at(record)
        self.check_kept()
        for record in self.records:
            assert record.inside == (record.state is RUNNING), f"{record}: {record.inside}"
            self.check_told(record)
        assert self.runtime.live == len(self.running())
        status = await self.api.status()
        assert status.running == len(self.running())

    async def look_at(self, record: Record) -> None:
        try:
            info = await self.api.get_task(record.id)
        except TaskNotFoundError:
            assert record.state.is_final, f"{record}: forgotten before its end"
            record.forgotten = True
            return
        self.compare(record, info)

    def compare(self, record: Record, info: TaskInfo) -> None:
        if record.also is not None and record.also[:2] == (info.state, info.attempt):
            record.state, record.attempt, record.code = record.also
        assert (info.state, info.attempt) == (record.state, record.attempt), f"{record}: {info}"
        failed = info.failed_executions
        assert [each.attempt for each in failed] == list(range(1, record.attempt))
        assert len({info.execution_id, *(e.execution_id for e in failed)}) == record.attempt
        if record.state is RUNNING:
            assert info.execution_id == record.executions[-1]
        assert info.parent_task_id == record.request.parent_task_id
        assert (info.completed_at is not None) == record.state.is_final
        if not record.state.is_final:
            assert info.result is None
            return
        assert info.result is not None
        if record.state is COMPLETED:
            assert info.result.output == b"answer to %d" % record.number
        assert record.code == (info.result.error.code if info.result.error else "")

    def check_kept(self) -> None:
        ended = [record for record in self.records if record.state.is_final]
        kept = [record for record in ended if not record.forgotten]
        gone = [record for record in ended if record.forgotten]
        new = len(ended) - self.seen_ended
        self.expected_kept = min(self.expected_kept + new, self.keep)
        self.seen_ended = len(ended)
        assert len(kept) == self.expected_kept, "more or fewer are kept than was said"
        if kept and gone:
            assert max(r.ended for r in gone) <= min(r.ended for r in kept), "a newer one is gone"

    def check_told(self, record: Record) -> None:
        """Who waits is told once, at the end, and the same as everybody."""
        for waiting in record.waiting:
            if waiting.gone:
                assert not waiting.told
            elif record.state.is_final:
                assert len(waiting.told) == 1, f"{record}: {waiting.told}"
                self.compare(record, waiting.told[0])
            else:
                assert not waiting.told, f"{record}: told before its end"

    async def recover(self) -> None:
        """Once nothing goes wrong any more, everything comes to its end."""
        await self.set_starts(False)
        while self.unfinished():
            if self.running():
                await self.give_answer(0, "ok")
                await trio.testing.wait_all_tasks_blocked()
                await self.check()
            else:
                await self.pass_time(BACKOFF_S)
        status = await self.api.status()
        assert (status.running, status.queued) == (0, 0)


class TrioThread:
    """Runs async functions, one after the other, in one trio with a clock that stands still."""

    def __init__(self, history: History) -> None:
        self._token: queue.SimpleQueue[trio.lowlevel.TrioToken | None] = queue.SimpleQueue()
        self._over = trio.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, args=(history,), daemon=True)
        self._thread.start()
        if (token := self._token.get()) is None:
            assert self.error is not None
            raise self.error
        self._in_trio = token

    def _serve(self, history: History) -> None:
        def started() -> None:
            self._token.put(trio.lowlevel.current_trio_token())

        try:
            trio.run(history.live, started, self._over, clock=trio.testing.MockClock())
        except BaseException as error:
            self.error = error
            self._token.put(None)

    def run(self, step: Callable[..., Awaitable[object]], *args: Any) -> None:
        trio.from_thread.run(step, *args, trio_token=self._in_trio)

    def end(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._over.set, trio_token=self._in_trio)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the node does not end"
