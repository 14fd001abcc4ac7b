"""What the metadata store holds of the node and its tasks.

::

    node/format           the number of this layout
    node/identity         who the node is
    tasks/<id>            a task: a :class:`TaskRecord`, its idempotency key included
    inputs/<id>           its input, until it is final
    outputs/<id>          its output

An input or output of more than ``INLINE_BYTES`` is the object ``.tasks/<id>/input`` or
``.tasks/<id>/output``, held by ``task/<id>/record``. A record is rewritten with every transition,
so what is large and does not change is beside it.
"""

from __future__ import annotations

import enum
import functools
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from spear_core.api import ExecutionInfo, Priority, TaskResult, TaskState
from spear_core.errors import StoreCorruptError

__all__ = [
    "FORMAT",
    "FORMAT_KEY",
    "IDENTITY",
    "INLINE_BYTES",
    "INPUTS",
    "OBJECTS",
    "OUTPUTS",
    "TASKS",
    "Deadline",
    "Place",
    "TaskRecord",
    "decode_task",
    "encode_task",
    "holder",
    "object_key",
]

FORMAT = 1
FORMAT_KEY = b"node/format"
IDENTITY = b"node/identity"
TASKS = b"tasks/"
INPUTS = b"inputs/"
OUTPUTS = b"outputs/"
OBJECTS = ".tasks/"
INLINE_BYTES = 64 << 10


class Place(enum.IntEnum):
    """Where an input or an output is."""

    NOWHERE = 0
    """It is empty, or nobody needs it any more."""
    RECORD = 1
    OBJECT = 2

    @classmethod
    def of(cls, value: bytes) -> Place:
        """Where a value of this size belongs."""
        if not value:
            return cls.NOWHERE
        return cls.RECORD if len(value) <= INLINE_BYTES else cls.OBJECT


class Deadline(msgspec.Struct, array_like=True, frozen=True):
    """A moment, in a form that outlives the process, the machine's boot and a step of its clock."""

    wall: float
    """Seconds since the Unix epoch."""
    up: float
    """Seconds since the machine was started."""
    left: float
    """Seconds from when this was written."""
    boot: str
    """Which start of the machine that was; empty: it could not say."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        return cls(time.time() + seconds, up + seconds, seconds, _boot())

    def remaining(self) -> float:
        """Seconds from now; at most those that were left when it was written.

        Within one boot nobody's setting of the clock counts. After another one only the clock can
        tell, and if it was set back, the task gets no more than it had.
        """
        if self.boot and self.boot == _boot():
            seconds = self.up - time.clock_gettime(time.CLOCK_BOOTTIME)
        else:
            seconds = self.wall - time.time()
        return min(seconds, self.left)


class TaskRecord(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """A task, without its input and output. A field that an older node did not write has its
    default."""

    number: int
    """The order of acceptance."""
    artifact: str
    """``name@version``."""
    state: TaskState
    created_at: float
    execution_id: str
    entry: str = ""
    attached: bool = False
    """A caller waited for it who is gone with the node."""
    started_at: float | None = None
    completed_at: float | None = None
    content_type: str = "application/octet-stream"
    trace: str = ""
    priority: Priority = Priority.NORMAL
    caller: str = ""
    context: dict[str, str] = msgspec.field(default_factory=dict)
    parent: str = ""
    detached: bool = False
    depth: int = 1
    attempt: int = 1
    instance_id: str = ""
    failed_executions: tuple[ExecutionInfo, ...] = ()
    key: str | None = None
    """The idempotency key; the caller is part of it."""
    digest: bytes = b""
    deadline: Deadline | None = None
    """``None`` once it is final."""
    input: Place = Place.NOWHERE
    output: Place = Place.NOWHERE
    result: TaskResult | None = None
    """Without the output."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TaskRecord)


def encode_task(record: TaskRecord) -> bytes:
    """The value under ``tasks/<id>``."""
    return _encoder.encode(record)


def decode_task(key: bytes, value: bytes) -> TaskRecord:
    """The reverse. :raises StoreCorruptError: it is no record."""
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise StoreCorruptError(f"the record {key.decode()} cannot be read ({error})") from error


def object_key(task_id: str, what: str) -> str:
    """Under which an ``input`` or ``output`` is in the object store."""
    return f"{OBJECTS}{task_id}/{what}"


def holder(task_id: str) -> str:
    """In whose name a task keeps its record's objects: not what it holds while it runs
    (``task/<id>``), which is let go at its end."""
    return f"task/{task_id}/record"


@functools.cache
def _boot() -> str:
    """Which boot of the machine this is (``man 4 random``), as much of it as tells them apart."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    return ""
