"""Channels of instances: a listener and a secret each, on the runtime's favourite transport."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from logging import Logger

import trio

from spear_core.api import (
    Channel,
    ChannelConfig,
    ChannelFactory,
    ChannelListener,
    ChannelOffer,
    LocalChannel,
    RuntimeInstanceId,
)
from spear_core.builtins.memory_transport import local_pair
from spear_core.errors import (
    ChannelAuthError,
    ChannelCreationError,
    ChannelError,
    SpearError,
)
from spear_core.node._services import Services
from spear_core.plugins import Plugins
from spear_core.rpc import welcome

__all__ = ["NodeChannels"]

_HANDSHAKE_S = 5.0
"""How long a peer that connected may take to present its secret."""


class _Offer(ChannelOffer):
    def __init__(
        self,
        transport: str,
        listener: ChannelListener,
        instance_id: RuntimeInstanceId,
        node_id: str,
        log: Logger,
    ) -> None:
        self.transport = transport
        self.address = listener.address
        self.secret = secrets.token_bytes(32)
        self._listener = listener
        self.instance_id = instance_id
        self._node_id = node_id
        self._log = log

    async def accept(self) -> Channel:
        while True:
            channel = await self._listener.accept()
            try:
                with trio.fail_after(_HANDSHAKE_S):
                    await welcome(channel, self._verify)
            except (SpearError, trio.TooSlowError) as error:
                self._log.warning("a peer of %s was turned away: %r", self.instance_id, error)
            else:
                return channel

    def _verify(self, hello: dict[str, object]) -> dict[str, object]:
        secret = hello.get("secret")
        if not isinstance(secret, bytes) or not hmac.compare_digest(secret, self.secret):
            raise ChannelAuthError(f"the secret is not the one made for {self.instance_id}")
        if hello.get("instance") != self.instance_id.instance_id:
            raise ChannelAuthError(f"the peer says it is {hello.get('instance')!r}")
        return {"node": self._node_id}


class NodeChannels(ChannelFactory):
    """The node's channel factory."""

    def __init__(self, services: Services, plugins: Plugins, *, node_id: str, log: Logger) -> None:
        self._services = services
        self._plugins = plugins
        self._node_id = node_id
        self._log = log

    def _strategy(self, runtime: str) -> list[str]:
        """Transports to try, in order."""
        owned = self._plugins.runtimes.get(runtime)
        wanted = owned.spec.transports if owned else ()
        offered = [name for name in wanted if name in self._plugins.transports]
        chosen = self._plugins.choose_transport(runtime, offered)
        if chosen in offered:
            offered.remove(chosen)
            offered.insert(0, chosen)
        return offered

    @asynccontextmanager
    async def _open(
        self, instance_id: RuntimeInstanceId, transports: Sequence[str]
    ) -> AsyncIterator[ChannelOffer]:
        failures: list[tuple[str, str]] = []
        async with AsyncExitStack() as stack:
            for name in transports:
                try:
                    transport = await self._services.transport(name)
                    address = transport.new_address(instance_id.instance_id)
                    listener = await stack.enter_async_context(transport.listen(address))
                except ChannelError as error:
                    failures.append((name, error.message))
                    continue
                yield _Offer(name, listener, instance_id, self._node_id, self._log)
                return
        raise _no_channel(instance_id, failures)

    def open_offer(
        self, instance_id: RuntimeInstanceId
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        return self._open(instance_id, self._strategy(instance_id.runtime_type))

    def create_channel_for_instance(
        self, instance_id: RuntimeInstanceId, config: ChannelConfig | None = None
    ) -> AbstractAsyncContextManager[ChannelOffer]:
        if config is None or not config.transports:
            return self.open_offer(instance_id)
        return self._open(instance_id, config.transports)

    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        return local_pair()


def _no_channel(
    instance_id: RuntimeInstanceId, failures: list[tuple[str, str]]
) -> ChannelCreationError:
    tried = "; ".join(f"{name}: {reason}" for name, reason in failures)
    return ChannelCreationError(
        f"no channel for {instance_id}: "
        + (tried or "no transport it can speak is installed (pip install spear-transport-unix)"),
        failures=failures,
    )
