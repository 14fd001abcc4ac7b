"""One instance: a store for each execution, or one store for many."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType

import attrs
import trio

from spear_core.api import (
    Artifact,
    DuplexStream,
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    ExecutionUsage,
    InstanceSpec,
    InstanceStatistics,
    IsolationLevel,
    PluginContext,
    StreamingInstance,
)
from spear_core.errors import InstanceError, InstanceStartError, SpearError
from spear_core.rpc import FarEnd, open_local_stream

from . import _failures
from ._execution import Execution, ExitError, OutputLimitError
from ._ffi import Guest, GuestLimits, GuestMemoryError, GuestTrapError
from ._module import Entry, EntryError, LoadedModule
from ._slice import CpuLimitError
from ._store import Machine, ModuleStore
from ._streams import GuestStream, TooMuchInputError, receive_all, send_all

LEVEL = IsolationLevel.NAMESPACES
"""A guest has memory of its own with a limit, and no files, processes, network or system calls."""
U32 = 0xFFFF_FFFF


class WasmInstance(StreamingInstance):
    """Runs executions one at a time.

    Each gets a new store, unless the artifact says `reuse` and the entry point allows it. A store
    whose guest trapped, exited or was cancelled is never used again; the instance goes on with a
    new one, so it cannot fail on its own.
    """

    def __init__(
        self, spec: InstanceSpec, module: LoadedModule, machine: Machine, *,
        context: PluginContext, limits: GuestLimits, max_output: int,
    ) -> None:  # fmt: skip
        self.id = spec.id
        self._artifact = spec.artifact
        self._module = module
        self._machine = machine
        self._hostcalls = context.hostcalls
        self._log = context.log
        self._limits = limits
        self._max_output = max_output
        self._max_input = context.spearlet_config.execution.max_input_bytes
        self._environment = spec.artifact.env
        if spec.secrets:
            self._environment = {**self._environment, **spec.secrets}
        self._guest: Guest | None = None
        """What the next execution may reuse, if it is of the same kind."""
        self._guest_streams = False
        self._running: Guest | None = None
        self._entry: Entry | None = None
        self._executions = 0
        self._cpu_seconds = 0.0
        self._closed = False

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        """The guest lives in this process, so there is no channel: its calls are calls."""
        await trio.lowlevel.checkpoint_if_cancelled()  # Capability.PROMPT
        if self._closed:
            raise InstanceError(f"{self.id} is closed")
        self._executions += 1
        try:
            entry = self._module.entry(request.entry or self._artifact.entry)
        except EntryError as exc:
            return self._no_entry(exc)
        return await self._run(self._new_execution(request, entry), entry)

    def _new_execution(
        self, request: ExecutionRequest, entry: Entry, stream: GuestStream | None = None
    ) -> Execution:
        return Execution(
            request, self._artifact, self._hostcalls, max_output=self._max_output, stream=stream,
            stdio_is_payload=self._module.stdio_is_payload and not entry.is_function,
            environment=self._environment,
        )  # fmt: skip

    def _no_entry(self, exc: EntryError) -> ExecutionResponse:
        message = f"{self._artifact.ref}: {exc}"
        return ExecutionResponse.failed(
            ErrorInfo(code="invalid_argument", kind="entry", message=message)
        )

    @asynccontextmanager
    async def stream(
        self, request: ExecutionRequest
    ) -> AsyncGenerator[DuplexStream[ExecutionResponse]]:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise InstanceError(f"{self.id} is closed")
        async with open_local_stream(partial(self._execute_streamed, request)) as stream:
            yield stream

    async def _execute_streamed(self, request: ExecutionRequest, far: FarEnd) -> ExecutionResponse:
        """The far end of a stream. A function guest gets its input whole and answers once."""
        self._executions += 1
        try:
            entry = self._module.entry(request.entry or self._artifact.entry)
        except EntryError as exc:
            return self._no_entry(exc)
        if not entry.is_function:
            return await self._run(self._new_execution(request, entry, GuestStream(far)), entry)
        try:
            payload = await receive_all(far, self._max_input)
        except TooMuchInputError as exc:
            return ExecutionResponse.failed(_failures.input_info(exc))
        whole = attrs.evolve(request, payload=payload)
        response = await self._run(self._new_execution(whole, entry), entry)
        await send_all(far, response.payload)
        return attrs.evolve(response, payload=b"")

    async def check_health(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise InstanceError(f"{self.id} is closed")

    async def wait_failed(self) -> str:
        await trio.sleep_forever()

    def statistics(self) -> InstanceStatistics:
        running, guest = self._running, self._running or self._guest
        return InstanceStatistics(
            executions=self._executions,
            cpu_seconds=self._cpu_seconds + (running.host.meter.used if running else 0.0),
            memory_bytes=guest.known_memory_size if guest else 0,
        )

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        self._closed = True
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    @trio.lowlevel.enable_ki_protection
    async def _run(self, execution: Execution, entry: Entry) -> ExecutionResponse:
        """From a store to a response. The store outlives it only when all went well.

        A KeyboardInterrupt comes at a checkpoint: between a C call and taking note of what it made
        or freed, it would leave something to be freed twice.
        """
        guest, self._guest = self._guest, None
        streams = execution.stream is not None
        if guest is not None and streams is not self._guest_streams:
            guest.close()
            guest = None
        self._guest_streams = streams
        if guest is None:
            guest, self._entry = Guest(self._machine.engine, self._limits), None
        meter, output, error, keep = execution.meter, b"", None, False
        guest.host = execution
        self._running = guest
        memory = 0
        try:
            try:
                output = await self._call(guest, entry, execution)
                keep = entry.reusable and self._artifact.reuse
            except ExitError as exc:
                execution.end_lines()
                output = bytes(execution.output)
                error = _failures.exit_info(exc, execution) if exc.code else None
            except _ResultError as exc:
                error = exc.info
            except (OutputLimitError, CpuLimitError) as exc:
                error = _failures.limit_info(exc)
            except GuestTrapError as exc:
                _raise_if_full(exc)
                error = _failures.trap_info(exc, guest, self._limits.memory_bytes)
            except Exception as exc:  # barrier: a fault of a host function ends this guest only
                self._log.exception("a host function failed under %s", self._artifact.ref)
                error = _failures.host_info(exc)
            except trio.Cancelled:
                execution.add_log("stopped: the execution was cancelled", "warn")
                raise
            memory = guest.memory_size
        finally:
            if keep:
                self._guest = guest
            else:
                guest.close()
            self._running = None
            self._cpu_seconds += meter.used
            if execution.has_spoken:
                execution.end_lines()
                execution.flush()
        return _response(execution, output, error, memory)

    async def _call(self, guest: Guest, entry: Entry, execution: Execution) -> bytes:
        run = self._machine.driver.run
        if self._entry is None:
            if self._module.uses_wasi:
                artifact, environment = self._artifact, self._environment
                guest.set_wasi(
                    tuple(text.encode() for text in (artifact.filename, *artifact.args)),
                    tuple((name.encode(), text.encode()) for name, text in environment.items()),
                )
            streams = execution.stream is not None
            guest.begin_instantiate(self._module.stream_pre if streams else self._module.pre)
            await run(guest, execution)
            guest.find_exports(entry.exports, memory=entry.memory)
            if entry.initialize >= 0:
                guest.begin_call(entry.initialize, results=0)
                await run(guest, execution)
        elif self._entry is not entry:
            guest.find_exports(entry.exports, memory=entry.memory)
        self._entry = entry
        if entry.is_function:
            return await self._call_function(guest, entry, execution)
        guest.begin_call(0, results=entry.results)
        await run(guest, execution)
        return bytes(execution.output)

    async def _call_function(self, guest: Guest, entry: Entry, execution: Execution) -> bytes:
        """Input into the guest's memory, `handle(pointer, length)`, output from its memory."""
        run, payload = self._machine.driver.run, execution.request.payload
        pointer = 0
        if payload:
            guest.begin_call(entry.alloc, (len(payload),), results=1)
            await run(guest, execution)
            pointer = guest.result_i32
            try:
                if not pointer:
                    raise GuestMemoryError
                guest.write(pointer, payload)
            except GuestMemoryError:
                what = f"{pointer}, which is no room for {len(payload)} bytes of input"
                raise _ResultError(_failures.bad_result_info("spear_alloc", what)) from None
        guest.begin_call(0, (pointer, len(payload)), results=1)
        await run(guest, execution)
        result = guest.result_i64
        if result < 0:
            raise _ResultError(_failures.errno_info(entry.name, result))
        where, length = result >> 32, result & U32
        if length > execution.room:
            raise OutputLimitError(f"its output has more than {execution.max_output} bytes")
        try:
            output = guest.read(where, length)
        except GuestMemoryError:
            what = f"{length} bytes at {where}, outside its memory of {guest.memory_size} bytes"
            raise _ResultError(_failures.bad_result_info(entry.name, what)) from None
        if entry.free >= 0 and self._artifact.reuse:
            await self._free(guest, entry, execution, ((pointer, len(payload)), (where, length)))
        return bytes(execution.output) + output if execution.output else output

    async def _free(
        self,
        guest: Guest,
        entry: Entry,
        execution: Execution,
        ranges: tuple[tuple[int, int], ...],
    ) -> None:
        """Give input and output back; a guest that answers in place has only one range."""
        for pointer, length in dict(ranges).items():
            if pointer:
                guest.begin_call(entry.free, (pointer, length), results=0)
                await self._machine.driver.run(guest, execution)


