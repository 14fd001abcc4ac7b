# ruff: noqa: ASYNC220, ASYNC230, SIM115 - the planted bugs
"""Runtimes with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import trio

from spear_core.api import (
    Artifact,
    Capability,
    DuplexStream,
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    Fingerprint,
    Health,
    Instance,
    InstanceSpec,
    InstanceStatistics,
    PluginContext,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
    StreamingInstance,
)
from spear_core.errors import (
    InstanceError,
    UnsupportedArtifactError,
)
from spear_core.rpc import FarEnd, open_local_stream
from spear_core.testing import (
    RuntimeContract,
    Sample,
)

WORDS = ("echo", "fail", "loop", "hungry", "log", "stream", "flood")


@attrs.frozen(kw_only=True)
class NoConfig:
    """Nothing to set."""


class SoundInstance(StreamingInstance):
    """Runs a guest whose code is one word; a loop is a real process."""

    def __init__(self, spec: InstanceSpec, context: PluginContext) -> None:
        self.id = spec.id
        self._artifact = spec.artifact
        self._context = context
        self.pid: int | None = None
        self._executions = 0
        self._fit = True

    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        await trio.lowlevel.checkpoint()
        try:
            return await self._run(self._artifact.path.read_text(), request)
        finally:
            self._executions += 1

    async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
        limit = self._artifact.limits.memory_bytes
        if word == "fail":
            return self._failed("it failed")
        if word == "hungry" and limit is not None and limit < 256 << 20:
            return self._failed("out of memory")
        if word == "loop":
            await self._loop()
        if word == "log":
            self._context.hostcalls.log(request.execution_id, "hello from the guest")
        return ExecutionResponse.completed(request.payload)

    def _failed(self, why: str) -> ExecutionResponse:
        return ExecutionResponse.failed(ErrorInfo(code="unknown", message=why))

    async def _loop(self) -> None:
        await trio.run_process([sys.executable, "-S", "-c", "while True: pass"])

    @asynccontextmanager
    async def stream(
        self, request: ExecutionRequest
    ) -> AsyncGenerator[DuplexStream[ExecutionResponse], None]:
        async with open_local_stream(partial(self._stream, request)) as stream:
            yield stream

    async def _stream(self, request: ExecutionRequest, far: FarEnd) -> ExecutionResponse:
        word = self._artifact.path.read_text()
        try:
            if word == "stream":
                return await self._stream_back(far)
            if word == "flood":
                while True:
                    await self._flood(far)
            if word == "loop":
                await self._loop()
            payload = b"".join(await self._read_all(far))
            response = await self._run(word, attrs.evolve(request, payload=payload))
            await far.send(response.payload)
            return attrs.evolve(response, payload=b"")
        finally:
            self._executions += 1

    async def _stream_back(self, far: FarEnd) -> ExecutionResponse:
        try:
            while True:
                await far.send(await far.receive())
        except trio.EndOfChannel:
            return ExecutionResponse.completed(b"")

    async def _read_all(self, far: FarEnd) -> list[bytes]:
        parts = []
        try:
            while True:
                parts.append(await far.receive())
        except trio.EndOfChannel:
            return parts

    async def _flood(self, far: FarEnd) -> None:
        await far.send(bytes(4096))

    async def check_health(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._fit:
            raise InstanceError("not fit")

    async def wait_failed(self) -> str:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    def statistics(self) -> InstanceStatistics:
        return InstanceStatistics(executions=self._executions, pid=self.pid)


class SoundRuntime(Runtime):
    """A runtime of one-word programs, without a bug."""

    instance_cls: ClassVar[type[SoundInstance]] = SoundInstance

    def __init__(self, context: PluginContext) -> None:
        self._context = context

    async def fingerprint(self) -> Fingerprint:
        await trio.lowlevel.checkpoint()
        return Fingerprint(health=Health.HEALTHY, message="words work here")

    async def prepare(self, artifact: Artifact) -> None:
        await trio.lowlevel.checkpoint()
        if artifact.path.read_text() not in WORDS:
            raise UnsupportedArtifactError(f"{artifact.filename}: no such word")

    @asynccontextmanager
    async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
        await trio.lowlevel.checkpoint()
        yield self.instance_cls(spec, self._context)


def recognise(path: Path, head: bytes, entry: str) -> str | None:
    return "word" if path.suffix == ".word" else None


def runtime_spec(make: Callable[[PluginContext], Runtime], **rest: Any) -> RuntimeSpec[NoConfig]:
    @asynccontextmanager
    async def open_toy(context: PluginContext, config: NoConfig) -> AsyncGenerator[Runtime, None]:
        yield make(context)

    rest = {
        "recognise": recognise,
        "reusable_shapes": frozenset({"word"}),
        "capabilities": frozenset(Capability),
        **rest,
    }
    return RuntimeSpec(name="toy", open=open_toy, config_cls=NoConfig, **rest)


def with_instance(cls: type[SoundInstance]) -> RuntimeSpec[NoConfig]:
    """A spec whose runtime makes this kind of instance."""
    return runtime_spec(type("Planted", (SoundRuntime,), {"instance_cls": cls}))


class Words(RuntimeContract):
    """The samples for one-word programs."""

    echo = Sample(filename="echo.word", content="echo")
    fails = Sample(filename="fails.word", content="fail")
    loops: ClassVar[Sample | None] = Sample(filename="loops.word", content="loop")
    hungry = Sample(filename="hungry.word", content="hungry")
    logs = Sample(filename="logs.word", content="log")
    malformed = Sample(filename="malformed.word", content="nonsense")
    streams: ClassVar[Sample | None] = Sample(filename="streams.word", content="stream")
    floods = Sample(filename="floods.word", content="flood")


class TestSoundRuntime(Words):
    spec = runtime_spec(SoundRuntime)


class RuntimeMutant(Words):
    patience = 3.0
    settling = 0.5


class TestRaisesForTheGuest(RuntimeMutant):
    """A runtime that raises when the guest's own code fails."""

    caught_by = "test_failure_of_the_guest_is_a_response"

    class Planted(SoundInstance):
        def _failed(self, why: str) -> ExecutionResponse:
            raise InstanceError(why)

    spec = with_instance(Planted)


