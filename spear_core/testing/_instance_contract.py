"""What a runtime promises of its instances: how they are stopped, fail and end.

A part of the contract suite for runtimes.
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio

from spear_core.api import Capability, Instance, RuntimeInstanceId, RuntimeSpec
from spear_core.errors import ChannelError, InstanceError
from spear_core.testing._promise import promise
from spear_core.testing._resources import Resources, least_busy_share
from spear_core.testing._runtime_samples import assert_completed, new_request

if TYPE_CHECKING:
    from spear_core.testing._runtime_samples import OpenedRuntime, Sample

__all__ = ["InstancePromises", "has_failed"]


class InstancePromises:
    """A part of :class:`~spear_core.testing.RuntimeContract`."""

    spec: ClassVar[RuntimeSpec[Any]]
    settling: float
    patience: float

    if TYPE_CHECKING:
        echo: ClassVar[Sample]
        fails: ClassVar[Sample]
        loops: ClassVar[Sample | None]

        def open_runtime(self, tmp_path: Path) -> AbstractAsyncContextManager[OpenedRuntime]:
            """As the suite does."""
            raise NotImplementedError

        def _sample(self, name: str) -> Sample:
            raise NotImplementedError

    # ---- cancellation

    @promise
    async def test_cancelled_execution_stops_the_guest(self, tmp_path: Path) -> None:
        """``execute``, cancelled: when ``Cancelled`` comes out, nothing of it still runs."""
        if Capability.CANCEL not in self.spec.capabilities:
            pytest.skip("CANCEL is not declared")
        loops = self._sample("loops")
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(loops)
            async with opened.instance(artifact) as instance:
                with trio.move_on_after(0.3) as scope:
                    await instance.execute(new_request())
                assert scope.cancelled_caught, "the sample 'loops' came to an end"
                busy = await least_busy_share(seconds=self.settling)
            assert busy < 0.5, f"something ran in {busy:.0%} of the looks after the cancellation"

    @promise
    async def test_cancelled_execution_leaves_others_alone(self, tmp_path: Path) -> None:
        """Cancelling one execution does not touch another instance; an endless loop does not stop
        the node."""
        if Capability.CANCEL not in self.spec.capabilities:
            pytest.skip("CANCEL is not declared")
        loops = self._sample("loops")
        async with self.open_runtime(tmp_path) as opened:
            echo = opened.artifact(self.echo)
            async with opened.instance(opened.artifact(loops)) as busy:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(busy.execute, new_request())
                        await trio.sleep(0.1)
                        assert_completed(await opened.run_once(echo, b"1"), b"1")
                        scope.cancel()
            assert_completed(await opened.run_once(echo, b"2"), b"2")

    @promise
    async def test_cancelled_opening_leaves_nothing(self, tmp_path: Path) -> None:
        """``open_instance``, cancelled: nothing of the instance is left."""
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(self.echo)
            await opened.run_once(artifact, b"warm")
            before = Resources.now()
            for delay in (0, 0, 0.001, 0.005):
                with trio.move_on_after(delay):
                    async with opened.instance(artifact):
                        await trio.sleep_forever()
            assert await Resources.settled(before, seconds=self.settling) == []
            assert_completed(await opened.run_once(artifact, b"still"), b"still")

    # ---- the instance

    @promise
    async def test_instance_has_the_id_it_was_given(self, tmp_path: Path) -> None:
        """``Instance.id`` is the id of its ``InstanceSpec``."""
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(opened.artifact(self.echo), name="chosen-7") as instance,
        ):
            assert instance.id == RuntimeInstanceId(
                runtime_type=self.spec.name, instance_id="chosen-7"
            )

    @promise
    async def test_idle_instance_is_healthy(self, tmp_path: Path) -> None:
        """``check_health`` returns, and ``wait_failed`` waits, while an instance is fit."""
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(opened.artifact(self.echo)) as instance,
        ):
            await instance.check_health()
            assert not await has_failed(instance)
            await instance.check_health()

    @promise
    async def test_killed_instance_is_noticed(self, tmp_path: Path) -> None:
        """``wait_failed`` returns, and ``check_health`` and ``execute`` raise, once the process
        behind an instance is gone; others work on."""
        async with self.open_runtime(tmp_path) as opened:
            reuse = Capability.REUSE in self.spec.capabilities
            artifact = opened.artifact(self.echo, reuse=reuse)
            async with opened.instance(artifact) as instance:
                pid = instance.statistics().pid
                if pid is None:
                    pytest.skip("no process lives as long as the instance")
                os.kill(pid, signal.SIGKILL)
                reason = await instance.wait_failed()
                assert reason
                assert "\n" not in reason
                with pytest.raises(InstanceError):
                    await instance.check_health()
                with pytest.raises((InstanceError, ChannelError)):
                    await instance.execute(new_request())
            assert_completed(await opened.run_once(artifact, b"on"), b"on")

    @promise
    async def test_statistics_count_executions(self, tmp_path: Path) -> None:
        """``statistics``: executions since the start; cpu and memory never negative."""
        async with (
            self.open_runtime(tmp_path) as opened,
            opened.instance(opened.artifact(self.echo)) as instance,
        ):
            assert instance.statistics().executions == 0
            await instance.execute(new_request(b"x"))
            after = instance.statistics()
            assert after.executions == 1
            assert (after.cpu_seconds or 0) >= 0
            assert (after.memory_bytes or 0) >= 0

    @promise
    async def test_instances_leave_nothing_behind(self, tmp_path: Path) -> None:
        """``open_instance``: leaving the block ends the instance and everything it started: no
        process, thread or open file is left, nor a file in ``run_dir``."""
        async with self.open_runtime(tmp_path) as opened:
            artifact, failing = opened.artifact(self.echo), opened.artifact(self.fails)
            await opened.run_once(artifact, b"warm")
            before = Resources.now()
            for _ in range(3):
                await opened.run_once(artifact, b"x")
                await opened.run_once(failing)
            assert await Resources.settled(before, seconds=self.settling) == []

    @promise
    async def test_instance_ends_when_its_block_fails(self, tmp_path: Path) -> None:
        """``open_instance``: when the block ends by an exception, the instance ends at once and
        the exception passes."""
        loops = self.loops or self.echo
        async with self.open_runtime(tmp_path) as opened:
            artifact = opened.artifact(loops)
            await opened.run_once(opened.artifact(self.echo), b"warm")
            before = Resources.now()

            async def fail() -> None:
                async with opened.instance(artifact) as instance, trio.open_nursery() as nursery:
                    nursery.start_soon(instance.execute, new_request())
                    await trio.sleep(0.05)
                    raise ValueError("on purpose")

            with pytest.raises((ValueError, BaseExceptionGroup)) as caught:
                await fail()
            assert _leaves(caught.value) == [ValueError]
            assert await Resources.settled(before, seconds=self.settling) == []

    @promise
    async def test_runtime_leaves_nothing_behind(self, tmp_path: Path) -> None:
        """``RuntimeSpec.open``: after its block, nothing that it started is left."""
        async with self.open_runtime(tmp_path) as opened:
            await opened.run_once(opened.artifact(self.echo), b"warm")
        before = Resources.now()
        async with self.open_runtime(tmp_path) as opened:
            await opened.run_once(opened.artifact(self.echo), b"x")
        assert await Resources.settled(before, seconds=self.settling) == []


async def has_failed(instance: Instance) -> bool:
    """Whether ``wait_failed`` returns, for which it gets a moment."""
    with trio.move_on_after(0.1):
        reason = await instance.wait_failed()
        assert reason, "wait_failed gave no reason"
        with pytest.raises(InstanceError):
            await instance.check_health()
        return True
    return False


def _leaves(exc: BaseException) -> list[type[BaseException]]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for each in exc.exceptions for leaf in _leaves(each)]
    return [type(exc)]
