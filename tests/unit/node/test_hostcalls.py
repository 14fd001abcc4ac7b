"""Hostcalls of running code, answered by providers that plugins declare."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from spear_core.api import (
    ArtifactUpload,
    ExecutionRequest,
    ExecutionResponse,
    HostcallContext,
    HostcallProvider,
    HostcallSpec,
    HostcallValue,
    InvokeRequest,
    OwnedFd,
)
from spear_core.errors import InvalidRequestError, ObjectNotFoundError, SpearError
from spear_core.plugins import Owned


@attrs.frozen
class NoConfig:
    pass


class Geo(HostcallProvider):
    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> bytes:
        if payload == b"nowhere":
            raise ObjectNotFoundError("no such place")
        if payload == b"bug":
            raise KeyError("oops")
        return f"{caller.artifact} {name} {payload.decode()}".encode()


@asynccontextmanager
async def open_geo(context: Any, config: NoConfig) -> AsyncIterator[HostcallProvider]:
    yield Geo()


@pytest.fixture
def hostcalls() -> dict[str, Owned[Any]]:
    spec = HostcallSpec(
        names=frozenset({"geo.locate", "geo.route"}), open=open_geo, config_cls=NoConfig
    )
    return {name: Owned(spec, "geo") for name in spec.names}


async def test_a_guests_hostcall_is_answered_or_fails_for_it_alone(
    open_steered_node: Any, runtime: Any, hostcalls: Any
) -> None:
    seen: list[object] = []

    async def ask(request: ExecutionRequest) -> ExecutionResponse:
        call = runtime.context.hostcalls.call
        seen.append(await call(request.execution_id, "geo.locate", b"me"))
        for execution_id, name, payload in [
            (request.execution_id, "geo.route", b"nowhere"),
            (request.execution_id, "geo.route", b"bug"),
            (request.execution_id, "geo.none", b""),
            ("e-unknown", "geo.locate", b""),
        ]:
            with pytest.raises(SpearError) as failed:
                await call(execution_id, name, payload)
            seen.append((type(failed.value), failed.value.code))
        return ExecutionResponse.completed(b"")

    runtime.behaviour = ask
    async with open_steered_node(hostcalls=hostcalls, configs={"geo": {NoConfig: NoConfig()}}) as n:
        await n.api.deploy(ArtifactUpload(name="f", filename="f.st", content=b""))
        assert (await n.api.invoke(InvokeRequest(function="f"))).success
    assert seen == [
        b"f@1 geo.locate me",
        (ObjectNotFoundError, "not_found"),
        (SpearError, "internal"),
        (SpearError, "unimplemented"),
        (InvalidRequestError, "invalid_argument"),
    ]


class Files(HostcallProvider):
    """Answers with a file that has what came with the call, in capitals."""

    seen: OwnedFd | None = None

    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> HostcallValue:
        text = b"nothing"
        if caller.fd is not None:
            type(self).seen = caller.fd
            text = os.pread(caller.fd.fileno(), 100, 0)
        if payload == b"fail":
            raise ObjectNotFoundError("gone")
        return HostcallValue(b"beside", a_file(text.upper()))


def a_file(content: bytes) -> OwnedFd:
    fd = OwnedFd(os.memfd_create("test", os.MFD_CLOEXEC))
    os.write(fd.fileno(), content)
    return fd


@asynccontextmanager
async def open_files(context: Any, config: NoConfig) -> AsyncIterator[HostcallProvider]:
    yield Files()


async def test_files_go_with_hostcalls_and_are_closed(
    open_steered_node: Any, runtime: Any, hostcalls: Any
) -> None:
    spec = HostcallSpec(names=frozenset({"files.shout"}), open=open_files, config_cls=NoConfig)
    hostcalls |= {"files.shout": Owned(spec, "geo")}

    async def ask(request: ExecutionRequest) -> ExecutionResponse:
        calls, id_ = runtime.context.hostcalls, request.execution_id
        given = a_file(b"quiet")
        answer = await calls.exchange(id_, "files.shout", HostcallValue(b"", given), takes_fd=True)
        assert (given.closed, answer.payload) == (True, b"beside")
        with answer.fd as fd:
            assert os.pread(fd.fileno(), 100, 0) == b"QUIET"
        for payload, takes_fd in ((b"fail", True), (b"", False)):
            given = a_file(b"quiet")
            value = HostcallValue(payload, given)
            with pytest.raises(SpearError):
                await calls.exchange(id_, "files.shout", value, takes_fd=takes_fd)
            assert given.closed
            assert Files.seen is given
        with pytest.raises(SpearError, match="takes none"):
            await calls.call(id_, "files.shout", b"")
        # a provider that knows nothing of files gets none, and they are closed all the same
        value = HostcallValue(b"me", given := a_file(b""))
        answer = await calls.exchange(id_, "geo.locate", value, takes_fd=True)
        assert (answer, given.closed) == (HostcallValue(b"f@1 geo.locate me"), True)
        return ExecutionResponse.completed(b"")

    runtime.behaviour = ask
    async with open_steered_node(hostcalls=hostcalls, configs={"geo": {NoConfig: NoConfig()}}) as n:
        await n.api.deploy(ArtifactUpload(name="f", filename="f.st", content=b""))
        answer = await n.api.invoke(InvokeRequest(function="f"))
        assert answer.success, answer