class TestFailsWithoutACode(RuntimeMutant):
    """A runtime that makes up its own error codes."""

    caught_by = "test_failure_of_the_guest_is_a_response"

    class Planted(SoundInstance):
        def _failed(self, why: str) -> ExecutionResponse:
            return ExecutionResponse.failed(ErrorInfo(code="EFAIL", message=why))

    spec = with_instance(Planted)


class TestTracebackForAMessage(RuntimeMutant):
    """A runtime whose error message is a whole traceback."""

    caught_by = "test_failure_of_the_guest_is_a_response"

    class Planted(SoundInstance):
        def _failed(self, why: str) -> ExecutionResponse:
            message = f"Traceback (most recent call last):\n  {why}"
            return ExecutionResponse.failed(ErrorInfo(code="unknown", message=message))

    spec = with_instance(Planted)


class TestBreaksAfterFailure(RuntimeMutant):
    """An instance that is no good after its guest failed, and does not say so."""

    caught_by = "test_failure_concerns_that_execution_only"

    class Planted(SoundInstance):
        def _failed(self, why: str) -> ExecutionResponse:
            if not self._fit:
                return ExecutionResponse.completed(b"")
            self._fit = False
            return super()._failed(why)

    spec = with_instance(Planted)


class TestOnceOnly(RuntimeMutant):
    """An instance that serves one execution, though its runtime declares REUSE."""

    caught_by = "test_instance_is_reused"

    class Planted(SoundInstance):
        async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
            if self._executions:
                raise InstanceError("used up")
            return await super().execute(request)

    spec = with_instance(Planted)


class TestRemembersInput(RuntimeMutant):
    """An instance that answers with the input of its first execution."""

    caught_by = "test_instance_is_reused"

    class Planted(SoundInstance):
        _first: bytes | None = None

        async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
            if self._first is None:
                self._first = request.payload
            return await super()._run(word, attrs.evolve(request, payload=self._first))

    spec = with_instance(Planted)


