"""Every hook of SPEAR.

A hook is an ordinary function that declares and does nothing else: it returns specs (frozen
values) and the node opens what they name. It may not be async, may not be a wrapper, and should
import nothing heavy: it is called for ``spear plugins`` too.

A plugin is a module named by an entry point in the group ``spear``::

    # pyproject.toml
    [project.entry-points.spear]
    runtime-echo = "spear_runtime_echo.plugin"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from spear_core._marks import hookspec

if TYPE_CHECKING:
    import click

    from spear_core.api import (
        FrontDoorSpec,
        HostcallSpec,
        MetadataStoreSpec,
        ObjectStoreSpec,
        RuntimeSpec,
        SchedulerSpec,
        TracerSpec,
        TransportSpec,
    )

__all__ = [
    "spear_choose_transport",
    "spear_commands",
    "spear_front_doors",
    "spear_hostcalls",
    "spear_metadata_stores",
    "spear_object_stores",
    "spear_runtimes",
    "spear_schedulers",
    "spear_tracers",
    "spear_transports",
]


@hookspec
def spear_runtimes() -> Iterable[RuntimeSpec[Any]]:
    """Declare runtimes.

    Called once when plugins are loaded, by every command that needs a node or lists plugins.
    ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_runtimes():
            from spear_runtime_echo.runtime import EchoConfig, open_echo, recognise

            yield RuntimeSpec(
                name="echo", open=open_echo, config_cls=EchoConfig, recognise=recognise
            )
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_transports() -> Iterable[TransportSpec[Any]]:
    """Declare transports.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_transports():
            yield TransportSpec(name="pipe", open=open_pipe, config_cls=PipeConfig)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_object_stores() -> Iterable[ObjectStoreSpec[Any]]:
    """Declare object stores; the node opens the one its configuration names, else the one with the
    highest ``priority``.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_object_stores():
            yield ObjectStoreSpec(name="disk", open=open_disk, config_cls=DiskConfig, priority=5)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_metadata_stores() -> Iterable[MetadataStoreSpec[Any]]:
    """Declare metadata stores; the node opens the one its configuration names, else the one with
    the highest ``priority``.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_metadata_stores():
            yield MetadataStoreSpec(name="disk", open=open_disk, config_cls=DiskConfig, priority=5)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_schedulers() -> Iterable[SchedulerSpec[Any]]:
    """Declare schedulers; the node uses the one with the highest ``priority``.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_schedulers():
            yield SchedulerSpec(name="spread", make=Spread, config_cls=SpreadConfig, priority=1)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_hostcalls() -> Iterable[HostcallSpec[Any]]:
    """Declare hostcalls: services for running code.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none. Two
    plugins with one name: an error that names both::

        @hookimpl
        def spear_hostcalls():
            yield HostcallSpec(names=frozenset({"geo.locate"}), open=open_geo, config_cls=Geo)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_front_doors() -> Iterable[FrontDoorSpec[Any]]:
    """Declare front doors: a server for the node and a client for its URL schemes.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_front_doors():
            yield FrontDoorSpec(
                name="http", schemes=("http",), open=serve, connect=connect, config_cls=Http
            )
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_tracers() -> Iterable[TracerSpec[Any]]:
    """Declare tracers; the node uses the one with the highest ``priority``.

    Called once when plugins are loaded. ``None`` or an empty iterable: this plugin has none::

        @hookimpl
        def spear_tracers():
            yield TracerSpec(name="file", open=open_file_tracer, config_cls=FileTracerConfig)
    """
    raise AssertionError("a hookspec is never called")


@hookspec
def spear_commands(cli: click.Group) -> None:
    """Add commands to ``spear``.

    Called once when a command is looked up that the core does not have, or when help is shown.
    Returns nothing::

        @hookimpl
        def spear_commands(cli):
            @cli.command()
            def hello():
                click.echo("hello")
    """
    raise AssertionError("a hookspec is never called")


@hookspec(firstresult=True)
def spear_choose_transport(runtime: str, offered: Sequence[str]) -> str | None:
    """Choose the transport for a runtime's instances.

    Called for each new instance that needs a channel. ``offered``: the transports installed here
    that the runtime can speak, the runtime's favourite first. ``None``: no opinion, the next
    plugin is asked; if nobody has one, the order of ``offered`` counts::

        @hookimpl
        def spear_choose_transport(runtime, offered):
            return "tcp" if runtime == "process" and "tcp" in offered else None
    """
    raise AssertionError("a hookspec is never called")
