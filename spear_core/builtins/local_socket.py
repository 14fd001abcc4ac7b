"""The front door ``local-socket``: a Unix socket in the node's state directory.

The fastest way in, and the command line's default. Nobody but the node's own user (and root) gets
past the directory's mode, the socket's mode and a look at the peer's credentials.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any

import attrs
import trio

from spear_core.api import Channel, FrontDoorContext, NodeApi
from spear_core.builtins._node_wire import NodeClient, answer, serve_stream
from spear_core.errors import (
    ChannelAuthError,
    ChannelBrokenError,
    ChannelClosedError,
    ChannelError,
    InvalidRequestError,
    NodeUnreachableError,
    SpearError,
)
from spear_core.rpc import (
    Call,
    Reply,
    Session,
    SocketChannel,
    Stream,
    hello,
    open_session,
    welcome,
)
from spear_core.rpc.socket_listener import SocketListener, bind_unix, short_path

__all__ = ["LocalSocketConfig", "connect", "open_local_socket"]

_SOCKET = "node.sock"
_SCHEME = "unix://"
_HANDSHAKE_S = 30.0
"""How long either side waits for the other to say who it is: hundreds of clients that come at once
to a busy machine take some seconds."""
_KNOCK_AGAIN_S = 0.02
_LAST_ANSWERS_S = 5.0
"""How long requests under way may take to be answered once the node has ended its tasks."""


@attrs.frozen(kw_only=True)
class LocalSocketConfig:
    """The front door has no settings."""


class _Server:
    """Answers clients on one listening socket."""

    def __init__(self, node: NodeApi, *, node_id: str, log: Logger) -> None:
        self._node = node
        self._node_id = node_id
        self._log = log
        self._sessions: set[Session] = set()

    async def accept(self, listener: SocketListener, nursery: trio.Nursery) -> None:
        """Serve every client that connects, each in a task of its own."""
        while True:
            nursery.start_soon(self._serve, await listener.accept())

    async def _serve(self, channel: SocketChannel) -> None:
        try:
            caller = f"uid:{_known_peer(channel.socket)}"
            with trio.fail_after(_HANDSHAKE_S):
                await welcome(channel, self._verify)
            async with open_session(
                channel,
                initiator=False,
                handler=partial(self._answer, caller),
                on_stream=partial(self._stream, caller),
            ) as session:
                self._sessions.add(session)
                try:
                    await session.wait_closed()
                finally:
                    self._sessions.discard(session)
        except (SpearError, trio.EndOfChannel, trio.TooSlowError) as error:
            self._log.debug("a client's connection ended: %r", error)
        except Exception:  # barrier: one connection
            self._log.exception("a client's connection broke")
        finally:
            await trio.aclose_forcefully(channel)

    async def _answer(self, caller: str, call: Call) -> Reply:
        if call.method == "invoke":
            call.args.setdefault("caller", caller)
        return await answer(self._node, call)

    async def _stream(self, caller: str, call: Call, stream: Stream) -> Reply:
        if call.method == "stream":
            call.args.setdefault("caller", caller)
        return await serve_stream(self._node, call, stream)

    def _verify(self, head: dict[str, Any]) -> dict[str, Any]:
        if head.get("role") != "client":
            raise ChannelAuthError(f"a client was expected, not {head.get('role')!r}")
        return {"node": self._node_id}

    async def finish(self) -> None:
        """Take no new requests and wait until those under way are answered."""
        for session in list(self._sessions):
            with suppress(ChannelError):
                await session.goaway("the node is shutting down")
        for session in list(self._sessions):
            await session.wait_idle()


def _known_peer(connection: socket.socket) -> int:
    """The user on the other side. :raises ChannelAuthError: neither the node's own, nor root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise ChannelAuthError(f"user {uid} may not use this node")
    return int(uid)


@asynccontextmanager
async def open_local_socket(
    context: FrontDoorContext, config: LocalSocketConfig
) -> AsyncIterator[str]:
    """Serve ``node_dir/node.sock`` while the block lasts; yields its URL."""
    path = context.node_dir / _SOCKET
    listener = SocketListener(bind_unix(path), f"{_SCHEME}{path}")
    ours = path.lstat()
    server = _Server(context.node, node_id=context.plugin.node_id, log=context.plugin.log)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(server.accept, listener, connections)
                try:
                    yield listener.address
                except Exception as exc:  # barrier: carried past the nurseries, as it is
                    failure = exc
                accepting.cancel_scope.cancel()
            await listener.aclose()
            with trio.move_on_after(_LAST_ANSWERS_S):
                await server.finish()
            connections.cancel_scope.cancel()
    finally:
        with suppress(OSError):
            if os.path.samestat(ours, path.lstat()):  # else somebody began anew in its place
                path.unlink()
        try:
            await trio.aclose_forcefully(listener)
        finally:
            if failure is not None:
                raise failure


async def _dial(path: Path) -> SocketChannel:
    """Connect; while too many others wait to be let in, knock again."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    give_up = trio.current_time() + _HANDSHAKE_S
    try:
        while True:
            try:
                with short_path(path) as short:
                    sock.connect(short)
            except BlockingIOError:
                if trio.current_time() >= give_up:
                    raise
                await trio.sleep(_KNOCK_AGAIN_S)
            else:
                break
        await trio.lowlevel.checkpoint()
    except OSError as error:
        sock.close()
        raise NodeUnreachableError(_nobody_there(path, error)) from error
    except trio.Cancelled:
        sock.close()
        raise
    return SocketChannel(sock)


def _nobody_there(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"the node at {path} belongs to another user: {error.strerror}"
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return (
            f"no node is running in {path.parent}; start one with `spear node`, "
            "or name another with --state-dir or --node"
        )
    if isinstance(error, BlockingIOError):
        return f"the node at {path} is busy: too many clients are waiting to be let in"
    return f"the node at {path} cannot be reached: {error.strerror}"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[NodeApi]:
    """The node behind ``unix:///path/to/node.sock``.

    **Raises** :exc:`~spear_core.errors.NodeUnreachableError` when nobody answers there.
    """
    path = Path(url.removeprefix(_SCHEME))
    if not url.startswith(_SCHEME) or not path.is_absolute():
        raise InvalidRequestError(f"{url!r} is no URL of the form {_SCHEME}/path/to/{_SOCKET}")
    channel = await _dial(path)
    try:
        await _greet(channel, path)
        async with open_session(channel, initiator=True) as session:
            yield NodeClient(
                _Asking(session, path).ask,
                session.open_stream,
                connected=lambda: session.takes_requests,
            )
    finally:
        await trio.aclose_forcefully(channel)


async def _greet(channel: Channel, path: Path) -> None:
    try:
        with trio.fail_after(_HANDSHAKE_S):
            await hello(channel, {"role": "client", "pid": os.getpid()})
    except (ChannelError, trio.EndOfChannel) as error:
        raise NodeUnreachableError(f"the node at {path} turned us away: {error}") from error
    except trio.TooSlowError:
        raise NodeUnreachableError(
            f"the node at {path} accepted the connection but said nothing for {_HANDSHAKE_S:g} s"
        ) from None


class _Asking:
    """Requests over one session, with its failures put in a client's words."""

    def __init__(self, session: Session, path: Path) -> None:
        self._session = session
        self._path = path

    async def ask(
        self, method: str, args: dict[str, Any], payload: bytes | bytearray | memoryview
    ) -> Reply:
        try:
            return await self._session.request(method, args, payload)
        except (ChannelBrokenError, ChannelClosedError) as error:
            raise NodeUnreachableError(
                f"the node at {self._path} went away before it answered {method!r}: {error}"
            ) from error
