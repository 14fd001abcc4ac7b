"""What a plugin's own tests need: contract suites, fakes and checks. Public.

``pip install spear-core[testing]`` brings pytest and pytest-trio, which the suites run on. A suite
is a class; subclass it, say what to test, and pytest does the rest::

    from spear_core.testing import TransportContract
    from spear_transport_pipe.plugin import SPEC

    class TestPipe(TransportContract):
        spec = SPEC

Names are imported when they are first used: pytest loads this package in every project that has
spear-core installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spear_core.testing._channel_contract import ChannelContract, ChannelPair
    from spear_core.testing._check_plugin import Problem, assert_plugin_ok, check_plugin
    from spear_core.testing._fakes import (
        FakeChannels,
        FakeHostcalls,
        LoggedEntry,
        make_context,
        open_channels,
    )
    from spear_core.testing._metadata_contract import MetadataStoreContract
    from spear_core.testing._promise import promise
    from spear_core.testing._resources import Resources
    from spear_core.testing._runtime_contract import RuntimeContract
    from spear_core.testing._runtime_samples import Sample
    from spear_core.testing._scheduler_contract import SchedulerContract
    from spear_core.testing._store_contract import ObjectStoreContract
    from spear_core.testing._tracer_contract import TracerContract
    from spear_core.testing._transport_contract import TransportContract

_HOMES = {
    "_channel_contract": ("ChannelContract", "ChannelPair"),
    "_check_plugin": ("Problem", "assert_plugin_ok", "check_plugin"),
    "_fakes": ("FakeChannels", "FakeHostcalls", "LoggedEntry", "make_context", "open_channels"),
    "_metadata_contract": ("MetadataStoreContract",),
    "_promise": ("promise",),
    "_resources": ("Resources",),
    "_runtime_contract": ("RuntimeContract",),
    "_runtime_samples": ("Sample",),
    "_scheduler_contract": ("SchedulerContract",),
    "_store_contract": ("ObjectStoreContract",),
    "_tracer_contract": ("TracerContract",),
    "_transport_contract": ("TransportContract",),
}

__all__ = [
    "ChannelContract",
    "ChannelPair",
    "FakeChannels",
    "FakeHostcalls",
    "LoggedEntry",
    "MetadataStoreContract",
    "ObjectStoreContract",
    "Problem",
    "Resources",
    "RuntimeContract",
    "Sample",
    "SchedulerContract",
    "TracerContract",
    "TransportContract",
    "assert_plugin_ok",
    "check_plugin",
    "make_context",
    "open_channels",
    "promise",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