class TestTextOnly(RuntimeMutant):
    """A runtime that takes input for text."""

    caught_by = "test_output_is_what_the_guest_made_of_the_input"

    class Planted(SoundInstance):
        async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
            text = request.payload.decode(errors="replace")
            return await super()._run(word, attrs.evolve(request, payload=text.encode()))

    spec = with_instance(Planted)


class TestCutsOutput(RuntimeMutant):
    """A runtime that cuts output at 64 KiB."""

    caught_by = "test_output_is_what_the_guest_made_of_the_input"

    class Planted(SoundInstance):
        async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
            return await super()._run(word, attrs.evolve(request, payload=request.payload[:65536]))

    spec = with_instance(Planted)


class TestRunsOnWhenCancelled(RuntimeMutant):
    """A runtime that leaves its guest running when ``execute`` is cancelled."""

    caught_by = "test_cancelled_execution_stops_the_guest"

    class Planted(SoundInstance):
        async def _loop(self) -> None:
            code = "import time; t = time.time()\nwhile time.time() < t + 3: pass"
            subprocess.Popen([sys.executable, "-S", "-c", code])
            await trio.sleep_forever()

    spec = with_instance(Planted)


class TestIgnoresCancellation(RuntimeMutant):
    """A runtime that waits for its guest whatever the caller wants."""

    caught_by = "test_cancelled_execution_stops_the_guest"

    class Planted(SoundInstance):
        async def _loop(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(3.5)

    spec = with_instance(Planted)


class TestBlocksTheNode(RuntimeMutant):
    """A runtime whose guest computes on the node's own thread."""

    caught_by = "test_cancelled_execution_leaves_others_alone"

    class Planted(SoundInstance):
        async def _loop(self) -> None:
            ends = trio.current_time() + 3.2
            while trio.current_time() < ends:
                pass

    spec = with_instance(Planted)


class TestLeavesAProcess(RuntimeMutant):
    """A runtime that leaves a process behind for each instance."""

    caught_by = "test_instances_leave_nothing_behind"

    class Planted(SoundRuntime):
        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            subprocess.Popen(["sleep", "5"])
            async with super().open_instance(spec) as instance:
                yield instance

    spec = runtime_spec(Planted)


class TestLeavesAFile(RuntimeMutant):
    """A runtime that leaves a file open for each instance."""

    caught_by = "test_instances_leave_nothing_behind"

    class Planted(SoundRuntime):
        kept: ClassVar[list[Any]] = []

        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            self.kept.append(Path("/dev/null").open())
            async with super().open_instance(spec) as instance:
                yield instance

    spec = runtime_spec(Planted)


class TestLeavesWhenTheBlockFails(RuntimeMutant):
    """A runtime that cleans up only when the block ends normally."""

    caught_by = "test_instance_ends_when_its_block_fails"

    class Planted(SoundRuntime):
        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            process = subprocess.Popen(["sleep", "5"])
            async with super().open_instance(spec) as instance:
                yield instance
            process.kill()
            process.wait()

    spec = runtime_spec(Planted)


class TestDoesNotNoticeDeath(RuntimeMutant):
    """An instance that waits for ever when its process was killed."""

    caught_by = "test_killed_instance_is_noticed"

    class Planted(SoundRuntime):
        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            with subprocess.Popen(["sleep", "60"]) as process:
                async with super().open_instance(spec) as instance:
                    assert isinstance(instance, SoundInstance)
                    instance.pid = process.pid
                    try:
                        yield instance
                    finally:
                        process.kill()

    spec = runtime_spec(Planted)


class TestWrongId(RuntimeMutant):
    """A runtime that gives its instances ids of its own."""

    caught_by = "test_instance_has_the_id_it_was_given"

    class Planted(SoundInstance):
        def __init__(self, spec: InstanceSpec, context: PluginContext) -> None:
            super().__init__(spec, context)
            self.id = RuntimeInstanceId(runtime_type="toy", instance_id="1")

    spec = with_instance(Planted)


class TestNeverCounts(RuntimeMutant):
    """An instance whose statistics stay at zero."""

    caught_by = "test_statistics_count_executions"

    class Planted(SoundInstance):
        def statistics(self) -> InstanceStatistics:
            return InstanceStatistics()

    spec = with_instance(Planted)


class TestFailsAtOnce(RuntimeMutant):
    """An instance whose ``wait_failed`` returns although nothing has failed."""

    caught_by = "test_idle_instance_is_healthy"

    class Planted(SoundInstance):
        async def wait_failed(self) -> str:
            await trio.lowlevel.checkpoint()
            self._fit = False
            return "it never fails"

    spec = with_instance(Planted)


class TestTakesAnything(RuntimeMutant):
    """A runtime that finds out about malformed code when it runs it."""

    caught_by = "test_malformed_code_is_refused"

    class Planted(SoundRuntime):
        async def prepare(self, artifact: Artifact) -> None:
            await trio.lowlevel.checkpoint()

    spec = runtime_spec(Planted)


class TestPreparesOnce(RuntimeMutant):
    """A runtime that objects to preparing an artifact again."""

    caught_by = "test_prepare_again"

    class Planted(SoundRuntime):
        async def prepare(self, artifact: Artifact) -> None:
            await super().prepare(artifact)
            self._context.cache_dir.mkdir(parents=True)

    spec = runtime_spec(Planted)


class TestTrustsHalfPrepared(RuntimeMutant):
    """A runtime that takes what a cancelled ``prepare`` left for whole."""

    caught_by = "test_cancelled_prepare_can_be_done_again"

    class Planted(SoundRuntime):
        async def prepare(self, artifact: Artifact) -> None:
            unpacked = self._context.cache_dir / artifact.digest
            if not unpacked.exists():
                unpacked.mkdir(parents=True)
                await trio.sleep(0.002)
                (unpacked / "code").write_text(artifact.path.read_text())
            await trio.lowlevel.checkpoint()

        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            if not (self._context.cache_dir / spec.artifact.digest / "code").exists():
                raise InstanceError("nothing to run")
            async with super().open_instance(spec) as instance:
                yield instance

    spec = runtime_spec(Planted)


class TestRetainsNothing(RuntimeMutant):
    """A runtime that drops what it was told to retain."""

    caught_by = "test_what_is_retained_stays_prepared"

    class Planted(SoundRuntime):
        _prepared: frozenset[str] = frozenset()

        async def prepare(self, artifact: Artifact) -> None:
            await super().prepare(artifact)
            self._prepared |= {artifact.digest}

        async def retain(self, artifacts: Sequence[Artifact]) -> None:
            await super().retain(artifacts)
            self._prepared = frozenset()

        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            if spec.artifact.digest not in self._prepared:
                raise InstanceError("it was never prepared")
            async with super().open_instance(spec) as instance:
                yield instance

    spec = runtime_spec(Planted)


class TestWritesBesideTheCode(RuntimeMutant):
    """A runtime that keeps its cache beside the artifact."""

    caught_by = "test_prepare_leaves_the_code_alone"

    class Planted(SoundRuntime):
        async def prepare(self, artifact: Artifact) -> None:
            await super().prepare(artifact)
            artifact.path.with_suffix(".cache").write_text("compiled")

    spec = runtime_spec(Planted)


class TestIgnoresMemoryLimit(RuntimeMutant):
    """A runtime that declares MEMORY_LIMIT and never looks at it."""

    caught_by = "test_memory_limit_holds"

    class Planted(SoundInstance):
        async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
            return await super()._run("echo" if word == "hungry" else word, request)

    spec = with_instance(Planted)


class TestMixesLogs(RuntimeMutant):
    """A runtime that logs everything under one name."""

    caught_by = "test_logs_reach_the_node"

    class Planted(SoundInstance):
        async def _run(self, word: str, request: ExecutionRequest) -> ExecutionResponse:
            return await super()._run(word, attrs.evolve(request, execution_id="e0"))

    spec = with_instance(Planted)


class TestRecognisesEverything(RuntimeMutant):
    """A runtime that takes every file for its own."""

    caught_by = "test_recognises_its_own_files_only"
    spec = runtime_spec(SoundRuntime, recognise=lambda path, head, entry: "word")


class TestReadsToRecognise(RuntimeMutant):
    """A runtime whose ``recognise`` opens the file instead of looking at what it was given."""

    caught_by = "test_recognises_its_own_files_only"
    spec = runtime_spec(
        SoundRuntime, recognise=lambda path, head, entry: "word" if path.read_bytes() else None
    )


class TestReusesWithoutSayingSo(RuntimeMutant):
    """A runtime with reusable shapes that does not declare REUSE."""

    caught_by = "test_reusable_shapes_need_reuse"
    spec = runtime_spec(SoundRuntime, capabilities=frozenset({Capability.CANCEL}))


class TestCannotShowCancel(RuntimeMutant):
    """A runtime that declares CANCEL and gives no sample that shows it."""

    caught_by = "test_capabilities_and_samples_agree"
    spec = runtime_spec(SoundRuntime)
    loops = None


class TestWaitsInAScope(RuntimeMutant):
    """A runtime that declares PROMPT and waits in a scope of its own first."""

    caught_by = "test_first_wait_is_outside_scopes"

    class Planted(SoundRuntime):
        @asynccontextmanager
        async def open_instance(self, spec: InstanceSpec) -> AsyncGenerator[Instance, None]:
            with trio.fail_after(60):
                await trio.lowlevel.checkpoint()
            async with super().open_instance(spec) as instance:
                yield instance

    spec = runtime_spec(Planted)


class TestStreamsNothing(RuntimeMutant):
    """A runtime that declares STREAM and makes instances that cannot."""

    caught_by = "test_instances_stream_if_declared"

    class Planted(Instance):
        def __init__(self, spec: InstanceSpec, context: PluginContext) -> None:
            self.id = spec.id
            self._sound = SoundInstance(spec, context)
            self.execute = self._sound.execute  # type: ignore[method-assign]
            self.check_health = self._sound.check_health  # type: ignore[method-assign]
            self.wait_failed = self._sound.wait_failed  # type: ignore[method-assign]
            self.statistics = self._sound.statistics  # type: ignore[method-assign]

        execute: Any = None
        check_health: Any = None
        wait_failed: Any = None
        statistics: Any = None

    spec = with_instance(Planted)  # type: ignore[arg-type]


class TestStreamsWithoutASample(RuntimeMutant):
    """A runtime that declares STREAM and gives no sample that shows it."""

    caught_by = "test_capabilities_and_samples_agree"
    streams = None
    spec = runtime_spec(SoundRuntime)


class TestStreamsAtTheEnd(RuntimeMutant):
    """A stream whose output comes when the input has ended."""

    caught_by = "test_stream_gives_output_before_the_input_ends"

    class Planted(SoundInstance):
        async def _stream_back(self, far: FarEnd) -> ExecutionResponse:
            for part in await self._read_all(far):
                await far.send(part)
            return ExecutionResponse.completed(b"")

    spec = with_instance(Planted)


class TestStreamResultHasOutput(RuntimeMutant):
    """A stream whose result has the output once more."""

    caught_by = "test_stream_gives_output_before_the_input_ends"

    class Planted(SoundInstance):
        async def _stream_back(self, far: FarEnd) -> ExecutionResponse:
            response = await super()._stream_back(far)
            return attrs.evolve(response, payload=b"once more")

    spec = with_instance(Planted)


class TestStreamCutsChunks(RuntimeMutant):
    """A stream that passes on the first 64 KiB of each chunk."""

    caught_by = "test_stream_carries_much_unchanged"

    class Planted(SoundInstance):
        async def _stream_back(self, far: FarEnd) -> ExecutionResponse:
            try:
                while True:
                    await far.send((await far.receive())[:65536])
            except trio.EndOfChannel:
                return ExecutionResponse.completed(b"")

    spec = with_instance(Planted)


class TestStreamBuffersInput(RuntimeMutant):
    """A stream that takes all its sender has, whether anybody receives or not."""

    caught_by = "test_slow_stream_reader_stops_the_sender"

    class Planted(SoundInstance):
        async def _stream_back(self, far: FarEnd) -> ExecutionResponse:
            send, receive = trio.open_memory_channel[bytes](1 << 30)

            async def buffer() -> None:
                async with send:
                    for part in await self._read_all(far):
                        await send.send(part)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(buffer)
                async for part in receive:
                    await far.send(part)
            return ExecutionResponse.completed(b"")

    spec = with_instance(Planted)


class TestStreamBuffersOutput(RuntimeMutant):
    """A stream that keeps all that its guest writes until somebody receives it."""

    caught_by = "test_slow_stream_reader_stops_the_guest"

    class Planted(SoundInstance):
        async def _flood(self, far: FarEnd) -> None:
            kept = []
            with trio.move_on_after(1.5):
                while len(kept) < 100:
                    kept.append(bytearray(b"x" * (1 << 20)))
                    await trio.sleep(0.01)
            await far.send(bytes(kept[0][:4096]))

    spec = with_instance(Planted)


class TestStreamGuestRunsOn(RuntimeMutant):
    """A stream whose guest runs on when its block is left."""

    caught_by = "test_leaving_a_stream_stops_the_guest"

    class Planted(SoundInstance):
        async def _loop(self) -> None:
            code = "import time; t = time.time()\nwhile time.time() < t + 3: pass"
            subprocess.Popen([sys.executable, "-S", "-c", code])
            await trio.sleep_forever()

    spec = with_instance(Planted)


class TestStreamLeavesWaiters(RuntimeMutant):
    """A stream that lets who waits for it wait on when its block is over."""

    caught_by = "test_end_of_a_stream_wakes_who_waits"

    class Planted(SoundInstance):
        @asynccontextmanager
        async def stream(
            self, request: ExecutionRequest
        ) -> AsyncGenerator[DuplexStream[ExecutionResponse], None]:
            async with super().stream(request) as stream:
                stream.receive = trio.sleep_forever  # type: ignore[method-assign]
                yield stream

    spec = with_instance(Planted)


class TestStreamWrapsExceptions(RuntimeMutant):
    """A stream whose block's exception comes out in a group."""

    caught_by = "test_exception_in_a_stream_passes"

    class Planted(SoundInstance):
        @asynccontextmanager
        async def stream(
            self, request: ExecutionRequest
        ) -> AsyncGenerator[DuplexStream[ExecutionResponse], None]:
            async with super().stream(request) as stream, trio.open_nursery():
                yield stream

    spec = with_instance(Planted)


class TestStreamHidesFailure(RuntimeMutant):
    """A stream that ends well although its guest has failed."""

    caught_by = "test_failure_in_a_stream_is_a_response"

    class Planted(SoundInstance):
        async def _stream(self, request: ExecutionRequest, far: FarEnd) -> ExecutionResponse:
            await super()._stream(request, far)
            return ExecutionResponse.completed(b"")

    spec = with_instance(Planted)


class TestStreamTakesTheFirstChunk(RuntimeMutant):
    """A stream that gives a guest which wants its input whole the first chunk."""

    caught_by = "test_guest_that_does_not_stream_gets_its_input_whole"

    class Planted(SoundInstance):
        async def _read_all(self, far: FarEnd) -> list[bytes]:
            return [await far.receive()]

    spec = with_instance(Planted)


class TestStreamUsesUp(RuntimeMutant):
    """An instance that executes nothing any more once it has streamed."""

    caught_by = "test_streams_and_executions_take_turns"

    class Planted(SoundInstance):
        async def _stream(self, request: ExecutionRequest, far: FarEnd) -> ExecutionResponse:
            self._fit = False
            return await super()._stream(request, far)

        async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
            if not self._fit:
                raise InstanceError("used up")
            return await super().execute(request)

    spec = with_instance(Planted)
