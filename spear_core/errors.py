"""Every error SPEAR raises on purpose.

::

    SpearError
    ├── ArtifactError
    │   ├── ArtifactNotFoundError
    │   ├── ArtifactInUseError
    │   ├── ArtifactCorruptError
    │   ├── ArtifactDisabledError
    │   ├── CircuitOpenError
    │   ├── DependencyError
    │   ├── SecretNotFoundError
    │   └── UnsupportedArtifactError
    ├── TaskError
    │   ├── TaskNotFoundError
    │   ├── TaskCancelledError
    │   ├── TaskFailedError
    │   ├── TaskTimeoutError
    │   ├── InvalidRequestError
    │   │   └── UnsupportedModeError
    │   ├── IdempotencyConflictError
    │   ├── ResourceExhaustedError
    │   ├── NodeRestartedError
    │   └── NodeStoppingError
    ├── InstanceError
    │   ├── InstanceStartError
    │   └── InstanceLostError
    ├── RuntimeFault
    │   ├── RuntimeNotFoundError
    │   ├── RuntimeUnavailableError
    │   └── IsolationUnavailableError
    ├── ChannelError
    │   ├── ChannelClosedError
    │   ├── ChannelBrokenError
    │   ├── ChannelTimeoutError
    │   ├── ChannelAuthError
    │   ├── ChannelCreationError
    │   ├── UnsupportedTransportError
    │   └── ProtocolError
    ├── StoreError
    │   ├── ObjectNotFoundError
    │   ├── ObjectForbiddenError
    │   ├── ObjectConflictError
    │   ├── MetadataConflictError
    │   ├── CompactedError
    │   ├── LeaseNotFoundError
    │   ├── SnapshotExpiredError
    │   ├── StoreCorruptError
    │   ├── StoreFormatError
    │   ├── StoreFullError
    │   └── StoreInUseError
    ├── ConfigError
    ├── PluginError
    └── ClusterError
        ├── NodeUnreachableError
        └── NodeAlreadyRunningError

Each class has a ``code`` (a gRPC status name in lower case) and says whether the same request may
be tried again (``retryable``). Closed means that we closed it, broken that they did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

__all__ = [
    "ArtifactCorruptError",
    "ArtifactDisabledError",
    "ArtifactError",
    "ArtifactInUseError",
    "ArtifactNotFoundError",
    "ChannelAuthError",
    "ChannelBrokenError",
    "ChannelClosedError",
    "ChannelCreationError",
    "ChannelError",
    "ChannelTimeoutError",
    "CircuitOpenError",
    "ClusterError",
    "CompactedError",
    "ConfigError",
    "DependencyError",
    "IdempotencyConflictError",
    "InstanceError",
    "InstanceLostError",
    "InstanceStartError",
    "InvalidRequestError",
    "IsolationUnavailableError",
    "LeaseNotFoundError",
    "MetadataConflictError",
    "NodeAlreadyRunningError",
    "NodeRestartedError",
    "NodeStoppingError",
    "NodeUnreachableError",
    "ObjectConflictError",
    "ObjectForbiddenError",
    "ObjectNotFoundError",
    "PluginError",
    "ProtocolError",
    "ResourceExhaustedError",
    "RuntimeFault",
    "RuntimeNotFoundError",
    "RuntimeUnavailableError",
    "SecretNotFoundError",
    "SnapshotExpiredError",
    "SpearError",
    "StoreCorruptError",
    "StoreError",
    "StoreFormatError",
    "StoreFullError",
    "StoreInUseError",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "UnsupportedArtifactError",
    "UnsupportedModeError",
    "UnsupportedTransportError",
    "error_from_code",
]


class SpearError(Exception):
    """The root of the tree; ``str(error)`` says what happened, to what, and what to do.

    :param message: one sentence or two for a person.
    :param code: overrides the class's code, for an error that crossed a wire.
    :param retryable: overrides the class's answer, likewise.
    """

    code: str = "internal"
    retryable: bool = False

    def __init__(
        self, message: str, *, code: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class _TryLaterError(SpearError):
    """Whatever stands in the way goes by itself, and it is known when."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.retry_after = retry_after


class ArtifactError(SpearError):
    """Something is wrong with an artifact."""

    code = "failed_precondition"


