"""Which store a node takes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import attrs
import pytest

from spear_core.api import (
    Capability,
    MetadataStoreSpec,
    ObjectStoreSpec,
    SpearletConfig,
    StoreConfig,
    TaskConfig,
)
from spear_core.errors import ConfigError
from spear_core.node._stores import (
    chosen_metadata_store,
    chosen_object_store,
    tasks_are_durable,
)
from spear_core.plugins import Owned, Plugins, load_plugins

LASTS = frozenset({Capability.DURABLE})


@attrs.frozen
class NoConfig:
    """Nothing to set."""


def store(kind: Any, name: str, priority: int, capabilities: Any = frozenset()) -> Owned[Any]:
    spec = kind(
        name=name,
        open=lambda context, config: nullcontext(),
        config_cls=NoConfig,
        priority=priority,
        capabilities=capabilities,
    )
    return Owned(spec, f"store-{name}")


def installed(*, metadata: frozenset[Any] = LASTS, objects: frozenset[Any] = LASTS) -> Plugins:
    """The built-in stores, and some of other priorities."""
    builtins = load_plugins(only=[])
    kinds = {
        "metadata_stores": (MetadataStoreSpec, metadata),
        "object_stores": (ObjectStoreSpec, objects),
    }
    added = {
        field: {
            **getattr(builtins, field),
            "late": store(kind, "late", -1),
            "z-disk": store(kind, "z-disk", 10, capabilities),
            "disk": store(kind, "disk", 10, capabilities),
        }
        for field, (kind, capabilities) in kinds.items()
    }
    return attrs.evolve(builtins, **added)


def test_the_first_by_priority_is_taken_and_of_equal_ones_always_the_same() -> None:
    assert chosen_metadata_store(installed(), StoreConfig()).spec.name == "disk"
    assert chosen_object_store(installed(), StoreConfig()).spec.name == "disk"
    alone = load_plugins(only=[])
    assert chosen_metadata_store(alone, StoreConfig()).spec.name == "memory"


def test_the_one_that_is_named_is_taken() -> None:
    config = StoreConfig(metadata="late", objects="memory")
    assert chosen_metadata_store(installed(), config).plugin_name == "store-late"
    assert chosen_object_store(installed(), config).plugin_name == "builtins"


def test_one_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"stores\.metadata.*'disc'.*'disk'\?.*memory") as caught:
        chosen_metadata_store(installed(), StoreConfig(metadata="disc"))
    assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError, match=r"stores\.objects"):
        chosen_object_store(installed(), StoreConfig(objects="disc"))


@pytest.mark.parametrize(
    ("plugins", "durable"),
    [
        (installed(), True),
        (installed(metadata=frozenset()), False),
        (installed(objects=frozenset()), False),
        (load_plugins(only=[]), False),
    ],
)
def test_tasks_are_durable_where_both_stores_last(plugins: Plugins, durable: bool) -> None:
    assert tasks_are_durable(plugins, SpearletConfig()) is durable
    assert not tasks_are_durable(plugins, SpearletConfig(tasks=TaskConfig(durable="off")))
    on = SpearletConfig(tasks=TaskConfig(durable="on"))
    if durable:
        assert tasks_are_durable(plugins, on)
    else:
        with pytest.raises(ConfigError, match=r"tasks\.durable.*does not last"):
            tasks_are_durable(plugins, on)


def test_the_plugin_of_ours_says_that_it_lasts() -> None:
    plugins = load_plugins()
    if "lmdb" not in plugins.metadata_stores:
        pytest.skip("spear-store-lmdb is not installed")
    assert tasks_are_durable(plugins, SpearletConfig())
