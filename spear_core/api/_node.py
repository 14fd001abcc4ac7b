"""What a node does for its callers, whichever front door they come through."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import attrs

from spear_core.api._artifact import ArtifactSettings, ArtifactState
from spear_core.api._backup import BackupReport
from spear_core.api._execution import ErrorInfo, ExecutionUsage
from spear_core.api._metrics import NodeMetrics
from spear_core.api._objects import ObjectApi
from spear_core.api._stream import DuplexStream
from spear_core.errors import SpearError

__all__ = [
    "ArtifactDetails",
    "ArtifactInfo",
    "ArtifactUpload",
    "ConfigReload",
    "ExecutionInfo",
    "ExecutionMode",
    "InstanceInfo",
    "InstanceState",
    "InvokeRequest",
    "InvokeResponse",
    "InvokeStream",
    "LogChunk",
    "LogEntry",
    "NodeApi",
    "NodeStatus",
    "PluginInfo",
    "Priority",
    "RuntimeInfo",
    "TaskInfo",
    "TaskResult",
    "TaskState",
]


class TaskState(enum.Enum):
    """Where a task is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    """An execution failed retryably and the next one waits for its time."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"

    is_final: bool
    """True when the task will not change any more."""

    def __init__(self, value: str) -> None:
        self.is_final = value not in ("pending", "running", "retrying")

    # There is one of each: their identity does, and Enum's own hash is a call of Python.
    __hash__ = object.__hash__


class InstanceState(enum.Enum):
    """Where an instance is in its life."""

    CREATING = "creating"
    READY = "ready"
    RUNNING = "running"
    FAILED = "failed"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class ExecutionMode(enum.Enum):
    """Whether the caller waits."""

    SYNC = "sync"
    ASYNC = "async"
    STREAM = "stream"
    """Only through :meth:`NodeApi.stream`; :meth:`NodeApi.invoke` refuses it and says so."""


class Priority(enum.IntEnum):
    """Who goes first; waiting raises a task's priority so that nothing starves."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


@attrs.frozen(kw_only=True)
class ArtifactUpload(ArtifactSettings):
    """Code to deploy."""

    name: str
    """1 to 100 letters, digits, ``-``, ``_`` and ``.``, beginning with a letter or digit."""
    filename: str
    """The file to run; within a bundle, its path there."""
    content: bytes
    bundle: bool = False
    """``content`` is a zip archive with ``filename`` and what belongs to it."""
    runtime: str = ""
    """Empty: the node picks the runtime that recognises the file."""
    reuse: bool | None = None
    """``None``: as the runtime says for this kind of code."""
    executable: bool = False
    """The file had its x bit set."""


@attrs.frozen(kw_only=True)
class ArtifactInfo:
    """A deployed version, as listings show it."""

    name: str
    version: int
    digest: str
    size: int
    """Bytes of code."""
    runtime: str
    shape: str
    filename: str
    entry: str
    created_at: float
    """Seconds since the Unix epoch."""
    in_use: int
    """Unfinished tasks and live instances that use it."""
    state: ArtifactState = ArtifactState.READY
    latest: bool = True
    """What its name alone means."""
    message: str = ""
    """While it is ``preparing``: what is being done."""


@attrs.frozen(kw_only=True)
class ArtifactDetails:
    """A deployed version with everything that was said about it."""

    info: ArtifactInfo
    settings: ArtifactSettings
    """``secrets`` has names only; no value is known here."""
    bundle: bool
    """It has several files."""
    reuse: bool
    """One instance serves many executions."""
    dependents: tuple[str, ...] = ()
    """Artifacts that would miss it."""


@attrs.frozen(kw_only=True)
class InvokeRequest:
    """A call of a function."""

    function: str
    """``artifact[@version][:entry]``; without a version, the latest."""
    payload: bytes = b""
    content_type: str = "application/octet-stream"
    mode: ExecutionMode = ExecutionMode.SYNC
    timeout_s: float | None = None
    """Seconds until the deadline, queueing included; ``None``: the artifact's, else the node's."""
    trace: str = ""
    """W3C ``traceparent``, or empty."""
    priority: Priority = Priority.NORMAL
    idempotency_key: str = ""
    """Requests of one caller with the same key and the same content are one task, as long as it is
    kept. Empty: every request is its own."""
    caller: str = ""
    """Whose limits count; a front door that knows better than the client says so itself."""
    context: Mapping[str, str] = attrs.field(factory=dict)
    """Short facts for the guest, beside its input."""
    parent_task_id: str = ""
    """The task that asks for this one; its end cancels this one unless ``detached``."""
    detached: bool = False
    input_object: str = ""
    """The key of an object to take as the input, whole (``producer/frame``); ``payload`` is empty
    then. The version of the moment counts, whatever becomes of the object while the task waits."""