class ArtifactNotFoundError(ArtifactError):
    """No artifact, or no such version of it, is deployed under this name."""

    code = "not_found"


class ArtifactInUseError(ArtifactError):
    """The artifact cannot be deleted: tasks or instances still use it."""


class ArtifactCorruptError(ArtifactError):
    """What is stored is not what was deployed: its checksum differs."""

    code = "data_loss"


class ArtifactDisabledError(ArtifactError):
    """An operator has disabled this version; it takes no new tasks."""


class CircuitOpenError(_TryLaterError, ArtifactError):
    """The artifact's instances keep breaking; it is left alone for a while.

    :param retry_after: seconds until the next attempt is let through.
    """

    code = "unavailable"


class DependencyError(ArtifactError):
    """Something that the artifact needs is not there or cannot be installed; the message names
    it."""


class SecretNotFoundError(ArtifactError):
    """The artifact refers to a secret that the operator has not defined here, or that cannot be
    read."""


class UnsupportedArtifactError(ArtifactError):
    """No installed runtime knows this file, or the runtime refuses it (malformed code)."""

    code = "invalid_argument"


class TaskError(SpearError):
    """Something is wrong with a task."""

    task_id: str = ""
    """Which one, when it is known."""


class TaskNotFoundError(TaskError):
    """This node does not know the task: never made here, or purged."""

    code = "not_found"


class TaskCancelledError(TaskError):
    """The task was cancelled before it finished."""

    code = "cancelled"


class TaskFailedError(TaskError):
    """The task ran and failed; ``code`` and the message are its own.

    :param kind: the guest's word for it: an exception class, a trap, ``exit``.
    :param details: short facts by name, such as ``exit_code`` or ``stderr``.
    """

    code = "unknown"

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        details: Mapping[str, str] | None = None,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.kind = kind
        self.details: Mapping[str, str] = dict(details or {})


class TaskTimeoutError(TaskError):
    """The task's deadline passed before it finished."""

    code = "deadline_exceeded"


class InvalidRequestError(TaskError):
    """The request itself is wrong; the message names the field."""

    code = "invalid_argument"


class UnsupportedModeError(InvalidRequestError):
    """The request names a mode that does not exist, or that this method does not do."""


class IdempotencyConflictError(TaskError):
    """The idempotency key was used before, with another request."""

    code = "already_exists"


class ResourceExhaustedError(_TryLaterError, TaskError):
    """A queue or a limit is full; nothing was started.

    :param retry_after: seconds after which a new try makes sense, if known.
    """

    code = "resource_exhausted"


class NodeRestartedError(TaskError):
    """The node ended while the task ran: what it has done, nobody can say. Invoke again if running
    twice does no harm."""

    code = "unavailable"
    retryable = True


class NodeStoppingError(TaskError):
    """The node is shutting down and takes no new work."""

    code = "unavailable"
    retryable = True


class InstanceError(SpearError):
    """An instance is broken; the pool retires it."""

    code = "unavailable"
    retryable = True


class InstanceStartError(InstanceError):
    """An instance could not be made.

    Most often the code itself is at fault (an import that fails), so it is not retryable; a runtime
    that knows better (no memory, no descriptors) says ``retryable=True``.
    """

    retryable = False


