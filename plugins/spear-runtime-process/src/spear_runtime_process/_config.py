"""The section `[plugins.runtime-process]`."""

from __future__ import annotations

import attrs
from attrs import validators

_positive = validators.gt(0)
_optional_positive = validators.optional(validators.gt(0))

STANDARD_PRELOAD = (
    "asyncio",
    "argparse",
    "base64",
    "collections",
    "concurrent.futures",
    "contextvars",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "email.message",
    "enum",
    "functools",
    "hashlib",
    "http.client",
    "importlib.metadata",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "multiprocessing",
    "operator",
    "pathlib",
    "pickle",
    "queue",
    "random",
    "re",
    "secrets",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "typing",
    "urllib.request",
    "uuid",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
    "zlib",
    "zoneinfo",
)


@attrs.frozen(kw_only=True)
class ProcessConfig:
    """How processes are started, what they may use and see."""

    isolation: str = attrs.field(
        default="auto",
        validator=validators.in_(("auto", "none", "limits", "syscalls", "namespaces", "cgroup")),
    )
    """Level for every artifact: `auto` takes what costs little and works here, a name insists."""
    network: bool = True
    """Whether guests may use the network (TCP below level `namespaces`, all of it from there)."""
    read: tuple[str, ...] = ()
    """Further directories that guests may read; the system's and Python's own always."""
    write: tuple[str, ...] = ()
    """Further directories that guests may write; their scratch directory always."""
    memory_bytes: int = attrs.field(default=1 << 30, validator=_positive)
    cpu_seconds: float | None = attrs.field(default=None, validator=_optional_positive)
    open_files: int = attrs.field(default=1024, validator=validators.ge(16))
    processes: int = attrs.field(default=256, validator=_positive)
    """Processes and threads of one guest together."""
    output_bytes: int = attrs.field(default=64 << 20, validator=_positive)
    zygote: str = attrs.field(default="lazy", validator=validators.in_(("lazy", "start", "off")))
    """When to start the warm process that Python agents are forked from."""
    preload: tuple[str, ...] = ()
    """Modules the zygote imports besides the SDK and much of the standard library."""
    cancel_grace_ms: int = attrs.field(default=500, validator=validators.ge(0))
    """How long a cancelled guest may clean up before it is killed."""
    stop_grace_ms: int = attrs.field(default=3_000, validator=validators.ge(0))
    """How long an agent may take to end when it is no longer needed."""
    index_url: str = ""
    """The package index that requirements come from; empty: as the installer is set up (PyPI)."""
    build_requirements: bool = False
    """Whether requirements may be built from source, which runs their code outside of any sandbox;
    otherwise only wheels are installed."""
    uv: str = ""
    """Path of the installer; empty: that of the package `uv`, else on the path."""
    use_cgroups: bool = True
    bwrap: str = "bwrap"
    """Name or path of bubblewrap."""
