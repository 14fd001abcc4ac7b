"""Taking a changed configuration file without a restart, as far as that goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from logging import Logger

import attrs
import trio

from spear_core.api import ConfigReload, SpearletConfig
from spear_core.config import NodeSettings, load_config
from spear_core.errors import ConfigError
from spear_core.plugins import Plugins

__all__ = ["Reloader"]

_AT_START = frozenset(
    {
        "artifacts.max_bytes",
        "artifacts.max_files",
        "execution.cpu",
        "execution.enable_metrics",
        "execution.max_input_bytes",
        "execution.max_output_bytes",
        "execution.memory_bytes",
        "logs.max_system_log_bytes",
        "stores.metadata",
        "stores.objects",
        "tasks.durable",
    }
)
"""Settings that something has taken once and for all when it was opened."""


class Reloader:
    """Reads the file again and has the node take what it can.

    :param apply: gives the new settings to everybody; it must not fail.
    """

    def __init__(
        self,
        settings: NodeSettings,
        plugins: Plugins,
        *,
        apply: Callable[[SpearletConfig], None],
        log: Logger,
    ) -> None:
        self._running = settings
        self._plugins = plugins
        self._apply = apply
        self._log = log
        self._lock = trio.Lock()

    async def reload(self) -> ConfigReload:
        """See :meth:`NodeApi.reload_config`."""
        path = self._running.path
        if path is None:
            raise ConfigError(
                "the node was started without a configuration file; restart it with one"
            )
        async with self._lock:
            new = await trio.to_thread.run_sync(load_config, path, self._plugins)
            changes = list(_spearlet_changes(self._running.spearlet, new.spearlet))
            live = [change for change in changes if change[0] not in _AT_START]
            later = [name for name, _, _ in changes if name in _AT_START]
            later += _plugin_changes(self._running, new, self._plugins)
            config = _merged(self._running.spearlet, new.spearlet)
            self._running = attrs.evolve(self._running, spearlet=config)
            self._apply(config)
        answer = ConfigReload(
            path=str(path),
            changed=tuple(f"{name}: {_shown(old)} → {_shown(value)}" for name, old, value in live),
            restart=tuple(later),
        )
        self._log.info(
            "%s was read again: changed: %s; at the next start: %s",
            path,
            "; ".join(answer.changed) or "nothing",
            ", ".join(answer.restart) or "nothing",
        )
        return answer


def _spearlet_changes(
    old: SpearletConfig, new: SpearletConfig
) -> Iterator[tuple[str, object, object]]:
    """``(section.setting, old value, new value)`` of what differs."""
    for section in attrs.fields(SpearletConfig):
        before, after = getattr(old, section.name), getattr(new, section.name)
        if not attrs.has(type(before)):  # [secrets]: the operator's own names
            if before != after:
                yield section.name, before, after
            continue
        for field in attrs.fields(type(before)):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1]:
                yield f"{section.name}.{field.name}", *values


def _merged(old: SpearletConfig, new: SpearletConfig) -> SpearletConfig:
    """The new settings, with the old ones where a change waits for a restart."""
    kept: dict[str, dict[str, object]] = {}
    for name in _AT_START:
        section, _, field = name.partition(".")
        kept.setdefault(section, {})[field] = getattr(getattr(old, section), field)
    return attrs.evolve(
        new,
        **{
            section: attrs.evolve(getattr(new, section), **values)
            for section, values in kept.items()
        },
    )


def _plugin_changes(old: NodeSettings, new: NodeSettings, plugins: Plugins) -> list[str]:
    found = []
    for name, classes in plugins.config_classes().items():
        for cls in classes:
            before, after = old.plugin_config(name, cls), new.plugin_config(name, cls)
            found += [
                f"plugins.{name}.{field.name}"
                for field in attrs.fields(cls)
                if getattr(before, field.name) != getattr(after, field.name)
            ]
    return sorted(set(found))


def _shown(value: object) -> str:
    """Short enough for a line; of secrets, their names."""
    if isinstance(value, dict):
        return ", ".join(sorted(value)) or "none"
    return str(value)
