"""Agents: long-lived workers that connect back and take one execution after the other."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import attrs
import trio

from spear_core.api import (
    Channel,
    ChannelOffer,
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    ExecutionUsage,
    Hostcalls,
    HostcallValue,
    InstanceSpec,
    InstanceStatistics,
    PluginContext,
    StreamingInstance,
)
from spear_core.errors import ChannelError, InstanceLostError, InstanceStartError, SpearError
from spear_core.rpc import Call, Reply, Session, open_session
from spear_core.rpc.codec import execution_request_to_args, execution_response_from_head
from spear_runtime_process._agent_stream import AgentStream
from spear_runtime_process._guest import Guest, GuestSpec, open_guest, open_scratch
from spear_runtime_process._launchers import SDK_WORKER, Launchers
from spear_runtime_process._nursery import open_service_nursery
from spear_runtime_process._place import Place
from spear_runtime_process._plan import Confiner, Plan
from spear_runtime_process._python import calling
from spear_runtime_process._streams import Lines

_TERM_SECONDS = 0.5
_EXIT_STATUS_SECONDS = 5.0
"""For a worker to be dead once its channel has broken, and for its launcher to say how it ended:
both take their time where memory is large or the machine busy."""
_SILENCE_SECONDS = 0.25
"""The channel of a dead worker is at its end once all is read. Where a process that escaped holds a
copy of it open, silence for so long is the end."""
_LAST_WORDS_SECONDS = 10.0


class AgentInstance(StreamingInstance):
    """One worker process. Made by :func:`open_agent`."""

    def __init__(
        self,
        spec: InstanceSpec,
        plan: Plan,
        hostcalls: Hostcalls,
        *,
        cancel_grace: float,
        log_bytes: int,
        max_input: int,
    ) -> None:
        self.id = spec.id
        self._max_input = max_input
        self._name = spec.artifact.ref
        self._plan = plan
        self._hostcalls = hostcalls
        self._cancel_grace = cancel_grace
        self._executions = 0
        self._concurrency = spec.artifact.concurrency
        self._running: set[str] = set()
        self._stopping: set[str] = set()
        """Cancelled and not yet ended: they ask for nothing more, but may still say something."""
        self._latest = ""
        self._failed = trio.Event()
        self._reason = ""
        self._tells_cpu = False
        """Whether the worker has said what CPU time its last execution took."""
        self._printed = select.poll()
        self.stdout = Lines(self._logger("stdout"), log_bytes)
        self.stderr = Lines(self._logger("stderr"), log_bytes)

    def _logger(self, source: str) -> Callable[[str], None]:
        return lambda text: self._hostcalls.log(self._latest, text, source=source)

    def attach(self, guest: Guest, channel: Channel, session: Session) -> None:
        """Called once, when the worker has connected."""
        self._guest = guest
        self._channel = channel
        self._session = session
        for stream in (guest.stdout, guest.stderr):
            self._printed.register(stream.fileno(), select.POLLIN)

    # what the worker sends

    def on_notice(self, call: Call) -> None:
        """A log entry; anything else is not for us."""
        execution = call.args.get("execution_id")
        if call.method == "log" and self._is_heard(execution):
            source = call.args.get("source")
            self._hostcalls.log(
                str(execution),
                str(call.args.get("message", "")),
                level=str(call.args.get("level", "info")),
                source=source if source in ("stdout", "stderr") else "guest",
            )

    def _is_heard(self, execution: object) -> bool:
        """Whether log entries of this execution are taken."""
        return (
            execution == self._latest or execution in self._running or execution in self._stopping
        )

    async def on_request(self, call: Call) -> Reply:
        """A hostcall, which only an execution that is running may make."""
        if call.method != "hostcall":
            raise SpearError(f"no method {call.method!r}", code="unimplemented")
        execution = call.args.get("execution_id")
        if execution not in self._running:
            raise SpearError(
                f"execution {execution!r} is not running here", code="failed_precondition"
            )
        name = str(call.args.get("name", ""))
        answer = await self._hostcalls.exchange(
            str(execution),
            name,
            HostcallValue(call.payload, call.fd),
            takes_fd=self._session.passes_fds and call.args.get("takes_fd") is True,
        )
        return Reply({}, answer.payload, answer.fd)

    # the instance

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        """Hand the execution to the worker; see :meth:`Instance.execute`."""
        self._begin(request)
        before = self._cpu_before()
        finished = False
        try:
            if self._plan.bounds.cpu is None:
                response = await self._ask(request)
            else:
                response = await self._ask_watched(request)
            finished = True
        except SpearError as exc:
            finished = True
            return await self._unanswered(exc)
        finally:
            self._running.discard(request.execution_id)
            if not finished:
                await self._stop(request.execution_id)
        self._drain()
        return self._complete(response, before)

    def _begin(self, request: ExecutionRequest) -> None:
        if self._failed.is_set():
            raise InstanceLostError(self._reason, unsent=True)
        self._executions += 1
        if not self._running:
            self._guest.reset_peak_memory()
            self.stdout.restart()
            self.stderr.restart()
        self._latest = request.execution_id
        self._running.add(request.execution_id)

    def _cpu_before(self) -> float | None:
        """The worker's CPU time now, unless it tells by itself what executions take."""
        return None if self._tells_cpu else self._guest.own_cpu_seconds()

    async def _unanswered(self, error: SpearError) -> ExecutionResponse:
        """The worker did not answer, or with a refusal. Raises: InstanceLostError."""
        if isinstance(error, ChannelError):
            return await self._lost(error)
        raise InstanceLostError(f"{self._name} refused the execution: {error}") from error

    @contextlib.asynccontextmanager
    async def stream(self, request: ExecutionRequest) -> AsyncGenerator[AgentStream]:
        """Hand it to the worker piece by piece; see :meth:`StreamingInstance.stream`."""
        self._begin(request)
        before = self._cpu_before()

        def complete(response: ExecutionResponse) -> ExecutionResponse:
            self._drain()
            return self._complete(response, before)

        args = execution_request_to_args(request) | {"max_input_bytes": self._max_input}
        stream: AgentStream | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                if self._plan.bounds.cpu is not None:
                    nursery = await stack.enter_async_context(open_service_nursery())
                    stack.callback(nursery.cancel_scope.cancel)
                    nursery.start_soon(self._guest.watch_cpu, self._most_cpu())
                raw = await stack.enter_async_context(self._session.open_stream("stream", args))
                stream = AgentStream(raw, complete=complete, explain=self._unanswered)
                yield stream
        finally:
            self._running.discard(request.execution_id)
            if stream is None or not stream.ended:
                await self._stop(request.execution_id)

    async def _ask(self, request: ExecutionRequest) -> ExecutionResponse:
        arguments = execution_request_to_args(request)
        reply = await self._session.request("execute", arguments, request.payload)
        return execution_response_from_head(reply.head, reply.payload)

    async def _ask_watched(self, request: ExecutionRequest) -> ExecutionResponse:
        """The same under a limit of CPU time."""
        async with open_service_nursery() as nursery:
            nursery.start_soon(self._guest.watch_cpu, self._most_cpu())
            try:
                return await self._ask(request)
            finally:
                nursery.cancel_scope.cancel()

    def _most_cpu(self) -> float:
        """CPU seconds of the worker; several executions cannot be told apart."""
        assert self._plan.bounds.cpu is not None
        return self._plan.bounds.cpu * self._concurrency

    def _complete(self, response: ExecutionResponse, before: float | None) -> ExecutionResponse:
        """Hold the answer to the output limit and add what only we know.

        :param before: the worker's CPU time when the execution began, if that was looked at.
        """
        told = response.usage
        cpu = told.cpu_seconds
        self._tells_cpu = cpu is not None
        if cpu is None and before is not None and self._concurrency == 1:
            after = self._guest.own_cpu_seconds()
            cpu = None if after is None else after - before
        usage = ExecutionUsage(
            cpu_seconds=cpu,
            peak_memory_bytes=told.peak_memory_bytes,
            isolation=self._plan.level,
        )
        size, limit = len(response.payload), self._plan.bounds.output
        if size <= limit:
            return attrs.evolve(response, usage=usage)
        message = f"{self._name} returned {size} bytes, more than its limit of {limit}"
        error = ErrorInfo(code="resource_exhausted", message=message, kind="output")
        return ExecutionResponse(status=ExecutionStatus.FAILED, error=error, usage=usage)

    def _drain(self) -> None:
        """What was printed before the answer came belongs before it in the log."""
        if self._printed.poll(0):
            self.stdout.drain(self._guest.stdout.fileno())
            self.stderr.drain(self._guest.stderr.fileno())
        else:  # mostly, and this is one system call
            self.stdout.flush()
            self.stderr.flush()

    async def _lost(self, reason: ChannelError) -> ExecutionResponse:
        """The channel broke: learn how the worker ended, and tell. Raises: InstanceLostError."""
        with trio.move_on_after(_EXIT_STATUS_SECONDS):
            ended = await self._guest.process.wait()
            await self._hear_out()
            error = self._guest.explain(ended, self.stderr.tail)
            self.fail(error.message)
            if error.code == "resource_exhausted":
                usage = ExecutionUsage(isolation=self._plan.level)
                error = attrs.evolve(error, details={**error.details, "stderr": self.stderr.tail})
                return ExecutionResponse(status=ExecutionStatus.FAILED, error=error, usage=usage)
            raise InstanceLostError(f"{error.message} in the middle of an execution")
        self.fail(f"{self._name} broke its channel: {reason}")
        await self._guest.end()
        raise InstanceLostError(self._reason) from reason

    def fail(self, reason: str) -> None:
        """From now on the instance takes no more executions."""
        if not self._failed.is_set():
            self._reason = reason
            self._failed.set()

    async def _stop(self, execution_id: str) -> None:
        """The execution was cancelled: let the worker clean up for a moment, then end it.

        One that has others, too, goes on with them if this one ends by itself in time. What it
        says meanwhile is in the log when this returns.
        """
        self._stopping.add(execution_id)
        try:
            if self._concurrency > 1 and await self._has_ended(execution_id):
                return
            self.fail(f"{self._name}: its execution was cancelled")
            with trio.move_on_after(self._cancel_grace, shield=True):
                await self.ask_to_end(self._cancel_grace)
                await self._guest.process.wait()
            await self._guest.end()
            await self._hear_out()
        finally:
            self._stopping.discard(execution_id)

    async def _hear_out(self) -> None:
        """Take in what a worker that is dead had still sent and printed."""
        heard = -1
        with trio.move_on_after(_LAST_WORDS_SECONDS, shield=True):
            while heard != (heard := self._channel.statistics().messages_received):
                with trio.move_on_after(_SILENCE_SECONDS):
                    await self._session.wait_closed()
                    break
                await trio.lowlevel.checkpoint()  # its reader has had a turn since
        self._drain()

    async def _has_ended(self, execution_id: str) -> bool:
        """Whether a cancelled execution has ended within the grace; the worker says so."""
        with trio.move_on_after(self._cancel_grace, shield=True):
            try:
                await self._session.request("ended", {"execution_id": execution_id})
            except SpearError:
                return False
            return not self._failed.is_set()
        return False

    def fit(self) -> bool:
        """See :meth:`Instance.fit`."""
        return self._concurrency > 1 and not self._failed.is_set()

    async def ask_to_end(self, grace: float) -> None:
        """Tell the worker to finish what it does and exit."""
        with contextlib.suppress(ChannelError):
            await self._session.notify("shutdown", {"grace_s": grace})

    async def close(self, grace: float) -> None:
        """End the worker: by a message, then SIGTERM; what is left is killed by our caller."""
        self.fail(f"{self._name}: the instance was closed")
        with trio.move_on_after(grace):
            await self.ask_to_end(grace)
            await self._guest.process.wait()
            return
        self._guest.process.terminate()
        with trio.move_on_after(_TERM_SECONDS):
            await self._guest.process.wait()

    async def check_health(self) -> None:
        """The worker answers. See :meth:`Instance.check_health`."""
        if self._failed.is_set():
            raise InstanceLostError(self._reason)
        try:
            await self._session.request("health", {})
        except ChannelError as exc:
            raise InstanceLostError(f"{self._name} broke its channel: {exc}") from exc

    async def wait_failed(self) -> str:
        """Returns when the worker process is dead or its channel is broken."""
        await self._failed.wait()
        return self._reason

    def statistics(self) -> InstanceStatistics:
        """Of the whole process tree of the worker."""
        return InstanceStatistics(
            executions=self._executions,
            cpu_seconds=self._guest.cpu_seconds(),
            memory_bytes=self._guest.memory_bytes(),
            pid=self._guest.pid,
        )

    # the watch

    async def watch(self) -> None:
        """Notice the worker's end, by its pidfd, and make everything that waits for it know."""
        await self._guest.process.wait_dead()
        self._guest.kill()  # what it has started may hold its side of the channel open
        reason = f"{self._name}: its worker is dead"
        with trio.move_on_after(_EXIT_STATUS_SECONDS):
            ended = await self._guest.process.wait()
            reason = ""
        await self._hear_out()
        self.fail(reason or self._guest.explain(ended, self.stderr.tail).message)
        await self._channel.aclose()


