"""What the client asks of a node, and what it makes of the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import (
    ErrorInfo,
    ExecutionMode,
    FrontDoorSpec,
    InvokeRequest,
    InvokeResponse,
    Priority,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.client import Node, connect
from spear_core.client._line import Line
from spear_core.errors import (
    InvalidRequestError,
    NodeUnreachableError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
)


@dataclasses.dataclass
class Point:
    x: int


class Peer:
    """A node that remembers what it was asked; ``losses`` calls lose their connection first."""

    is_connected = True

    def __init__(self) -> None:
        self.requests: list[InvokeRequest] = []
        self.uploads: list[Any] = []
        self.losses = 0
        self.state = TaskState.COMPLETED

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        if self.losses:
            self.losses -= 1
            raise NodeUnreachableError("gone")
        error = None
        if self.state is not TaskState.COMPLETED:
            error = ErrorInfo(code="data_loss", message="why", kind="K", details={"a": "b"})
        task = TaskInfo(
            task_id="t-1",
            execution_id="e-1",
            function=request.function,
            state=self.state,
            created_at=0.0,
            result=TaskResult(output=request.payload, error=error),
        )
        return InvokeResponse(success=error is None, message="", task=task)

    async def deploy(self, upload: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.uploads.append(upload)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def node(peer: Peer) -> AsyncIterator[Node]:
    @asynccontextmanager
    async def dial(url: str) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        yield peer

    def serve(*_: Any) -> Any:
        raise AssertionError("only its client is used")

    door = FrontDoorSpec[Any](
        name="test", schemes=("test",), open=serve, connect=dial, config_cls=Peer
    )
    async with trio.open_nursery() as nursery:
        line = Line("test://x", door, nursery)
        yield Node(line)
        line.close()


@pytest.mark.parametrize(
    ("value", "payload", "content_type"),
    [
        (None, b"", "application/octet-stream"),
        (b"\xff", b"\xff", "application/octet-stream"),
        (memoryview(b"ab"), b"ab", "application/octet-stream"),
        ("h\u00e9", b"h\xc3\xa9", "text/plain; charset=utf-8"),
        ({"a": [1, None]}, b'{"a":[1,null]}', "application/json"),
        (Point(1), b'{"x":1}', "application/json"),
        (7, b"7", "application/json"),
    ],
)
async def test_an_input_goes_as_what_it_is(
    node: Node, peer: Peer, value: object, payload: bytes, content_type: str
) -> None:
    assert (await node.invoke("f", value)).output == payload
    assert (peer.requests[0].payload, peer.requests[0].content_type) == (payload, content_type)


async def test_options_go_with_the_request(node: Node, peer: Peer) -> None:
    await node.submit("f", "x", priority=Priority.HIGH, timeout_s=3, content_type="a/b")
    (request,) = peer.requests
    assert (request.priority, request.timeout_s, request.content_type) == (2, 3, "a/b")
    assert request.mode is ExecutionMode.ASYNC
    with pytest.raises(TypeError, match="colour"):
        await node.invoke("f", colour="red")  # type: ignore[call-arg]


async def test_only_a_call_with_a_key_is_sent_again(node: Node, peer: Peer) -> None:
    calls: list[Callable[..., Any]] = [node.invoke, node.submit]
    for call in calls:
        peer.losses = 1
        with pytest.raises(NodeUnreachableError):
            await call("f", "x")
        assert len(peer.requests) == 1
        peer.losses = 1
        await call("f", "x", idempotency_key="k")
        assert peer.requests[1] == peer.requests[2]
        peer.requests.clear()


@pytest.mark.parametrize(
    ("state", "cls"),
    [
        (TaskState.FAILED, TaskFailedError),
        (TaskState.TIMEOUT, TaskTimeoutError),
        (TaskState.CANCELLED, TaskCancelledError),
    ],
)
async def test_a_task_that_did_not_complete_raises(
    node: Node, peer: Peer, state: TaskState, cls: type[Exception]
) -> None:
    peer.state = state
    with pytest.raises(cls, match="why") as caught:
        await node.invoke("f")
    error: Any = caught.value
    assert (error.code, error.task_id) == ("data_loss", "t-1")
    if state is TaskState.FAILED:
        assert (error.kind, error.details) == ("K", {"a": "b"})


async def test_deploying_files_and_content(node: Node, peer: Peer, tmp_path: Path) -> None:
    file = tmp_path / "my agent.py"
    file.write_bytes(b"code")
    file.chmod(0o755)
    await node.deploy(file, timeout_s=5.0)
    await node.deploy(b"more", name="n", filename="n.py", entry="main")
    first, second = peer.uploads
    assert (first.name, first.filename, first.content) == ("my-agent", "my agent.py", b"code")
    assert (first.executable, first.timeout_s) == (True, 5.0)
    assert (second.name, second.entry, second.executable) == ("n", "main", False)
    with pytest.raises(InvalidRequestError, match="needs a name and a filename"):
        await node.deploy(b"more")
    with pytest.raises(InvalidRequestError, match="is a directory"):
        await node.deploy(tmp_path)
    with pytest.raises(FileNotFoundError):
        await node.deploy(tmp_path / "none.py")


async def test_a_setting_that_there_is_not_or_that_cannot_be(node: Node, peer: Peer) -> None:
    with pytest.raises(
        TypeError, match=r"no setting 'timeout' \(did you mean 'timeout_s'\?\); it has args, .*env"
    ):
        await node.deploy(b"x", name="n", filename="n.py", timeout=3)
    with pytest.raises(TypeError, match="no setting 'nonsense'; it has args"):
        await node.deploy("no/such/file", nonsense=1)
    with pytest.raises(TypeError, match="no setting 'content'"):
        await node.deploy("no/such/file", content=b"")
    with pytest.raises(InvalidRequestError, match="concurrency"):
        await node.deploy(b"x", name="n", filename="n.py", concurrency=-1)
    assert peer.uploads == []


async def test_an_address_that_nobody_speaks() -> None:
    with pytest.raises(InvalidRequestError, match="no installed plugin speaks another scheme"):
        async with connect("gopher://here"):
            raise AssertionError
