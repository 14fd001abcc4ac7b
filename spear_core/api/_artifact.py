"""What a deployed piece of code is: artifact, settings, limits, isolation."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from attrs import validators

__all__ = [
    "Artifact",
    "ArtifactSettings",
    "ArtifactState",
    "IsolationLevel",
    "Limits",
    "ObjectGrants",
    "PoolSettings",
    "Resources",
    "RetryPolicy",
]


SELECTION_POLICIES = ("least_outstanding", "round_robin", "weighted")
"""Names of the ways in which a pool picks an instance."""

_optional_positive = validators.optional(validators.gt(0))
_optional_not_negative = validators.optional(validators.ge(0))


class IsolationLevel(enum.IntEnum):
    """How strongly an execution is fenced off; each level includes the ones below."""

    NONE = 0
    """Nothing but an address space of its own."""
    LIMITS = 1
    """Resource limits hold."""
    SYSCALLS = 2
    """… and file access and system calls are filtered, with no way to gain privileges."""
    NAMESPACES = 3
    """… and it sees processes, network and files of its own only."""
    CGROUP = 4
    """… and memory, cpu and process count are accounted and capped for the whole process tree."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one execution (or one long-lived instance) may use; ``None`` means the node's default.

    A runtime applies those that make sense for it and says in its README which.
    """

    memory_bytes: int | None = None
    """Memory of the whole process tree, or the linear memory of a wasm instance."""
    cpu_seconds: float | None = None
    open_files: int | None = None
    processes: int | None = None
    output_bytes: int | None = None
    """Size of the result; more is an error, not a cut."""


class ArtifactState(enum.Enum):
    """Where a version of an artifact is in its life."""

    PREPARING = "preparing"
    """Being deployed: its runtime gets it ready. It has no number of its own yet."""
    READY = "ready"
    DISABLED = "disabled"
    """Kept, but an operator has said that it takes no new tasks."""
    DELETING = "deleting"


@attrs.frozen(kw_only=True)
class Resources:
    """What one instance reserves of the node's capacity while it executes; ``None``: nothing."""

    cpu: float | None = attrs.field(default=None, validator=_optional_positive)
    """Cores; parts are allowed."""
    memory_bytes: int | None = attrs.field(default=None, validator=_optional_positive)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and how soon an execution that failed retryably is tried again.

    The wait before attempt *n* (from 2) is ``initial_backoff_s × multiplier^(n-2)``, at most
    ``max_backoff_s``, then a random share of it between ``1 - jitter`` and 1.
    """

    attempts: int | None = attrs.field(default=None, validator=_optional_positive)
    """Executions in all, the first included; ``None``: the node's ``execution.retry_attempts``."""
    initial_backoff_s: float = attrs.field(default=0.1, validator=validators.ge(0))
    max_backoff_s: float = attrs.field(default=10.0, validator=validators.ge(0))
    multiplier: float = attrs.field(default=2.0, validator=validators.ge(1))
    jitter: float = attrs.field(
        default=0.5, validator=validators.and_(validators.ge(0), validators.le(1))
    )


@attrs.frozen(kw_only=True)
class PoolSettings:
    """An artifact's own wishes for its pool; ``None`` takes the node's ``[pool]``."""

    min_instances: int | None = attrs.field(default=None, validator=_optional_not_negative)
    max_instances: int | None = attrs.field(default=None, validator=_optional_positive)
    idle_timeout_ms: int | None = attrs.field(default=None, validator=_optional_positive)
    health_check_interval_ms: int | None = attrs.field(default=None, validator=_optional_positive)
    max_executions_per_instance: int | None = attrs.field(
        default=None, validator=_optional_not_negative
    )
    selection: str | None = attrs.field(
        default=None, validator=validators.optional(validators.in_(SELECTION_POLICIES))
    )
    """A policy's name: ``least_outstanding``, ``round_robin`` or ``weighted``."""

    def __attrs_post_init__(self) -> None:
        least, most = self.min_instances, self.max_instances
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_instances: {least} are more than max_instances, which is {most}")