class InstanceLostError(InstanceError):
    """The instance died while it had work: the worker was killed, its channel broke.

    :param unsent: it was dead before the request could reach it, so nothing of it has begun.
    """

    def __init__(
        self,
        message: str,
        *,
        unsent: bool = False,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.unsent = unsent


class RuntimeFault(SpearError):  # noqa: N818 - "RuntimeError" is Python's own
    """A runtime cannot do what is asked of it."""

    code = "failed_precondition"


class RuntimeNotFoundError(RuntimeFault):
    """No plugin provides this runtime; the message names the distribution that does, if known."""


class RuntimeUnavailableError(RuntimeFault):
    """The runtime is installed, but its backend is not healthy here."""

    code = "unavailable"
    retryable = True


class IsolationUnavailableError(RuntimeFault):
    """The artifact requires an isolation level that this machine cannot give."""


class ChannelError(SpearError):
    """Something is wrong with a channel."""

    code = "unavailable"


class ChannelClosedError(ChannelError):
    """This side has closed the channel."""


class ChannelBrokenError(ChannelError):
    """The other side, or what lies between, broke the channel."""

    retryable = True


class ChannelTimeoutError(ChannelError):
    """The other side did not answer in time (raised at an edge, never inside)."""

    code = "deadline_exceeded"


class ChannelAuthError(ChannelError):
    """The other side could not prove that it is the instance the channel was made for."""

    code = "unauthenticated"


class ChannelCreationError(ChannelError):
    """No transport could make the channel.

    :param failures: ``(transport, reason)`` for every transport tried, in order.
    """

    def __init__(
        self,
        message: str,
        *,
        failures: Sequence[tuple[str, str]] = (),
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.failures = tuple(failures)


class UnsupportedTransportError(ChannelError):
    """No plugin provides a transport of this name."""

    code = "unimplemented"


class ProtocolError(ChannelError):
    """The other side sent what the protocol forbids; the channel is closed."""

    code = "invalid_argument"


class StoreError(SpearError):
    """Something is wrong with a store."""


class ObjectNotFoundError(StoreError):
    """No object has this key."""

    code = "not_found"


class ObjectForbiddenError(StoreError):
    """The artifact may not touch this key; the message names what it may."""

    code = "permission_denied"


class ObjectConflictError(StoreError):
    """A write named a version that is no longer current.

    :param current: the version that is current (0: the object does not exist).
    """

    code = "aborted"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        current: int = 0,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.current = current


class MetadataConflictError(StoreError):
    """A write named a revision of a key that is no longer current.

    :param current: the revision that last wrote it (0: the key does not exist).
    """

    code = "aborted"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        current: int = 0,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.current = current


class CompactedError(StoreError):
    """The history that was asked for is gone: read anew, and watch from what was read.

    :param compacted: the oldest revision that can still be read.
    """

    code = "out_of_range"

    def __init__(
        self,
        message: str,
        *,
        compacted: int = 0,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.compacted = compacted


class LeaseNotFoundError(StoreError):
    """The lease has ended, or never was."""

    code = "not_found"


class SnapshotExpiredError(StoreError):
    """The snapshot was held for longer than its store can afford; take a new one."""

    code = "aborted"
    retryable = True


class StoreCorruptError(StoreError):
    """What is on disk is not what the store wrote; the message names the file and what to do."""

    code = "data_loss"


class StoreFormatError(StoreError):
    """The files were written by a newer version, or by something else; nothing was touched."""

    code = "failed_precondition"


class StoreFullError(StoreError):
    """The store has reached its size limit, or the disk its end, and may evict nothing more."""

    code = "resource_exhausted"


class StoreInUseError(StoreError):
    """Another process has the store's files open."""

    code = "failed_precondition"


class ConfigError(SpearError):
    """One or more settings are wrong.

    :param problems: one line each, beginning with the TOML path (``plugins.wasm.x: …``).
    """

    code = "invalid_argument"

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[str] = (),
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.problems = tuple(problems)


class PluginError(SpearError):
    """A plugin cannot be used; the message names it, its distribution and the reason."""

    code = "failed_precondition"


class ClusterError(SpearError):
    """Something is wrong between nodes, or between a client and its node."""

    code = "unavailable"


class NodeUnreachableError(ClusterError):
    """Nothing answers at the node's address, or it went away in mid-call."""

    retryable = True


class NodeAlreadyRunningError(ClusterError):
    """Another node holds the state directory.

    :param pid: that node's process id (0: not known).
    """

    code = "failed_precondition"

    def __init__(
        self,
        message: str,
        *,
        pid: int = 0,
        code: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.pid = pid


class _Tree:
    """Class name → class, for an error that comes back over a wire."""

    by_name: ClassVar[dict[str, type[SpearError]]] = {}


def error_from_code(name: str, message: str, *, code: str, retryable: bool) -> SpearError:
    """Rebuild an error that a peer described by class name, message and code.

    A name this version does not know gives a plain :class:`SpearError` with the peer's code.
    """
    if not _Tree.by_name:
        pending: list[type[SpearError]] = [SpearError]
        while pending:
            cls = pending.pop()
            _Tree.by_name[cls.__name__] = cls
            pending.extend(cls.__subclasses__())
    return _Tree.by_name.get(name, SpearError)(message, code=code, retryable=retryable)
