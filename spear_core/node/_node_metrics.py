"""The node's metrics at one moment: what was recorded, what lives, and its own process."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import attrs

from spear_core import __version__
from spear_core.api import InstanceInfo, NodeMetrics
from spear_core.node._metrics import ExecutionRecorder

__all__ = ["node_metrics"]


def node_metrics(
    recorder: ExecutionRecorder,
    instances: Iterable[InstanceInfo],
    *,
    node_id: str,
    started_at: float,
) -> NodeMetrics:
    """The metrics of the node in this process."""
    live: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for instance in instances:
        live[instance.artifact] += 1
        if instance.memory_bytes is not None:
            memory[instance.artifact] += instance.memory_bytes
    return NodeMetrics(
        node_id=node_id,
        version=__version__,
        started_at=started_at,
        cpu_seconds=time.process_time(),
        memory_bytes=_resident_bytes(),
        total=recorder.total(instances=live.total()),
        artifacts=tuple(
            attrs.evolve(each, memory_bytes=memory.get(each.artifact))
            for each in recorder.by_artifact(lambda name, version: live[f"{name}@{version}"])
        ),
        rejected=recorder.rejected_requests,
        errors=recorder.errors,
    )


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not mounted
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
