"""Hostcalls of running code, answered by providers that plugins declare."""

from __future__ import annotations

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
    InvokeRequest,
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