def _guest_spec(
    spec: InstanceSpec, offer: ChannelOffer, *, code: Place, plan: Plan, forked: bool
) -> GuestSpec:
    artifact = spec.artifact
    return GuestSpec(
        artifact=artifact,
        code=code,
        plan=plan,
        argv=() if forked else tuple(calling(SDK_WORKER, "main")),
        agent=f"{SDK_WORKER}:main" if forked else "",
        env={
            "SPEAR_CHANNEL": offer.address,
            "SPEAR_CHANNEL_SECRET": offer.secret.hex(),
            "SPEAR_INSTANCE_ID": spec.id.instance_id,
            "SPEAR_ARTIFACT": artifact.ref,
            "SPEAR_ARTIFACT_FILENAME": artifact.filename,
            "SPEAR_ENTRY": artifact.entry,
            "SPEAR_CONCURRENCY": str(artifact.concurrency),
            **code.for_agent(),
        },
        secrets=spec.secrets,
        channel=offer.address,
    )


async def _accept(offer: ChannelOffer, guest: Guest, instance: AgentInstance) -> Channel:
    """Wait for the worker's connection. Raises: InstanceStartError when it ends before that."""
    accepted: list[Channel] = []

    async def stop_at_death(scope: trio.CancelScope) -> None:
        await guest.process.wait_dead()
        scope.cancel()

    try:
        async with open_service_nursery() as nursery:
            nursery.start_soon(stop_at_death, nursery.cancel_scope)
            accepted.append(await offer.accept())
            nursery.cancel_scope.cancel()
    except BaseException:  # cancelled between the connection and its use
        for channel in accepted:
            await trio.aclose_forcefully(channel)
        raise
    if accepted:
        return accepted[0]
    ended = await guest.process.wait()
    await guest.end()
    instance.stderr.drain(guest.stderr.fileno())
    if ended.start_error:
        raise InstanceStartError(f"{guest.name} could not start: {ended.start_error}")
    said = f":\n{instance.stderr.tail}" if instance.stderr.tail else ""
    raise InstanceStartError(
        f"{guest.explain(ended, instance.stderr.tail).message} before it was ready{said}"
    )