def _grants(_instance: object, _field: object, prefixes: Sequence[str]) -> None:
    """Refuse what would grant other objects than its author means."""
    wrong = [f"{prefix!r} {why}" for prefix in prefixes if (why := _wrong_grant(prefix))]
    if wrong:
        raise ValueError("; ".join(wrong))


def _wrong_grant(prefix: str) -> str:
    if prefix.startswith("/"):
        return f"has a '/' before it: write {prefix.lstrip('/')!r}"
    if prefix.startswith("."):
        return "is the node's own, and nobody else's"
    if prefix and "/" not in prefix:
        return f"would be the objects of every artifact whose name begins so: write '{prefix}/'"
    return ""


@attrs.frozen(kw_only=True)
class ObjectGrants:
    """Objects beyond its own (``<artifact's name>/…``) that an artifact may touch, by the beginning
    of their keys (``producer/frames/``); an empty text is every key but the node's own."""

    read: tuple[str, ...] = attrs.field(default=(), validator=_grants)
    write: tuple[str, ...] = attrs.field(default=(), validator=_grants)
    """Also reading, references, pins and deletion."""


@attrs.frozen(kw_only=True)
class ArtifactSettings:
    """What is said about an artifact when it is deployed, and stays with that version."""

    entry: str = ""
    """Default entry point; empty means the runtime's own default."""
    env: Mapping[str, str] = attrs.field(factory=dict)
    """Environment variables the code may see (``env.NAME`` for a wasm guest)."""
    secrets: Mapping[str, str] = attrs.field(factory=dict)
    """Environment variable → name of a secret that the operator has defined on the node. The value
    is looked up when an instance is made and appears nowhere else."""
    args: tuple[str, ...] = ()
    """Command-line arguments, for shapes that have a command line."""
    limits: Limits = Limits()
    resources: Resources = Resources()
    required_isolation: IsolationLevel | None = None
    """Refuse to run below this level; ``None`` takes what the machine gives."""
    timeout_s: float | None = None
    """Default deadline of a task; ``None`` means the node's."""
    idempotent: bool = False
    """Running it twice does no more than running it once: an execution that broke half-way is
    tried again (at least once, instead of at most once)."""
    retry: RetryPolicy = RetryPolicy()
    max_concurrent: int | None = attrs.field(default=None, validator=_optional_positive)
    """Executions of this artifact at the same time; ``None``: as many as the node allows."""
    concurrency: int = attrs.field(default=1, validator=validators.gt(0))
    """Executions that one instance may have at the same time, where its runtime is capable."""
    weight: float = attrs.field(default=1.0, validator=validators.gt(0))
    """Its share beside other artifacts that wait for a slot."""
    pool: PoolSettings = PoolSettings()
    requirements: tuple[str, ...] = ()
    """Python requirements (PEP 508) that the code imports."""
    dependencies: tuple[str, ...] = ()
    """Other artifacts that must be deployed here, as ``name`` or ``name@version``."""
    objects: ObjectGrants = ObjectGrants()


@attrs.frozen(kw_only=True)
class Artifact(ArtifactSettings):
    """A named, versioned, immutable code package as one node holds it."""

    name: str
    version: int
    """1 for the first deployed under this name, then 2, 3, …"""
    digest: str
    """sha256 of the code, 64 hex digits; of a bundle, of its manifest."""
    runtime: str
    """Name of the runtime that runs it."""
    shape: str
    """What kind of code it is within that runtime (``agent``, ``command``, ``wasm``), as the
    runtime's ``recognise`` said."""
    path: Path
    """The code on this node, readable, content-addressed, never written again."""
    filename: str
    """The file's own name when it was deployed, for messages and interpreters that ask; within a
    bundle, its path there."""
    root: Path | None = None
    """The bundle's directory, when there are other files beside ``path``; ``None``: one file."""
    reuse: bool = False
    """Whether one instance may serve many executions, one after the other."""

    @property
    def ref(self) -> str:
        """``name@version``, as messages and listings show it."""
        return f"{self.name}@{self.version}"