@attrs.frozen(kw_only=True)
class TaskResult:
    """How a task's last execution ended."""

    output: bytes = b""
    content_type: str = "application/octet-stream"
    object_key: str = ""
    """Where the output is when it is large (``[execution] inline_output_bytes``): an object of the
    node's, there to be read for as long as the task is kept. ``output`` is empty then."""
    object_size: int = 0
    """Bytes of that object."""
    error: ErrorInfo | None = None
    """Set for every final state but ``completed``."""
    execution_time_ms: float = 0.0
    """From the moment an instance was there until it answered."""
    queue_time_ms: float = 0.0
    """From the task's acceptance, or the end of the wait for a retry, until then."""
    cold: bool = False
    """An instance was made for it."""
    instance_id: str = ""
    node_id: str = ""
    attempt: int = 1
    usage: ExecutionUsage = ExecutionUsage()


@attrs.frozen(kw_only=True)
class ExecutionInfo:
    """An attempt that has ended."""

    execution_id: str
    attempt: int
    instance_id: str
    started_at: float
    """Seconds since the Unix epoch; the next likewise."""
    completed_at: float
    error: ErrorInfo | None = None


@attrs.frozen(kw_only=True)
class TaskInfo:
    """A task as callers see it."""

    task_id: str
    execution_id: str
    function: str
    """``artifact@version[:entry]``."""
    state: TaskState
    created_at: float
    """Seconds since the Unix epoch; the next two likewise."""
    started_at: float | None = None
    completed_at: float | None = None
    result: TaskResult | None = None
    """Set when ``state`` is final. Listings leave the output out."""
    priority: Priority = Priority.NORMAL
    caller: str = ""
    parent_task_id: str = ""
    attempt: int = 1
    failed_executions: tuple[ExecutionInfo, ...] = ()
    """Attempts before the current or last one."""


@attrs.frozen(kw_only=True)
class InvokeResponse:
    """The answer to :meth:`NodeApi.invoke`."""

    success: bool
    """The task completed (``sync``), or was accepted (``async``)."""
    message: str
    task: TaskInfo
    status_endpoint: str = ""
    """``/status/<execution_id>`` for ``async``: what :meth:`NodeApi.get_task` takes; empty for
    ``sync``."""
    estimated_completion_ms: int = 0


@attrs.frozen(kw_only=True)
class LogEntry:
    """One entry of a task's log."""

    seq: int
    """From 1 per task."""
    ts: float
    """Seconds since the Unix epoch."""
    level: str
    source: str
    """``guest``, ``stdout``, ``stderr`` or ``node``."""
    message: str
    execution_id: str
    trace_id: str = ""
    """Of the execution's trace, 32 hex digits; empty without one."""


@attrs.frozen(kw_only=True)
class LogChunk:
    """A part of a task's log."""

    entries: tuple[LogEntry, ...]
    cursor: int
    """Pass it to the next call."""
    finished: bool
    """The task is final and nothing comes after these entries."""


@attrs.frozen(kw_only=True)
class InstanceInfo:
    """A live instance, as listings show it."""

    instance_id: str
    runtime: str
    artifact: str
    """``name@version``."""
    state: InstanceState
    created_at: float
    executions: int
    pid: int | None
    cpu_seconds: float | None
    memory_bytes: int | None
    outstanding: int = 0
    """Executions it has at the moment."""
    concurrency: int = 1
    """Executions that it may have at the same time."""
    idle_s: float | None = None
    """For how long it has been kept warm without work; ``None``: it is not idle."""


@attrs.frozen(kw_only=True)
class ConfigReload:
    """What came of reading the configuration again."""

    path: str
    changed: tuple[str, ...] = ()
    """``section.setting: old → new``, in force now."""
    restart: tuple[str, ...] = ()
    """``section.setting`` that the file has otherwise, too, but that only a restart takes."""


