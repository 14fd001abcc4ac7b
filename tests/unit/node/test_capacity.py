"""What a node has for reservations: the configuration, the machine, the control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from spear_core.api import ExecutionConfig, Resources
from spear_core.errors import ResourceExhaustedError
from spear_core.node._capacity import Capacity, node_capacity


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemFree: 1 kB\nMemTotal:       2048 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("1:name=old:/x\n0::/outer/inner\n")
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (None, 2048 * 1024)),
        ({"outer/inner/cpu.max": "50000 100000\n"}, (500, 2048 * 1024)),
        ({"outer/cpu.max": "20000 100000\n", "outer/inner/cpu.max": "max 100000\n"}, (200, None)),
        ({"outer/memory.max": "4096\n", "outer/inner/memory.max": "max\n"}, (None, 4096)),
    ],
)
def test_the_narrowest_of_machine_and_control_groups_counts(
    proc: Path, tmp_path: Path, files: dict[str, str], expected: tuple[int | None, int | None]
) -> None:
    groups = tmp_path / "cgroup"
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)
    found = node_capacity(ExecutionConfig(), cgroups=groups, proc=proc)
    millicores, memory = expected
    assert found.millicores == (millicores or found.millicores) >= 200
    assert found.memory_bytes == (memory or 2048 * 1024)


def test_the_configuration_wins(proc: Path, tmp_path: Path) -> None:
    config = ExecutionConfig(cpu=64.5, memory_bytes=1 << 50)
    found = node_capacity(config, cgroups=tmp_path, proc=proc)
    assert found == Capacity(millicores=64_500, memory_bytes=1 << 50)


def test_what_can_never_fit_is_refused_for_good() -> None:
    capacity = Capacity(millicores=1500, memory_bytes=100)
    capacity.check_room_for(Capacity.of(Resources(cpu=1.5, memory_bytes=100)), "f@1")
    with pytest.raises(ResourceExhaustedError, match=r"f@1 reserves 1\.501 cores") as refused:
        capacity.check_room_for(Capacity.of(Resources(cpu=1.501)), "f@1")
    assert not refused.value.retryable
