"""What the node gives a plugin when it opens it."""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from spear_core.api._config import SpearletConfig
from spear_core.api._descriptor import HostcallValue
from spear_core.errors import UnsupportedTransportError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from spear_core.api._artifact import Artifact
    from spear_core.api._channel import Channel, LocalChannel
    from spear_core.api._runtime import RuntimeInstanceId

__all__ = ["ChannelConfig", "ChannelFactory", "ChannelOffer", "Hostcalls", "PluginContext"]


class Hostcalls(ABC):
    """The services of the node that running code reaches through its runtime."""

    @abstractmethod
    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        """Append one entry to the log of the task behind ``execution_id``.

        Never blocks and never fails: an entry that cannot be written (unknown execution, full
        disk, over the task's log limit) is counted and dropped.

        :param message: text as the guest sent it; a trailing newline is dropped.
        :param level: ``trace``, ``debug``, ``info``, ``warn`` or ``error``.
        :param source: ``guest`` for log calls, ``stdout`` or ``stderr`` for a stream's lines.
        """

    @abstractmethod
    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        """Run the hostcall ``name`` for that execution and return its answer.

        **Raises** a :exc:`~spear_core.errors.SpearError` with code ``unimplemented`` when no plugin
        provides ``name``, else what the hostcall raises. **Cancellation**: cancels the hostcall.
        """

    async def exchange(
        self, execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
    ) -> HostcallValue:
        """:meth:`call`, for a caller that can send a file along, or take one with the answer.

        :param takes_fd: whether the answer may have one, which is the caller's to close. The one
            in ``value`` is closed when this returns or raises.

        **Raises** and **Cancellation** as :meth:`call`.
        """
        if value.fd is not None:
            value.fd.close()
        return HostcallValue(await self.call(execution_id, name, bytes(value.payload)))


class ChannelOffer(ABC):
    """A place where one instance, and only it, can connect."""

    instance_id: RuntimeInstanceId

    address: str
    """For the instance's environment: ``unix:///…/x.sock`` or ``tcp://127.0.0.1:port``."""
    transport: str
    secret: bytes
    """32 bytes that the instance presents in its first frame."""

    @abstractmethod
    async def accept(self) -> Channel:
        """Wait until the instance has connected and proved its secret; call it once.

        A connection with a wrong secret is closed and waiting goes on. **Raises**
        :exc:`~spear_core.errors.ChannelError` when listening fails. **Cancellation**: safe.
        """


@attrs.frozen(kw_only=True)
class ChannelConfig:
    """How one channel is made."""

    transports: tuple[str, ...] = ()
    """Only these are tried, in this order; empty: as the runtime's strategy says."""


class ChannelFactory(ABC):
    """Makes the channel of an instance."""

    @abstractmethod
    def open_offer(
        self, instance_id: RuntimeInstanceId
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        """Listen for one instance on the first transport of its runtime that works here.

        **Raises** :exc:`~spear_core.errors.ChannelCreationError`, which lists every transport
        tried. The address is gone when the block ends; an accepted channel lives on.
        """

    def create_channel(
        self, runtime_type: str, config: ChannelConfig | None = None
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        """Make a channel for an instance of that runtime which has no id yet.

        It gets one of its own, :attr:`ChannelOffer.instance_id`, so even two channels made by the
        same call lead to two instances. All else is as for :meth:`create_channel_for_instance`.
        """
        from spear_core.api._runtime import RuntimeInstanceId  # which imports this module

        name = uuid.uuid4().hex
        return self.create_channel_for_instance(
            RuntimeInstanceId(runtime_type=runtime_type, instance_id=name), config
        )

    def create_channel_for_instance(
        self, instance_id: RuntimeInstanceId, config: ChannelConfig | None = None
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        """Make the channel of this instance: an address and a secret for it alone.

        :param config: ``None``: as :meth:`open_offer` does. A factory that cannot be steered
            takes nothing else.

        **Raises** what :meth:`open_offer` raises, and
        :exc:`~spear_core.errors.UnsupportedTransportError` for a ``config`` that cannot be had.
        """
        if config is not None and config.transports:
            names = ", ".join(config.transports)
            raise UnsupportedTransportError(f"the transport cannot be chosen here: {names}")
        return self.open_offer(instance_id)

    @abstractmethod
    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        """Both ends, the node's first, of a channel for an instance in this process."""


@attrs.frozen(kw_only=True)
class PluginContext:
    """What the node gives a plugin when it opens it."""

    node_id: str
    plugin: str
    """The plugin's entry point name."""
    state_dir: Path
    """The plugin's own directory; survives restarts. Made on demand by the plugin."""
    cache_dir: Path
    """Likewise, for what can be made again. Others use it at the same time: `spear run`, which
    opens a node of its own, shares it with the node of the state directory."""
    run_dir: Path
    """Exists, private, short path, empty at start: sockets and the like."""
    log: logging.Logger
    hostcalls: Hostcalls
    channels: ChannelFactory
    spearlet_config: SpearletConfig
    """The node's own settings; a plugin reads these and its own, never environment variables."""
    ephemeral: bool = False
    """The node keeps nothing but what is in caches, and is gone after one task: ``spear run``."""
    usual_open_files: int | None = None
    """The soft limit of open files that the node was started with, for processes that it starts;
    its own may be higher. ``None``: as its own."""
    checking: bool = False
    """A store is opened to be looked at: it leaves everything as it is, what a crash has left and
    what is out of date as well."""
    report: Callable[[Artifact, str], None] = lambda artifact, message: None
    """For a runtime while it prepares this artifact: what takes so long, in a few words, for those
    who wait (``installing 3 packages``)."""