@attrs.frozen(kw_only=True)
class RuntimeInfo:
    """A runtime and its health on this node."""

    name: str
    health: str
    """``healthy``, ``unhealthy``, ``undetected``, or empty: nobody has needed it yet."""
    message: str
    details: Mapping[str, str]


@attrs.frozen(kw_only=True)
class PluginInfo:
    """A plugin and what became of it."""

    name: str
    distribution: str
    version: str
    provides: tuple[str, ...]
    """``runtime:wasm``, ``transport:unix``, …"""
    state: str
    """``loaded``, ``skipped`` or ``failed``."""
    reason: str
    """Why, when it is not loaded."""
    health: str
    """``healthy``, ``unhealthy``, ``undetected``, or empty where it does not apply."""


@attrs.frozen(kw_only=True)
class NodeStatus:
    """The node itself."""

    node_id: str
    version: str
    pid: int
    started_at: float
    """Seconds since the Unix epoch."""
    state_dir: str
    running: int
    queued: int
    instances: int
    total_executions: int
    successful_executions: int
    failed_executions: int
    average_execution_time_ms: float
    runtimes: tuple[RuntimeInfo, ...]


class InvokeStream(DuplexStream[InvokeResponse]):
    """A call whose input and output go piece by piece; made by :meth:`NodeApi.stream`.

    :meth:`result` answers as :meth:`NodeApi.invoke` does: a task that fails, times out or is
    cancelled is an answer with ``success`` false. Its ``output`` is empty.
    """

    task_id: str
    """The task, there from the start."""


