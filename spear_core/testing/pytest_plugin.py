"""Loaded by every pytest run where spear-core is installed: imports nothing but pytest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from spear_core.api import PluginContext
    from spear_core.testing import FakeHostcalls

pytest.register_assert_rewrite(
    "spear_core.testing._channel_contract",
    "spear_core.testing._check_plugin",
    "spear_core.testing._fd_contract",
    "spear_core.testing._instance_contract",
    "spear_core.testing._metadata_contract",
    "spear_core.testing._metadata_reopened",
    "spear_core.testing._metadata_watches",
    "spear_core.testing._runtime_contract",
    "spear_core.testing._runtime_samples",
    "spear_core.testing._scheduler_contract",
    "spear_core.testing._store_contract",
    "spear_core.testing._store_holders",
    "spear_core.testing._store_pipes",
    "spear_core.testing._store_reopened",
    "spear_core.testing._store_versions",
    "spear_core.testing._stream_contract",
    "spear_core.testing._tracer_contract",
    "spear_core.testing._transport_contract",
)


@pytest.fixture
def spear_hostcalls() -> FakeHostcalls:
    """The hostcalls of ``spear_context``: what the plugin under test logged and called."""
    from spear_core.testing import FakeHostcalls

    return FakeHostcalls()


@pytest.fixture
def spear_context(tmp_path: Path, spear_hostcalls: FakeHostcalls) -> PluginContext:
    """A :class:`~spear_core.api.PluginContext` in the test's own directory."""
    from spear_core.testing import make_context

    return make_context(tmp_path, hostcalls=spear_hostcalls)
