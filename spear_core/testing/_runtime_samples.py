"""Sample code for runtimes, and a runtime to try it on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from spear_core.api import (
    Artifact,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    Instance,
    InstanceSpec,
    Limits,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
)
from spear_core.testing._fakes import FakeHostcalls

__all__ = ["OpenedRuntime", "Sample", "assert_completed", "assert_failed", "new_request"]

_CODES = frozenset(
    {
        "aborted",
        "already_exists",
        "cancelled",
        "data_loss",
        "deadline_exceeded",
        "failed_precondition",
        "internal",
        "invalid_argument",
        "not_found",
        "out_of_range",
        "permission_denied",
        "resource_exhausted",
        "unauthenticated",
        "unavailable",
        "unimplemented",
        "unknown",
    }
)
"""gRPC's status names: https://grpc.io/docs/guides/status-codes/"""

_numbers = itertools.count(1)


@attrs.frozen(kw_only=True)
class Sample:
    """A piece of code for the runtime under test."""

    filename: str
    content: bytes | str
    entry: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    executable: bool = False


@attrs.frozen(kw_only=True)
class OpenedRuntime:
    """A runtime and what the suite needs beside it."""

    runtime: Runtime
    hostcalls: FakeHostcalls
    folder: Path
    spec: RuntimeSpec[Any]

    def artifact(
        self, sample: Sample, *, reuse: bool = False, limits: Limits | None = None
    ) -> Artifact:
        """The sample as the node would store it."""
        content = sample.content.encode() if isinstance(sample.content, str) else sample.content
        digest = hashlib.sha256(content).hexdigest()
        stored = self.folder / "artifacts" / digest / sample.filename
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_bytes(content)
            stored.chmod(0o555 if sample.executable else 0o444)
        shape = self.spec.recognise(stored, content[:4096], sample.entry)
        assert shape is not None, f"recognise does not know {sample.filename}"
        return Artifact(
            name="sample",
            version=1,
            digest=digest,
            runtime=self.spec.name,
            shape=shape,
            path=stored,
            filename=sample.filename,
            entry=sample.entry,
            env=sample.env,
            args=sample.args,
            limits=limits or Limits(),
            reuse=reuse,
        )

    @asynccontextmanager
    async def instance(self, artifact: Artifact, name: str = "") -> AsyncGenerator[Instance, None]:
        """An instance of a prepared artifact."""
        await self.runtime.prepare(artifact)
        name = name or f"i{next(_numbers)}"
        identity = RuntimeInstanceId(runtime_type=self.spec.name, instance_id=name)
        async with self.runtime.open_instance(InstanceSpec(id=identity, artifact=artifact)) as made:
            yield made

    async def run_once(self, artifact: Artifact, payload: bytes = b"input\n") -> ExecutionResponse:
        """One execution on an instance of its own."""
        async with self.instance(artifact) as instance:
            return await instance.execute(new_request(payload))


def new_request(payload: bytes = b"input\n") -> ExecutionRequest:
    """A request for an execution that has not been yet."""
    number = next(_numbers)
    return ExecutionRequest(execution_id=f"e{number}", task_id=f"t{number}", payload=payload)


def assert_failed(response: ExecutionResponse) -> None:
    """It failed, and says why, as a response has to."""
    assert response.status is ExecutionStatus.FAILED
    assert response.error is not None, "a failed response says why"
    assert response.error.message, "the error has no message"
    assert "\n" not in response.error.message, "the message is not one line"
    assert response.error.code in _CODES, f"{response.error.code!r} is no gRPC status name"


def assert_completed(response: ExecutionResponse, payload: bytes) -> None:
    """It succeeded, with just this output."""
    assert response.error is None, response.error
    assert response.status is ExecutionStatus.COMPLETED
    assert len(response.payload) == len(payload)
    assert response.payload == payload
