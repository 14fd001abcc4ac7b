"""Commands: one process per execution, input on stdin, output on stdout, stderr to the log."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path

import attrs
import trio

from spear_core.api import (
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionUsage,
    Hostcalls,
    InstanceSpec,
    InstanceStatistics,
    StreamingInstance,
)
from spear_core.errors import InstanceLostError, InstanceStartError
from spear_runtime_process._command_stream import CommandStream
from spear_runtime_process._guest import Guest, GuestSpec, memory_file, open_guest, open_scratch
from spear_runtime_process._launcher import UNKNOWN_EXIT, Exit
from spear_runtime_process._launchers import Launchers
from spear_runtime_process._nursery import open_service_nursery
from spear_runtime_process._place import Place
from spear_runtime_process._plan import Confiner, Plan
from spear_runtime_process._recognise import command_line
from spear_runtime_process._streams import Lines, read_bounded


@attrs.define(eq=False)
class _Outcome:
    output: bytes = b""
    complete: bool = True


class CommandInstance(StreamingInstance):
    """Runs a command once per execution; between executions there is no process."""

    def __init__(
        self,
        spec: InstanceSpec,
        *,
        code: Place,
        plan: Plan,
        confiner: Confiner,
        launchers: Launchers,
        hostcalls: Hostcalls,
        scratch: Path,
        log_bytes: int,
    ) -> None:
        self.id = spec.id
        self._artifact = spec.artifact
        self._code = code
        self._secrets = spec.secrets
        self._plan = plan
        self._confiner = confiner
        self._launchers = launchers
        self._hostcalls = hostcalls
        self._scratch = scratch
        self._log_bytes = log_bytes
        self._executions = 0
        self._cpu = 0.0
        self._guest: Guest | None = None

    @contextlib.asynccontextmanager
    async def _start(
        self, request: ExecutionRequest, stdin: int
    ) -> AsyncGenerator[tuple[Guest, Lines]]:
        """The command with this stdin, which is closed here, and where its stderr goes."""
        async with contextlib.AsyncExitStack() as stack:
            unused = contextlib.ExitStack()
            stack.push(unused)
            unused.callback(os.close, stdin)
            launcher = await self._launchers.plain()
            lines = Lines(
                lambda text: self._hostcalls.log(request.execution_id, text, source="stderr"),
                self._log_bytes,
            )
            scratch = await stack.enter_async_context(open_scratch(self._scratch))
            self._executions += 1
            unused.pop_all()
            self._guest = await stack.enter_async_context(
                open_guest(
                    launcher, self._spec(request), self._confiner, scratch=scratch, stdin=stdin
                )
            )
            try:
                yield self._guest, lines
            finally:
                self._guest = None

    def _spec(self, request: ExecutionRequest) -> GuestSpec:
        return GuestSpec(
            artifact=self._artifact,
            code=self._code,
            plan=self._plan,
            argv=(*command_line(self._code.file), *self._artifact.args),
            env={
                "SPEAR_EXECUTION_ID": request.execution_id,
                "SPEAR_TASK_ID": request.task_id,
                "SPEAR_ENTRY": request.entry,
                **({"TRACEPARENT": request.trace} if request.trace else {}),
                **({"SPEAR_CONTEXT": _as_json(request.context)} if request.context else {}),
                **self._code.for_command(),
            },
            secrets=self._secrets,
        )

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        """Run the command; see :meth:`Instance.execute`."""
        async with self._start(request, memory_file(request.payload)) as (guest, lines):
            ended: Exit | None = None
            outcome = _Outcome()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._collect, guest, outcome)
                    nursery.start_soon(lines.pump, guest.stderr)
                    ended = await self._attend(guest)
            finally:
                if ended is None:
                    await self._stop(guest, lines)
            return self._respond(guest, ended, outcome, lines.tail)

    @contextlib.asynccontextmanager
    async def stream(self, request: ExecutionRequest) -> AsyncGenerator[CommandStream]:
        """Run the command with live pipes; see :meth:`StreamingInstance.stream`."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as unused:
            unused.callback(os.close, ours)
            async with self._start(request, theirs) as (guest, lines), open_service_nursery() as n:
                unused.pop_all()
                stream = CommandStream(ours, guest.stdout, n)
                n.start_soon(stream.attend, partial(self._run_out, guest, lines))
                try:
                    yield stream
                finally:
                    if not stream.ended:
                        await self._stop(guest, lines)
                    stream.close()
                    n.cancel_scope.cancel()

    async def _run_out(self, guest: Guest, lines: Lines) -> ExecutionResponse:
        """Wait for the end of a command whose output somebody else reads."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lines.pump, guest.stderr)
            ended = await self._attend(guest)
        return self._respond(guest, ended, _Outcome(), lines.tail)

    async def _collect(self, guest: Guest, outcome: _Outcome) -> None:
        outcome.output, outcome.complete = await read_bounded(
            guest.stdout, self._plan.bounds.output
        )
        if not outcome.complete:
            guest.kill()

    async def _attend(self, guest: Guest) -> Exit:
        """Hold the command to its limits until it has ended, with all it left behind."""
        async with trio.open_nursery() as watching:
            watching.start_soon(guest.watch_cpu, self._plan.bounds.cpu)
            watching.start_soon(guest.watch_memory)
            ended = await guest.process.wait()
            watching.cancel_scope.cancel()
        await guest.end()  # what it left behind holds the pipes open
        return ended

    async def _stop(self, guest: Guest, lines: Lines) -> None:
        """The execution is cancelled."""
        await self._grace(guest)
        await guest.end()
        lines.drain(guest.stderr.fileno())

    async def _grace(self, guest: Guest) -> None:
        """Let a cancelled command clean up for a moment; it is killed afterwards."""
        seconds = self._confiner.config.cancel_grace_ms / 1000
        guest.process.terminate()
        with trio.move_on_after(seconds, shield=True):
            await guest.process.wait()

    def _respond(
        self, guest: Guest, ended: Exit, outcome: _Outcome, tail: str
    ) -> ExecutionResponse:
        if ended is UNKNOWN_EXIT:
            raise InstanceLostError(
                f"{self._artifact.ref} was killed with the launcher it runs under"
            )
        if ended.start_error:
            raise InstanceStartError(f"{self._artifact.ref} could not start: {ended.start_error}")
        cpu = ended.cpu_seconds if self._plan.bounds.cpu is None else guest.cpu_seconds()
        self._cpu += cpu or 0.0
        usage = ExecutionUsage(
            cpu_seconds=cpu,
            peak_memory_bytes=guest.peak_memory_bytes() or ended.peak_memory_bytes,
            isolation=self._plan.level,
        )
        if not outcome.complete:
            limit = self._plan.bounds.output
            message = f"{guest.name} wrote more than {limit} bytes to stdout and was killed"
            error = ErrorInfo(code="resource_exhausted", message=message, kind="output")
            return attrs.evolve(ExecutionResponse.failed(error), usage=usage)
        if ended.code == 0:
            return attrs.evolve(ExecutionResponse.completed(outcome.output), usage=usage)
        error = guest.explain(ended, tail)
        last = f": {tail.splitlines()[-1]}" if tail else ""
        details = {**error.details, "stderr": tail}
        error = attrs.evolve(error, message=error.message + last, details=details)
        return attrs.evolve(ExecutionResponse.failed(error), usage=usage)

    async def check_health(self) -> None:
        """A command has nothing that could be ill between executions."""
        await trio.lowlevel.checkpoint()

    async def wait_failed(self) -> str:
        """A command's instance can't fail on its own."""
        await trio.sleep_forever()

    def statistics(self) -> InstanceStatistics:
        """Executions so far, their CPU time, and what the running one has in memory."""
        guest = self._guest
        return InstanceStatistics(
            executions=self._executions,
            cpu_seconds=self._cpu,
            memory_bytes=guest.memory_bytes() if guest else None,
            pid=guest.pid if guest else None,
        )


def _as_json(context: Mapping[str, str]) -> str:
    return json.dumps(dict(context), ensure_ascii=False, separators=(",", ":"))