class NodeApi(ABC):
    """Everything a node does for its callers.

    A node implements it, and so does the client that a front door's ``connect`` yields; there
    every method may also raise :exc:`~spear_core.errors.NodeUnreachableError`. Cancelling a call
    is safe at any time. Every method that answers lets others run meanwhile, a ``sync`` invocation
    of a quick function at least now and then.
    """

    @property
    def is_connected(self) -> bool:
        """False once a client's connection is known to be lost: no call can succeed any more."""
        return True

    @property
    def objects(self) -> ObjectApi:
        """The node's objects. **Raises** :exc:`~spear_core.errors.SpearError` where a front door
        has no way to them."""
        raise SpearError("this node's objects cannot be reached this way", code="unimplemented")

    @abstractmethod
    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        """Run a function; ``sync`` waits for its end, ``async`` answers once it is queued.

        A task that fails, times out or is cancelled is an answer with ``success`` false.
        **Raises** :exc:`~spear_core.errors.ArtifactNotFoundError`,
        :exc:`~spear_core.errors.InvalidRequestError`,
        :exc:`~spear_core.errors.ResourceExhaustedError` (nothing was started),
        :exc:`~spear_core.errors.RuntimeFault`, :exc:`~spear_core.errors.NodeStoppingError`,
        :exc:`~spear_core.errors.UnsupportedModeError`,
        :exc:`~spear_core.errors.ObjectNotFoundError` (of ``input_object``),
        :exc:`~spear_core.errors.IdempotencyConflictError`,
        :exc:`~spear_core.errors.CircuitOpenError`. **Cancellation**: of a ``sync`` call cancels the
        task, unless the request has an idempotency key.
        """

    @abstractmethod
    def stream(self, request: InvokeRequest) -> AbstractAsyncContextManager[InvokeStream]:
        """Run a function while the block lasts, with its input and output piece by piece.

        The task is queued when the block is entered; chunks can be sent at once and wait for it.
        It is retried only as long as no chunk has passed. ``request.payload`` must be empty,
        ``mode`` is not looked at. Leaving the block before :meth:`InvokeStream.result` has returned
        cancels the task, and when the block is over nothing of it runs.

        A function that does not stream gets the whole input joined, within the limit of an input,
        and its output is one chunk.

        **Raises**, on entry, as :meth:`invoke`, and
        :exc:`~spear_core.errors.UnsupportedModeError` when the function's runtime cannot stream.
        """

    @abstractmethod
    async def get_task(self, task_id: str, *, wait: bool = False) -> TaskInfo:
        """A task, by its id, its execution's or its status endpoint.

        ``wait`` waits until it is final.

        **Raises** :exc:`~spear_core.errors.TaskNotFoundError`.
        """

    @abstractmethod
    async def list_tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""

    @abstractmethod
    async def cancel_task(self, task_id: str, *, reason: str = "") -> TaskInfo:
        """Cancel a task and wait until nothing of it runs; a final one stays as it is.

        **Raises** :exc:`~spear_core.errors.TaskNotFoundError`.
        """

    @abstractmethod
    async def read_log(self, task_id: str, *, cursor: int = 0, wait: bool = False) -> LogChunk:
        """Entries after ``cursor`` (0: from the start), at most 1000.

        ``wait`` waits until there is at least one or the task is final. **Raises**
        :exc:`~spear_core.errors.TaskNotFoundError`.
        """

    @abstractmethod
    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        """Store code as the next version of its name, ready to run.

        It becomes the latest version. The same code with the same settings as the latest version
        gives that version again; the same as an older one makes a new version.
        **Raises** :exc:`~spear_core.errors.UnsupportedArtifactError`,
        :exc:`~spear_core.errors.RuntimeNotFoundError`,
        :exc:`~spear_core.errors.IsolationUnavailableError`,
        :exc:`~spear_core.errors.SecretNotFoundError`,
        :exc:`~spear_core.errors.DependencyError`,
        :exc:`~spear_core.errors.InvalidRequestError`.
        """

    @abstractmethod
    async def list_artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first; also those that are being deployed, with the state
        ``preparing`` and the number that is next."""

    @abstractmethod
    async def get_artifact(self, ref: str) -> ArtifactDetails:
        """A version with its settings; ``ref`` is ``name``, for the latest, or ``name@version``.

        **Raises** :exc:`~spear_core.errors.ArtifactNotFoundError`.
        """

    @abstractmethod
    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        """Let the name alone mean this version, until the next deploy or call of this.

        **Raises** :exc:`~spear_core.errors.ArtifactNotFoundError`,
        :exc:`~spear_core.errors.ArtifactDisabledError`.
        """

    @abstractmethod
    async def set_artifact_state(
        self, name: str, version: int, state: ArtifactState
    ) -> ArtifactInfo:
        """Make a version ``ready`` or ``disabled``; a disabled one takes no new tasks.

        Tasks that it has already run to their end. **Raises**
        :exc:`~spear_core.errors.ArtifactNotFoundError`,
        :exc:`~spear_core.errors.InvalidRequestError` for another state.
        """

    @abstractmethod
    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted. When it was the latest, the newest that
        is left becomes the latest.

        **Raises** :exc:`~spear_core.errors.ArtifactNotFoundError`,
        :exc:`~spear_core.errors.ArtifactInUseError` (nothing was deleted).
        """

    @abstractmethod
    async def list_instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""

    @abstractmethod
    async def list_plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""

    @abstractmethod
    async def status(self) -> NodeStatus:
        """The node itself."""

    @abstractmethod
    async def metrics(self) -> NodeMetrics:
        """What the node has counted and measured since its start, in total and by artifact."""

    async def reload_config(self) -> ConfigReload:
        """Read the node's configuration file again and take what can be taken while it runs.

        What runs goes on; a lower limit takes effect as things end. **Raises**
        :exc:`~spear_core.errors.ConfigError` with everything that is wrong with the file, and then
        nothing has changed.
        """
        raise SpearError("this node cannot read its configuration again", code="unimplemented")

    async def backup(
        self, directory: str, *, logs: bool = False, tell: Callable[[str], None] | None = None
    ) -> BackupReport:
        """Write a backup of everything the node keeps to a new directory on its machine, while it
        works.

        Every task that was accepted, and every end that somebody was told, before the call is in
        it, with all that their records name. Objects are those of one moment, a little later than
        that of the tasks. Deletions of artifacts' code and of tasks' inputs and outputs wait while
        the stores are copied; nothing else does.

        :param directory: an absolute path; does not exist yet. It appears when it is whole.
        :param logs: those of the node and of the tasks as well.
        :param tell: is told now and then in a few words what is being done.

        **Raises** :exc:`~spear_core.errors.InvalidRequestError` when the directory exists or
        cannot be made, :exc:`~spear_core.errors.StoreFullError` when its disk is full.
        **Cancellation**: nothing is left of it.
        """
        raise SpearError("this node cannot make backups", code="unimplemented")
