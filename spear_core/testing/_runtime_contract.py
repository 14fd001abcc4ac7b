"""The contract suite for runtimes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import trio

from spear_core._late_scope import run_in_scope
from spear_core.api import (
    Artifact,
    Capability,
    ChannelFactory,
    ExecutionRequest,
    Fingerprint,
    Health,
    InstanceSpec,
    Limits,
    RuntimeInstanceId,
    RuntimeSpec,
)
from spear_core.errors import UnsupportedArtifactError
from spear_core.testing._fakes import FakeHostcalls, make_context, open_channels
from spear_core.testing._instance_contract import InstancePromises, has_failed
from spear_core.testing._promise import promise
from spear_core.testing._runtime_samples import (
    OpenedRuntime,
    Sample,
    assert_completed,
    assert_failed,
    new_request,
)
from spear_core.testing._stream_contract import StreamingPromises

__all__ = ["RuntimeContract"]

_TOGETHER = 3
"""Executions at the same time, as the sample ``meets`` has it."""


async def _run_alone(opened: OpenedRuntime, artifact: Artifact) -> None:
    name = new_request().execution_id
    identity = RuntimeInstanceId(runtime_type=opened.spec.name, instance_id=name)
    spec = InstanceSpec(id=identity, artifact=artifact)
    async with opened.runtime.open_instance(spec) as instance:
        await instance.execute(new_request())


class RuntimeContract(InstancePromises, StreamingPromises):
    """What every runtime promises. Subclass it, set :attr:`spec` and give sample code::

        class TestUpper(RuntimeContract):
            spec = SPEC
            echo = Sample(filename="echo.upper", content="…")
            fails = Sample(filename="fails.upper", content="…")

    A sample left at ``None`` skips the tests that need it. Where the backend is ``undetected`` on
    this machine, the tests that need it are skipped; where it is ``unhealthy``, they fail.
    """

    spec: ClassVar[RuntimeSpec[Any]]
    """The runtime under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults."""
    patience: float = 180.0
    """Seconds after which a test that still waits has failed."""
    settling: float = 15.0
    """Seconds that processes, threads and files may take to go away."""

    echo: ClassVar[Sample]
    """Answers with its input, whatever the bytes."""
    fails: ClassVar[Sample]
    """Fails by its own doing, given a line of text: an exception, a trap, an exit code."""
    loops: ClassVar[Sample | None] = None
    """Given a line of text, computes for ever and never looks up. Needed with
    ``Capability.CANCEL``."""
    hungry: ClassVar[Sample | None] = None
    """Uses 256 MiB of memory, then answers. Needed with ``Capability.MEMORY_LIMIT``."""
    logs: ClassVar[Sample | None] = None
    """Logs a line that contains ``hello from the guest``, then answers."""
    meets: ClassVar[Sample | None] = None
    """Given a name, logs ``hello from`` it, waits until three executions of this instance are here
    at the same time, and answers with the name; a cancelled one is here no more. Needed with
    ``Capability.CONCURRENCY``, for the shapes that can."""
    malformed: ClassVar[Sample | None] = None
    """Recognised by the runtime, but broken; ``None`` where any file of its kind can be run."""
    foreign: ClassVar[Sample] = Sample(filename="foreign.unheard-of", content=b"\x00\x01\x02")
    """A file that is not for this runtime."""

    @asynccontextmanager
    async def open_runtime(self, tmp_path: Path) -> AsyncGenerator[OpenedRuntime, None]:
        """The runtime, as a node opens it, on the transports it names."""
        config = self.spec.config_cls() if self.config is None else self.config
        hostcalls = FakeHostcalls()
        async with self.open_channels(tmp_path) as channels:
            context = make_context(tmp_path, hostcalls=hostcalls, channels=channels)
            async with self.spec.open(context, config) as runtime:
                opened = OpenedRuntime(
                    runtime=runtime, hostcalls=hostcalls, folder=tmp_path, spec=self.spec
                )
                await self._require_backend(opened)
                yield opened

    def open_channels(self, tmp_path: Path) -> AbstractAsyncContextManager[ChannelFactory]:
        """Where the runtime's instances connect: the installed ones of ``spec.transports``.
        Override it to bring a factory of your own."""
        return open_channels(tmp_path, self.spec.transports)

    async def _require_backend(self, opened: OpenedRuntime) -> None:
        found = await opened.runtime.fingerprint()
        if found.health is Health.UNDETECTED:
            pytest.skip(f"{self.spec.name}: {found.message}")
        assert found.health is Health.HEALTHY, found.message

    def _sample(self, name: str) -> Sample:
        sample: Sample | None = getattr(self, name)
        if sample is None:
            pytest.skip(f"the sample {name!r} is not given")
        return sample

    # ---- declaration

    def test_capabilities_and_samples_agree(self) -> None:
        """Every capability that is declared is tested, so its sample is there."""
        needed = (
            (Capability.CANCEL, "loops"),
            (Capability.MEMORY_LIMIT, "hungry"),
            (Capability.STREAM, "streams"),
            (Capability.STREAM, "floods"),
            (Capability.STREAM, "loops"),
        )
        missing = [
            name
            for capability, name in needed
            if capability in self.spec.capabilities and getattr(self, name) is None
        ]
        assert missing == [], "capabilities without the sample that shows them"

    def test_reusable_shapes_need_reuse(self) -> None:
        """``reusable_shapes`` is empty without ``Capability.REUSE``."""
        assert not self.spec.reusable_shapes or Capability.REUSE in self.spec.capabilities

    def test_recognises_its_own_files_only(self, tmp_path: Path) -> None:
        """``recognise``: a shape for the samples, ``None`` for others; it reads no files and never
        raises."""
        names = (
            "echo",
            "fails",
            "loops",
            "hungry",
            "logs",
            "malformed",
            "streams",
            "floods",
        )
        for sample in filter(None, (getattr(self, name) for name in names)):
            content = sample.content.encode() if isinstance(sample.content, str) else sample.content
            where = tmp_path / "absent" / sample.filename
            if not sample.executable:
                assert self.spec.recognise(where, content[:4096], sample.entry), sample.filename
        foreign = self.foreign.content
        assert isinstance(foreign, bytes)
        assert self.spec.recognise(tmp_path / self.foreign.filename, foreign, "") is None
        for junk in (b"", b"\xff" * 4096, os.urandom(100)):
            self.spec.recognise(tmp_path / "x\udcff", junk, "entry:with:colons")

    @promise
    async def test_fingerprint_describes_the_backend(self, tmp_path: Path) -> None:
        """``fingerprint``: one of three answers, with a line that says what was found or what to
        do; it can be asked again and again."""
        async with self.open_runtime(tmp_path) as opened:
            for _ in range(2):
                found = await opened.runtime.fingerprint()
                assert isinstance(found, Fingerprint)
                assert "\n" not in found.message
                assert found.message or found.health is Health.HEALTHY

    # ---- prepare

    @promise
    async def test_prepare_again(self, tmp_path: Path) -> None:
        """``prepare``: doing it again is fine, also for several at a time and after a restart."""
        for _ in range(2):
            async with self.open_runtime(tmp_path) as opened:
                artifact = opened.artifact(self.echo)
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(opened.runtime.prepare, artifact)
                await opened.runtime.prepare(artifact)
                assert_completed(await opened.run_once(artifact, b"again"), b"again")

    @promise
    async def test_cancelled_prepare_can_be_done_again(self, tmp_path: Path) -> None:
        """``prepare``, cancelled: leaves nothing half-made that a later call takes for whole."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)
            for delay in (0, 0.001, 0.01):
                with trio.move_on_after(delay):
                    await opened.runtime.prepare(artifact)
            assert_completed(await opened.run_once(artifact, b"whole"), b"whole")

    @promise
    async def test_what_is_retained_stays_prepared(self, tmp_path: Path) -> None:
        """``retain``: what is named can be used at once, what is not can be prepared again."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)
            await opened.runtime.prepare(artifact)
            await opened.runtime.retain([artifact])
            identity = RuntimeInstanceId(runtime_type=self.spec.name, instance_id="retained")
            spec = InstanceSpec(id=identity, artifact=artifact)
            async with opened.runtime.open_instance(spec) as instance:
                assert_completed(await instance.execute(new_request(b"kept")), b"kept")
            await opened.runtime.retain([])
            assert_completed(await opened.run_once(artifact, b"anew"), b"anew")

    @promise
    async def test_malformed_code_is_refused(self, tmp_path: Path) -> None:
        """``prepare`` raises ``UnsupportedArtifactError`` when the code is at fault; the runtime
        goes on."""
        malformed = self._sample("malformed")
        async with self.open_runtime(tmp_path) as opened:
            for _ in range(2):
                with pytest.raises(UnsupportedArtifactError):
                    await opened.runtime.prepare(opened.artifact(malformed))
            assert_completed(await opened.run_once(opened.artifact(self.echo), b"on"), b"on")

    @promise
    async def test_prepare_leaves_the_code_alone(self, tmp_path: Path) -> None:
        """``Artifact.path`` is content-addressed and never written again."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)
            await opened.run_once(artifact, b"x")
            assert hashlib.sha256(artifact.path.read_bytes()).hexdigest() == artifact.digest
            assert [p.name for p in artifact.path.parent.iterdir()] == [artifact.filename]

    # ---- execute

    @promise
    async def test_output_is_what_the_guest_made_of_the_input(self, tmp_path: Path) -> None:
        """``execute``: input and output pass unchanged, empty or a mebibyte, all byte values."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)
            for payload in (b"", b"text\n", bytes(range(256)), os.urandom(1 << 20)):
                assert_completed(await opened.run_once(artifact, payload), payload)

    @promise
    async def test_failure_of_the_guest_is_a_response(self, tmp_path: Path) -> None:
        """``execute``: a failure of the guest's own code is a response with status ``FAILED``, a
        gRPC code and a message of one line."""
        async with self.open_runtime(tmp_path) as opened:
            assert_failed(await opened.run_once(opened.artifact(self.fails)))

    @promise
    async def test_failure_concerns_that_execution_only(self, tmp_path: Path) -> None:
        """A failed guest leaves its instance fit for the next execution, unless ``wait_failed``
        returns, and other instances untouched."""
        async with self.open_runtime(tmp_path) as opened:
            reuse = Capability.REUSE in self.spec.capabilities
            failing, echo = opened.artifact(self.fails, reuse=reuse), opened.artifact(self.echo)
            async with opened.instance(echo) as other, opened.instance(failing) as instance:
                assert_failed(await instance.execute(new_request()))
                if reuse and not await has_failed(instance):
                    assert_failed(await instance.execute(new_request()))
                assert_completed(await other.execute(new_request(b"fine")), b"fine")

    @promise
    async def test_instance_is_reused(self, tmp_path: Path) -> None:
        """``Capability.REUSE``: one instance serves many executions, one after the other."""
        if Capability.REUSE not in self.spec.capabilities:
            pytest.skip("REUSE is not declared")
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(opened.artifact(self.echo, reuse=True)) as instance,
        ):
            for number in range(5):
                payload = b"%d" % number
                await instance.check_health()
                assert_completed(await instance.execute(new_request(payload)), payload)
                assert instance.statistics().executions == number + 1

    @promise
    async def test_executions_share_an_instance(self, tmp_path: Path) -> None:
        """``Capability.CONCURRENCY``: an instance has several executions at the same time, each
        with its own answer and its own log."""
        sample = self._concurrent_sample("meets")
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(self._concurrent(opened, sample)) as instance,
        ):
            requests = [new_request(b"%d" % number) for number in range(_TOGETHER)]

            async def run(request: ExecutionRequest) -> None:
                assert_completed(await instance.execute(request), request.payload)

            async with trio.open_nursery() as nursery:
                for request in requests:
                    nursery.start_soon(run, request)
            assert instance.statistics().executions == _TOGETHER
            for request in requests:
                said = f"hello from {request.payload.decode()}"
                assert said in opened.hostcalls.text_of(request.execution_id)

    @promise
    async def test_cancelling_one_execution_leaves_the_others(self, tmp_path: Path) -> None:
        """``Capability.CONCURRENCY``: cancelling one of several stops only that one, or the
        instance is not :meth:`~spear_core.api.Instance.fit` any more and the others raise."""
        sample = self._concurrent_sample("meets")
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(self._concurrent(opened, sample)) as instance,
        ):
            async with trio.open_nursery() as alone:
                alone.start_soon(instance.execute, new_request(b"0"))
                await trio.sleep(0.2)
                alone.cancel_scope.cancel()
            if not instance.fit():
                return
            requests = [new_request(b"%d" % number) for number in range(_TOGETHER)]

            async def run(request: ExecutionRequest) -> None:
                assert_completed(await instance.execute(request), request.payload)

            async with trio.open_nursery() as nursery:
                for request in requests:
                    nursery.start_soon(run, request)

    def _concurrent_sample(self, name: str) -> Sample:
        if Capability.CONCURRENCY not in self.spec.capabilities:
            pytest.skip("CONCURRENCY is not declared")
        return self._sample(name)

    def _concurrent(self, opened: OpenedRuntime, sample: Sample) -> Artifact:
        artifact = opened.artifact(sample, reuse=True)
        return attrs.evolve(artifact, concurrency=2 * _TOGETHER)

    @promise
    async def test_instances_run_side_by_side(self, tmp_path: Path) -> None:
        """Instances are independent: several of one artifact execute at the same time."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)

            async def run(payload: bytes) -> None:
                assert_completed(await opened.run_once(artifact, payload), payload)

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(run, bytes([number]) * 1000)

    @promise
    async def test_logs_reach_the_node(self, tmp_path: Path) -> None:
        """What the guest logs goes to ``Hostcalls.log`` under its own execution, and not into its
        output."""
        sample = self._sample("logs")
        async with self.open_runtime(tmp_path) as opened:
            async with opened.instance(opened.artifact(sample)) as instance:
                request = new_request(b"x")
                response = await instance.execute(request)
                assert response.error is None, response.error
            assert "hello from the guest" in opened.hostcalls.text_of(request.execution_id)
            assert b"hello from the guest" not in response.payload
            assert {e.execution_id for e in opened.hostcalls.entries} == {request.execution_id}

    @promise
    async def test_memory_limit_holds(self, tmp_path: Path) -> None:
        """``Capability.MEMORY_LIMIT``: a guest over ``Limits.memory_bytes`` fails; under it, it
        does not."""
        if Capability.MEMORY_LIMIT not in self.spec.capabilities:
            pytest.skip("MEMORY_LIMIT is not declared")
        sample = self._sample("hungry")
        async with self.open_runtime(tmp_path) as opened:
            tight = opened.artifact(sample, limits=Limits(memory_bytes=128 << 20))
            assert_failed(await opened.run_once(tight))
            ample = opened.artifact(sample, limits=Limits(memory_bytes=768 << 20))
            response = await opened.run_once(ample)
            assert response.error is None, response.error

    @promise
    async def test_first_wait_is_outside_scopes(self, tmp_path: Path) -> None:
        """``Capability.PROMPT``: ``open_instance`` and ``execute`` can begin in no scope, and be
        put into one at their first wait."""
        if Capability.PROMPT not in self.spec.capabilities:
            pytest.skip("PROMPT is not declared")
        async with self.open_runtime(tmp_path) as opened:
            samples = [self.echo, self.fails, self.logs, self.hungry, self.loops]
            for artifact in [opened.artifact(sample) for sample in samples if sample is not None]:
                await opened.runtime.prepare(artifact)
                with trio.fail_after(self.patience):
                    await run_in_scope(_run_alone(opened, artifact), partial(trio.move_on_after, 1))
            assert_completed(await opened.run_once(opened.artifact(self.echo), b"on"), b"on")
