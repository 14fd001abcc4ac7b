"""Runtimes and the instances they make."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import trio

from spear_core.api._artifact import Artifact
from spear_core.api._execution import ExecutionRequest, ExecutionResponse
from spear_core.api._plugin import PluginContext
from spear_core.api._stream import DuplexStream

__all__ = [
    "Capability",
    "Fingerprint",
    "Health",
    "Instance",
    "InstanceSpec",
    "InstanceStatistics",
    "Runtime",
    "RuntimeInstanceId",
    "RuntimeSpec",
    "StreamingInstance",
]

C = TypeVar("C")


class Health(enum.Enum):
    """The three answers a backend can give about itself."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNDETECTED = "undetected"
    """Installed, but what it drives is absent on this machine."""


@attrs.frozen(kw_only=True)
class Fingerprint:
    """What a runtime found out about this machine."""

    health: Health
    message: str = ""
    """One line: what is wrong and what to do, or what was found."""
    details: Mapping[str, str] = attrs.field(factory=dict)
    """Facts for ``spear doctor``, by name, in the order to show them."""


class Capability(enum.Enum):
    """What a plugin can do beyond its interface's minimum; contract suites hold it to its word."""

    REUSE = "reuse"
    """One instance may serve many executions, one after the other."""
    CANCEL = "cancel"
    """Cancelling ``execute`` stops a guest that computes and never looks up."""
    MEMORY_LIMIT = "memory_limit"
    """``Limits.memory_bytes`` holds."""
    STREAM = "stream"
    """Its instances are :class:`StreamingInstance`."""
    REQUIREMENTS = "requirements"
    """It installs ``Artifact.requirements`` for the code to import."""
    CONCURRENCY = "concurrency"
    """An instance may have several executions at the same time (``Artifact.concurrency``)."""
    PROMPT = "prompt"
    """A small execution may end without waiting for anything, and its ``execute`` need not let
    other tasks run; who calls it sees to that. ``open_instance`` and ``execute`` begin their first
    wait outside any cancel scope and nursery of their own (with a checkpoint, if need be), so that
    until then they can be run in none."""
    DURABLE = "durable"
    """Of a store: what it acknowledged is there again when it is opened anew, also after the end
    of its process in mid-write."""


@attrs.frozen(kw_only=True)
class RuntimeInstanceId:
    """Names one instance on one node."""

    runtime_type: str
    instance_id: str

    def __str__(self) -> str:
        return f"{self.runtime_type}/{self.instance_id}"


@attrs.frozen(kw_only=True)
class InstanceSpec:
    """What the node asks a runtime to make."""

    id: RuntimeInstanceId
    artifact: Artifact
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables with the values of the artifact's secrets. Never log or list them."""


@attrs.frozen(kw_only=True)
class InstanceStatistics:
    """What an instance has used so far; ``None`` means its runtime cannot tell."""

    executions: int = 0
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    pid: int | None = None


class Instance(ABC):
    """A live environment that executes tasks of one artifact, one at a time; or several, up to
    ``Artifact.concurrency``, if its runtime has ``Capability.CONCURRENCY``."""

    id: RuntimeInstanceId

    @abstractmethod
    async def execute(self, request: ExecutionRequest) -> ExecutionResponse:
        """Run one execution to its end.

        The caller never starts a second one before the first has ended, unless the artifact's
        ``concurrency`` lets it. A failure of the guest's
        own code (exception, trap, exit code, a limit it hit) is a response with
        ``ExecutionStatus.FAILED`` and leaves the instance fit for the next execution, unless
        :meth:`wait_failed` returns.

        **Raises** :exc:`~spear_core.errors.InstanceError` or
        :exc:`~spear_core.errors.ChannelError` when the instance itself is broken; the pool then
        retires it and no further call is made.

        **Cancellation**: stops the guest, whatever it does; when ``Cancelled`` comes out, nothing
        of this execution still runs; others on this instance go on, or raise ``InstanceError``
        where the guest can be stopped only with its instance. The pool retires the instance unless
        it is :meth:`fit`.
        """

    @abstractmethod
    async def check_health(self) -> None:
        """Return if an idle instance can take the next execution.

        **Raises** :exc:`~spear_core.errors.InstanceError` when it cannot. **Cancellation**: safe at
        any time; the caller bounds the wait.
        """

    @abstractmethod
    async def wait_failed(self) -> str:
        """Wait until the instance can take no more executions and return the reason, one line.

        For an instance that cannot fail on its own this waits for ever. **Cancellation**: safe at
        any time.
        """

    @abstractmethod
    def statistics(self) -> InstanceStatistics:
        """What the instance has used so far. Cheap; never blocks."""

    def fit(self) -> bool:
        """Whether it can go on with its other executions and take more, just after one of them was
        cancelled or raised.

        Asked only of an instance that may have several at the same time. Cheap; never blocks. The
        default, ``False``, has the pool end it once its other executions have ended.
        """
        return False


