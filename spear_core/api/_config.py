"""The node's own settings, as the TOML file names them (``docs/configuration.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
from attrs import validators

from spear_core.api._artifact import SELECTION_POLICIES

__all__ = [
    "ArtifactConfig",
    "ExecutionConfig",
    "LogConfig",
    "PoolConfig",
    "SecretSource",
    "SpearletConfig",
    "StoreConfig",
    "TaskConfig",
]

_positive = validators.gt(0)
_not_negative = validators.ge(0)
_payload = validators.and_(_positive, validators.le(64 << 20))
"""What the local socket and the channels of instances carry as one payload."""


@attrs.frozen(kw_only=True)
class ExecutionConfig:
    """``[execution]``: how much runs at once and for how long."""

    max_concurrent_tasks: int = attrs.field(default=256, validator=_positive)
    max_queued_tasks: int = attrs.field(default=10_000, validator=_not_negative)
    """Tasks that may wait for a slot; the next one is refused with ``resource_exhausted``."""
    max_queued_per_artifact: int = attrs.field(default=0, validator=_not_negative)
    """The same for one artifact; 0: nine tenths of ``max_queued_tasks``."""
    max_concurrent_per_caller: int = attrs.field(default=0, validator=_not_negative)
    """Tasks of one caller that run at once; 0: as many as the node allows."""
    max_queued_per_caller: int = attrs.field(default=0, validator=_not_negative)
    """Tasks of one caller that may wait; 0: as many as the node allows."""
    max_rate_per_caller: float = attrs.field(default=0.0, validator=validators.ge(0))
    """Tasks that one caller may submit per second, on average; 0: any number."""
    ageing_ms: int = attrs.field(default=10_000, validator=_not_negative)
    """A priority that has not been served for so long counts one more; 0: never."""
    cpu: float = attrs.field(default=0.0, validator=validators.ge(0))
    """Cores that tasks may reserve; 0: what the machine or the node's control group has."""
    memory_bytes: int = attrs.field(default=0, validator=_not_negative)
    """Memory that tasks may reserve; 0: likewise."""
    retry_attempts: int = attrs.field(default=3, validator=_positive)
    """Executions of one task in all, where its artifact does not say otherwise."""
    circuit_failures: int = attrs.field(default=5, validator=_not_negative)
    """After so many broken executions in a row, an artifact is left alone for a while; 0:
    never."""
    circuit_open_ms: int = attrs.field(default=5_000, validator=_positive)
    """For how long, before one execution is let through to see."""
    max_call_depth: int = attrs.field(default=16, validator=_positive)
    """Tasks that may be nested: a function that calls one that calls one is three deep."""
    task_timeout_ms: int = attrs.field(default=300_000, validator=_positive)
    max_input_bytes: int = attrs.field(default=64 << 20, validator=_payload)
    max_output_bytes: int = attrs.field(default=64 << 20, validator=_payload)
    inline_output_bytes: int = attrs.field(default=1 << 20, validator=_not_negative)
    """An output with more is put into the object store, and the task's result says where."""
    shutdown_grace_ms: int = attrs.field(default=10_000, validator=_not_negative)
    """How long running tasks may go on once the node was told to stop."""
    enable_metrics: bool = True
    """Keep the distributions of execution and queue times, too; counters are always kept."""


