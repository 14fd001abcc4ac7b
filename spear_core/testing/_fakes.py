"""Stand-ins for what a node gives a plugin."""

from __future__ import annotations

import hmac
import logging
import secrets
import shutil
import tempfile
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from spear_core.api import (
    Channel,
    ChannelFactory,
    ChannelListener,
    ChannelOffer,
    Hostcalls,
    LocalChannel,
    PluginContext,
    RuntimeInstanceId,
    SpearletConfig,
    Transport,
)
from spear_core.errors import (
    ChannelAuthError,
    ChannelCreationError,
    ChannelError,
    SpearError,
    UnsupportedTransportError,
)

__all__ = ["FakeChannels", "FakeHostcalls", "LoggedEntry", "make_context", "open_channels"]

_HANDSHAKE_S = 30.0


@attrs.frozen(kw_only=True)
class LoggedEntry:
    """One call of :meth:`FakeHostcalls.log`."""

    execution_id: str
    message: str
    level: str
    source: str


class FakeHostcalls(Hostcalls):
    """Keeps what was logged and called, and answers from a table.

    :param answers: hostcall name → the function from payload to answer. Other names raise a
        ``SpearError`` with code ``unimplemented``, as a node does.
    """

    def __init__(self, answers: Mapping[str, Callable[[bytes], bytes]] | None = None) -> None:
        self.entries: list[LoggedEntry] = []
        self.calls: list[tuple[str, str, bytes]] = []
        """``(execution id, name, payload)``."""
        self.answers = dict(answers or {})

    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        self.entries.append(
            LoggedEntry(
                execution_id=execution_id,
                message=message.removesuffix("\n"),
                level=level,
                source=source,
            )
        )

    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.calls.append((execution_id, name, payload))
        if name not in self.answers:
            raise SpearError(f"no plugin provides the hostcall {name!r}", code="unimplemented")
        return self.answers[name](payload)

    def text_of(self, execution_id: str) -> str:
        """Everything one execution logged, a line for each entry."""
        return "\n".join(e.message for e in self.entries if e.execution_id == execution_id)


class _Offer(ChannelOffer):
    def __init__(self, transport: str, listener: ChannelListener, instance: RuntimeInstanceId):
        self.transport = transport
        self.address = listener.address
        self.secret = secrets.token_bytes(32)
        self._listener = listener
        self.instance_id = instance

    async def accept(self) -> Channel:
        from spear_core.rpc import welcome

        while True:
            channel = await self._listener.accept()
            try:
                with trio.fail_after(_HANDSHAKE_S):
                    await welcome(channel, self._verify)
            except (SpearError, trio.TooSlowError, trio.EndOfChannel):
                await trio.aclose_forcefully(channel)
            except BaseException:
                await trio.aclose_forcefully(channel)
                raise
            else:
                return channel

    def _verify(self, hello: dict[str, Any]) -> dict[str, Any]:
        secret = hello.get("secret")
        if not isinstance(secret, bytes) or not hmac.compare_digest(secret, self.secret):
            raise ChannelAuthError(f"wrong secret for {self.instance_id}")
        return {"node": "test-node"}


class FakeChannels(ChannelFactory):
    """Makes real channels over transports that are open already, in the order given."""

    def __init__(self, transports: Mapping[str, Transport] | None = None) -> None:
        self._transports = dict(transports or {})

    @asynccontextmanager
    async def open_offer(
        self, instance_id: RuntimeInstanceId
    ) -> AsyncGenerator[ChannelOffer, None]:
        failures = []
        async with AsyncExitStack() as stack:
            for name, transport in self._transports.items():
                address = transport.new_address(instance_id.instance_id)
                try:
                    listener = await stack.enter_async_context(transport.listen(address))
                except ChannelError as exc:
                    failures.append((name, exc.message))
                    continue
                yield _Offer(name, listener, instance_id)
                return
        tried = "; ".join(f"{name}: {why}" for name, why in failures) or "none is installed"
        raise ChannelCreationError(f"no transport for {instance_id}: {tried}", failures=failures)

    def local_pair(self, instance_id: RuntimeInstanceId) -> tuple[LocalChannel, LocalChannel]:
        from spear_core.builtins.memory_transport import local_pair

        return local_pair()


@asynccontextmanager
async def open_channels(
    tmp_path: Path, transports: Sequence[str] = ()
) -> AsyncGenerator[FakeChannels, None]:
    """A channel factory over installed transports, by name, preferred first.

    Those that are not installed are left out. **Raises**
    :exc:`~spear_core.errors.UnsupportedTransportError` when none of them is.
    """
    from spear_core.plugins import load_plugins

    async with AsyncExitStack() as stack:
        opened = {}
        installed = load_plugins().transports if transports else {}
        for name in transports:
            if name in installed:
                owned = installed[name]
                context = make_context(tmp_path, plugin=owned.plugin_name)
                opening = owned.spec.open(context, owned.spec.config_cls())
                opened[name] = await stack.enter_async_context(opening)
        if transports and not opened:
            raise UnsupportedTransportError(
                f"none of the transports {', '.join(transports)} is installed; "
                f"pip install spear-transport-unix provides unix and tcp"
            )
        yield FakeChannels(opened)


def make_context(
    tmp_path: Path,
    *,
    plugin: str = "plugin-under-test",
    hostcalls: Hostcalls | None = None,
    channels: ChannelFactory | None = None,
    spearlet_config: SpearletConfig | None = None,
) -> PluginContext:
    """What a node would give a plugin, below ``tmp_path``.

    Two contexts for one ``tmp_path`` and ``plugin`` share ``state_dir`` and ``cache_dir``, as two
    runs of a node do. ``run_dir`` is new, short enough for a socket's path, and removed with the
    context.
    """
    run_dir = Path(tempfile.mkdtemp(prefix="spear-"))
    context = PluginContext(
        node_id="test-node",
        plugin=plugin,
        state_dir=tmp_path / "plugins" / plugin,
        cache_dir=tmp_path / "cache" / plugin,
        run_dir=run_dir,
        log=logging.getLogger(f"spear.{plugin}"),
        hostcalls=hostcalls or FakeHostcalls(),
        channels=channels or FakeChannels(),
        spearlet_config=spearlet_config or SpearletConfig(),
    )
    weakref.finalize(context, shutil.rmtree, run_dir, ignore_errors=True)
    return context