class StreamingInstance(Instance):
    """An instance that can also take its input and give its output piece by piece."""

    @abstractmethod
    def stream(
        self, request: ExecutionRequest
    ) -> AbstractAsyncContextManager[DuplexStream[ExecutionResponse]]:
        """Run one execution while the block lasts; ``request.payload`` is not used.

        The guest's input is what the caller sends, its output what the caller receives, with
        backpressure both ways. :meth:`DuplexStream.result` gives the response, whose payload is
        empty. Leaving the block before that stops the guest as cancelling :meth:`execute` does.
        **Raises** as :meth:`execute`, on entry or from the stream's methods.
        """


class Runtime(ABC):
    """Makes instances of one kind on one node."""

    @abstractmethod
    async def fingerprint(self) -> Fingerprint:
        """Look at the machine and say whether this runtime can work here.

        Called at start, by ``spear doctor`` and from time to time. Never raises for an absent or
        broken backend: that is what ``Health`` is for. **Cancellation**: safe at any time.
        """

    @abstractmethod
    async def prepare(self, artifact: Artifact) -> None:
        """Do once what every instance of this artifact needs: compile, unpack, pull.

        Called before the first instance and after a restart; doing it again is cheap. Two calls
        for one artifact may overlap.

        **Raises** :exc:`~spear_core.errors.UnsupportedArtifactError` when the code itself is at
        fault, :exc:`~spear_core.errors.IsolationUnavailableError` when it requires more than this
        machine gives, :exc:`~spear_core.errors.RuntimeFault` otherwise. **Cancellation**: leaves
        nothing half-made that a later call would take for whole.
        """

    async def retain(self, artifacts: Sequence[Artifact]) -> None:
        """Forget what was prepared for artifacts of this node that are not among these.

        Called after artifacts were deleted, with all that are left for this runtime; does nothing
        unless a runtime keeps something for each artifact. What another node on the same cache
        uses must stay. **Raises** :exc:`~spear_core.errors.RuntimeFault`.
        """
        await trio.lowlevel.checkpoint()

    @abstractmethod
    def open_instance(self, spec: InstanceSpec) -> AbstractAsyncContextManager[Instance]:
        """Make an instance; it lives as long as the block.

        :meth:`prepare` has returned for ``spec.artifact``. Leaving the block ends the instance and
        everything it started, gracefully at first when the block ends normally, at once when it
        ends by an exception.

        **Raises** :exc:`~spear_core.errors.InstanceStartError` on entry when the instance cannot be
        made. **Cancellation**: nothing of the instance is left.
        """


@attrs.frozen(kw_only=True)
class RuntimeSpec(Generic[C]):
    """Declares a runtime; returned by the hook ``spear_runtimes``."""

    name: str
    """What an artifact asks for: ``wasm``, ``process``."""
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[Runtime]]
    """Entered once by the node. Engines are imported here, not before."""
    config_cls: type[C]
    """attrs class for the section ``[plugins.<entry point>]``."""
    recognise: Callable[[Path, bytes, str], str | None]
    """``(path, first 65536 bytes, entry)`` → the shape of this file within the runtime, or ``None``
    when it is not for this runtime. Pure and quick: called for every file somebody runs."""
    reusable_shapes: frozenset[str] = frozenset()
    """Shapes whose instances are reused unless the artifact says otherwise."""
    transports: tuple[str, ...] = ()
    """Preferred first, then fallbacks."""
    capabilities: frozenset[Capability] = frozenset()
    api: int = 1
    """Version of this interface, not of the plugin."""


AnyRuntimeSpec = RuntimeSpec[Any]