@contextlib.asynccontextmanager
async def open_agent(
    spec: InstanceSpec,
    *,
    code: Place,
    plan: Plan,
    confiner: Confiner,
    launchers: Launchers,
    context: PluginContext,
    scratch: Path,
) -> AsyncGenerator[AgentInstance]:
    """Start a worker and wait until it is connected; it ends with the block.

    Raises: InstanceStartError when it can't be started or ends before it has connected.
    """
    zygote = None if plan.namespaces else await launchers.zygote()
    launcher = zygote or await launchers.plain()
    config = confiner.config
    instance = AgentInstance(
        spec,
        plan,
        context.hostcalls,
        cancel_grace=config.cancel_grace_ms / 1000,
        log_bytes=context.spearlet_config.logs.max_task_log_bytes,
        max_input=context.spearlet_config.execution.max_input_bytes,
    )
    async with contextlib.AsyncExitStack() as stack:
        directory = await stack.enter_async_context(open_scratch(scratch))
        nursery = await stack.enter_async_context(open_service_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        async with context.channels.open_offer(spec.id) as offer:
            guest_spec = _guest_spec(spec, offer, code=code, plan=plan, forked=zygote is not None)
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            guest = await stack.enter_async_context(
                open_guest(launcher, guest_spec, confiner, scratch=directory, stdin=stdin)
            )
            nursery.start_soon(instance.stdout.pump, guest.stdout)
            nursery.start_soon(instance.stderr.pump, guest.stderr)
            channel = await _accept(offer, guest, instance)
        session = await stack.enter_async_context(
            open_session(
                channel, initiator=False, handler=instance.on_request, on_notice=instance.on_notice
            )
        )
        instance.attach(guest, channel, session)
        nursery.start_soon(guest.watch_memory)
        nursery.start_soon(instance.watch)
        yield instance
        await instance.close(config.stop_grace_ms / 1000)