@attrs.frozen(kw_only=True)
class PoolConfig:
    """``[pool]``: the instances kept for one artifact."""

    min_instances: int = attrs.field(default=0, validator=_not_negative)
    """Instances kept warm of each artifact that has reusable ones, of its latest version."""
    max_instances: int = attrs.field(default=8, validator=_positive)
    """Reusable instances of one artifact at the same time."""
    idle_timeout_ms: int = attrs.field(default=300_000, validator=_positive)
    health_check_interval_ms: int = attrs.field(default=30_000, validator=_positive)
    health_check_timeout_ms: int = attrs.field(default=5_000, validator=_positive)
    """How long an idle instance may take to say that it is well."""
    max_executions_per_instance: int = attrs.field(default=0, validator=_not_negative)
    """Retire an instance after so many executions; 0 means never."""
    start_timeout_ms: int = attrs.field(default=60_000, validator=_positive)
    selection: str = attrs.field(
        default="least_outstanding", validator=validators.in_(SELECTION_POLICIES)
    )
    """Which instance with room takes the next execution."""

    def __attrs_post_init__(self) -> None:
        if self.min_instances > self.max_instances:
            raise ValueError(
                f"min_instances: {self.min_instances} are more than max_instances, "
                f"which is {self.max_instances}"
            )


@attrs.frozen(kw_only=True)
class TaskConfig:
    """``[tasks]``: how long finished tasks, their results and their logs are kept."""

    keep_finished: int = attrs.field(default=1_000, validator=_not_negative)
    keep_finished_bytes: int = attrs.field(default=64 << 20, validator=_not_negative)
    """Sum of the kept results."""
    keep_finished_ms: int = attrs.field(default=604_800_000, validator=_not_negative)
    """For how long; 0: whatever their age."""
    durable: str = attrs.field(default="auto", validator=validators.in_(("auto", "on", "off")))
    """Whether tasks are kept on disk: ``auto``, where the node's stores last."""
    durable_sync: bool = True
    """Also those whose caller waits for them, without an idempotency key."""


@attrs.frozen(kw_only=True)
class LogConfig:
    """``[logs]``: task logs and the node's own."""

    max_task_log_bytes: int = attrs.field(default=16 << 20, validator=_positive)
    """Per task; later entries are counted and dropped."""
    max_total_bytes: int = attrs.field(default=1 << 30, validator=_positive)
    """Of all tasks together; the logs of those that finished first are deleted, and where only
    unfinished ones are left, entries are dropped."""
    max_system_log_bytes: int = attrs.field(default=16 << 20, validator=_positive)
    """The node's own log is rotated once at this size."""
    level: str = attrs.field(
        default="info", validator=validators.in_(("debug", "info", "warning", "error"))
    )


@attrs.frozen(kw_only=True)
class ArtifactConfig:
    """``[artifacts]``: what may be deployed."""

    max_bytes: int = attrs.field(default=512 << 20, validator=_positive)
    """Code of one artifact, unpacked."""
    max_files: int = attrs.field(default=10_000, validator=_positive)
    """Files of one bundle."""


@attrs.frozen(kw_only=True)
class StoreConfig:
    """``[stores]``: which of the installed stores the node uses."""

    metadata: str = "auto"
    """Its name; ``auto``: the one with the highest priority."""
    objects: str = "auto"
    """Likewise."""


@attrs.frozen(kw_only=True)
class SecretSource:
    """One entry of ``[secrets]``: where the node finds the value. The value itself has no place in
    a configuration, which people print, copy and commit."""

    env: str | None = None
    """A variable in the node's own environment."""
    file: Path | None = None
    """A file with the value; one line end at its end does not count."""

    def __attrs_post_init__(self) -> None:
        if (self.env is None) == (self.file is None):
            raise ValueError('expected one of { env = "VARIABLE" } and { file = "/path" }')
        if self.file is not None and not self.file.is_absolute():
            raise ValueError("file: expected an absolute path")


@attrs.frozen(kw_only=True)
class SpearletConfig:
    """Everything a node reads from its configuration, except the plugins' own sections."""

    execution: ExecutionConfig = ExecutionConfig()
    pool: PoolConfig = PoolConfig()
    tasks: TaskConfig = TaskConfig()
    logs: LogConfig = LogConfig()
    artifacts: ArtifactConfig = ArtifactConfig()
    stores: StoreConfig = StoreConfig()
    secrets: Mapping[str, SecretSource] = attrs.field(factory=dict)
    """``[secrets]``: by the name that artifacts use."""
