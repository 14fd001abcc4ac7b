"""Reading the configuration file: one TOML file for the node and all its plugins.

Everything that is wrong is reported at once, each problem on a line of its own that begins with
its TOML path. cattrs is imported only when there is something to structure: it costs as much as
the rest of this module's work together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import attrs

from spear_core._toml_path import field_names, join, kind_of, nearest
from spear_core.api import SpearletConfig
from spear_core.errors import ConfigError

__all__ = ["ConfigSource", "NodeSettings", "load_config"]

C = TypeVar("C")

PLUGINS_TABLE = "plugins"


class ConfigSource(Protocol):
    """What this module needs of :class:`spear_core.plugins.Plugins`."""

    def config_classes(self) -> Mapping[str, tuple[type[Any], ...]]:
        """Entry point name → configuration classes, for every loaded plugin."""

    def inactive(self) -> Mapping[str, str]:
        """Entry point name → reason, for every plugin that is installed and not loaded."""


@attrs.frozen(kw_only=True)
class NodeSettings:
    """Every setting of a node, checked."""

    spearlet: SpearletConfig
    """The node's own."""
    path: Path | None = None
    """The file they came from; ``None``: defaults."""
    _plugins: Mapping[str, Mapping[type[Any], Any]] = attrs.field(factory=dict, alias="plugins")

    @overload
    def plugin_config(self, entry_name: str) -> Any: ...
    @overload
    def plugin_config(self, entry_name: str, config_cls: type[C]) -> C: ...
    def plugin_config(self, entry_name: str, config_cls: type[Any] | None = None) -> Any:
        """The settings of a plugin that :func:`load_config` was given.

        :param config_cls: a spec's ``config_cls``. May be left out when all specs of the plugin
            have the same.

        **Raises** :exc:`LookupError` for another plugin or class, and without ``config_cls`` when
        there is more than one.
        """
        found = self._plugins[entry_name]
        if config_cls is None:
            if len(found) != 1:
                raise LookupError(f"plugin {entry_name!r} has {len(found)} configuration classes")
            (config_cls,) = found
        return found[config_cls]


def load_config(path: Path | None, plugins: ConfigSource) -> NodeSettings:
    """Read the settings of the node and of every loaded plugin.

    :param path: the TOML file; ``None`` gives every default.

    A plugin whose specs have different configuration classes still has one section: a key goes to
    each class that has a field of this name, and is unknown when none has. The section of a plugin
    that is installed but not loaded is not looked at.

    **Raises** :exc:`~spear_core.errors.ConfigError` with everything that is wrong, section by
    section.
    """
    document = {} if path is None else _read(path)
    reading = _Reading()
    sections = document.pop(PLUGINS_TABLE, {})
    spearlet = reading.section("", document, SpearletConfig)
    if not isinstance(sections, dict):
        reading.problems.append(f"{PLUGINS_TABLE}: expected a table, got {kind_of(sections)}")
        sections = {}
    classes = plugins.config_classes()
    installed = {*classes, *plugins.inactive()}
    reading.problems += [
        f"{join(PLUGINS_TABLE, name)}: no such plugin is installed{nearest(name, installed)}"
        for name in sections
        if name not in installed
    ]
    configs = {
        name: reading.plugin(join(PLUGINS_TABLE, name), sections.get(name, {}), wanted)
        for name, wanted in classes.items()
    }
    if reading.problems:
        where = "default configuration" if path is None else f"configuration {path}"
        lines = "".join(f"\n  {line}" for line in reading.problems)
        raise ConfigError(f"the {where} is not valid:{lines}", problems=reading.problems)
    return NodeSettings(spearlet=spearlet, path=path, plugins=configs)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror or exc}"
    except UnicodeDecodeError as exc:
        problem = f"is not UTF-8 (byte {exc.start})"
    except tomllib.TOMLDecodeError as exc:
        problem = f"is not valid TOML: {exc}"
    raise ConfigError(f"the configuration {path} {problem}", problems=(f"{path} {problem}",))


class _Reading:
    """Structures sections and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def plugin(
        self, path: str, raw: object, classes: Sequence[type[Any]]
    ) -> Mapping[type[Any], Any]:
        """One section, as an instance of each of a plugin's classes."""
        if not isinstance(raw, dict):
            self._add([f"{path}: expected a table, got {kind_of(raw)}"])
            return {}
        fields = [field_names(cls) for cls in classes]
        known = {name for names in fields for name in names}
        for key in raw:
            if not known:
                self._add([f"{join(path, key)}: this plugin has no settings"])
            elif key not in known:
                self._add([f"{join(path, key)}: unknown key{nearest(key, known)}"])
        return {
            cls: self.section(path, {k: v for k, v in raw.items() if k in names}, cls)
            for cls, names in zip(classes, fields, strict=True)
        }

    def section(self, path: str, raw: dict[str, Any], cls: type[Any]) -> Any:
        """One table as an instance of ``cls``, or ``None`` when something is wrong."""
        if not raw:
            return self._default(path, cls)
        from spear_core._structuring import structure

        value, problems = structure(raw, cls, path)
        self._add(problems)
        return value

    def _default(self, path: str, cls: type[Any]) -> Any:
        missing = [
            f"{join(path, field.alias or field.name)}: required, and not set"
            for field in attrs.fields(cls)
            if field.init and field.default is attrs.NOTHING
        ]
        self._add(missing)
        return None if missing else cls()

    def _add(self, problems: Iterable[str]) -> None:
        self.problems += [line for line in problems if line not in self.problems]