class _ResultError(Exception):
    """The guest returned, but not what the ABI says."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class OpenInstance:
    """The block in which an instance lives."""

    def __init__(
        self, store: ModuleStore, spec: InstanceSpec, *,
        context: PluginContext, limits: GuestLimits, max_output: int,
    ) -> None:  # fmt: skip
        self._store = store
        self._spec = spec
        self._context = context
        self._limits = limits
        self._max_output = max_output
        self._module: LoadedModule
        self._instance: WasmInstance

    async def __aenter__(self) -> WasmInstance:
        spec, store = self._spec, self._store
        while (module := store.get(spec.artifact.digest)) is None:  # it may be evicted meanwhile
            await trio.lowlevel.checkpoint()  # Capability.PROMPT
            try:
                await store.load(spec.artifact)
            except SpearError as exc:
                raise InstanceStartError(f"{spec.artifact.ref}: {exc}") from exc
        module.users += 1
        self._module = module
        self._instance = WasmInstance(
            spec, module, store.machine,
            context=self._context, limits=self._limits, max_output=self._max_output,
        )  # fmt: skip
        return self._instance

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._instance.close()
        self._module.users -= 1


def guest_limits(artifact: Artifact, default_memory: int, table_elements: int) -> GuestLimits:
    return GuestLimits(artifact.limits.memory_bytes or default_memory, table_elements)


def _raise_if_full(trap: GuestTrapError) -> None:
    if trap.code is None and _failures.POOL_FULL in trap.message:
        raise InstanceError(
            f"no room for another instance: {_failures.one_line(trap.message)}"
            " (max_live_instances)",
            code="resource_exhausted",
            retryable=True,
        ) from trap


def _response(
    execution: Execution, output: bytes, error: ErrorInfo | None, memory: int
) -> ExecutionResponse:
    usage = ExecutionUsage(
        cpu_seconds=execution.meter.used, peak_memory_bytes=memory, isolation=LEVEL
    )
    if error is not None:
        return ExecutionResponse(status=ExecutionStatus.FAILED, error=error, usage=usage)
    return ExecutionResponse(
        status=ExecutionStatus.COMPLETED,
        payload=output,
        content_type=execution.content_type or "application/octet-stream",
        usage=usage,
    )
