"""What a deployed piece of code is: artifact, limits, isolation."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["Artifact", "IsolationLevel", "Limits"]


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


@attrs.frozen(kw_only=True)
class Artifact:
    """A named, versioned, immutable code package as one node holds it."""

    name: str
    version: int
    """1 for the first deployed under this name, then 2, 3, …"""
    digest: str
    """sha256 of the code, 64 hex digits."""
    runtime: str
    """Name of the runtime that runs it."""
    shape: str
    """What kind of code it is within that runtime (``agent``, ``command``, ``wasm``), as the
    runtime's ``recognise`` said."""
    path: Path
    """The code on this node, readable, content-addressed, never written again."""
    filename: str
    """The file's own name when it was deployed, for messages and interpreters that ask."""
    entry: str = ""
    """Default entry point; empty means the runtime's own default."""
    env: Mapping[str, str] = attrs.field(factory=dict)
    """Environment variables the code may see (``env.NAME`` for a wasm guest)."""
    args: tuple[str, ...] = ()
    """Command-line arguments, for shapes that have a command line."""
    limits: Limits = Limits()
    required_isolation: IsolationLevel | None = None
    """Refuse to run below this level; ``None`` takes what the machine gives."""
    reuse: bool = False
    """Whether one instance may serve many executions, one after the other."""
    timeout_s: float | None = None
    """Default deadline of a task; ``None`` means the node's."""

    @property
    def ref(self) -> str:
        """``name@version``, as messages and listings show it."""
        return f"{self.name}@{self.version}"
