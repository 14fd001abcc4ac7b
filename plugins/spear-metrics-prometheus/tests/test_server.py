"""The metrics port over a real socket, with clients of every kind."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import trio

from spear_core.api import ExecutionMetrics, FrontDoorContext, Histogram, NodeApi, NodeMetrics
from spear_core.errors import ConfigError, InvalidRequestError
from spear_core.testing import make_context
from spear_metrics_prometheus import _server
from spear_metrics_prometheus._config import PrometheusConfig
from spear_metrics_prometheus.plugin import connect, open_metrics_port

NONE = Histogram(bounds_s=(1.0,), counts=(0, 0))


class Measured:
    """A node of which only the metrics are asked."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.failure: Exception | None = None
        self.wait: trio.Event | None = None

    async def metrics(self) -> NodeMetrics:
        self.asked.set()
        if self.wait is not None:
            await self.wait.wait()
        if self.failure:
            raise self.failure
        total = ExecutionMetrics(execution_time=NONE, queue_time=NONE)
        return NodeMetrics(node_id="n-1", total=total)


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def context(tmp_path: Path, measured: Measured) -> FrontDoorContext:
    return FrontDoorContext(
        plugin=make_context(tmp_path), node=cast(NodeApi, measured), node_dir=tmp_path
    )


@pytest.fixture
async def port(context: FrontDoorContext) -> AsyncIterator[int]:
    async with open_metrics_port(context, PrometheusConfig(listen="127.0.0.1:0")) as url:
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/metrics", url)
        assert match
        yield int(match[1])


async def read_all(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(60):
        return b"".join([part async for part in stream])


async def ask(port: int, request: bytes) -> bytes:
    """All that is answered until the server closes."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return await read_all(stream)


def get(path: str = "/metrics", method: str = "GET", *, close: bool = True) -> bytes:
    last = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{last}\r\n".encode()


async def test_the_page(port: int) -> None:
    head, _, body = (await ask(port, get())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/plain; version=0.0.4; charset=utf-8" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b'spear_node_info{node_id="n-1",version=""} 1\n' in body


async def test_head_is_the_page_without_the_page(port: int) -> None:
    whole = await ask(port, get())
    head, _, body = (await ask(port, get(method="HEAD"))).partition(b"\r\n\r\n")
    assert head == whole.partition(b"\r\n\r\n")[0]
    assert body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/metrics/x"), 404),
        (get("/metrics?x=1"), 200),
        (get(method="POST"), 405),
        (get(method="DELETE"), 405),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000, 431),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc", 405),
    ],
)
async def test_other_requests(port: int, request_: bytes, status: int) -> None:
    answer = await ask(port, request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    if status == 405:
        assert b"allow: GET, HEAD" in answer


async def test_a_connection_serves_many_scrapes_also_pipelined(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(get(close=False))
        first = b""
        while not first.endswith(b"errors_total counter\n") and b"queue_duration" not in first:
            first += await stream.receive_some()
        await stream.send_all(get(close=False) + get())
        rest = await read_all(stream)
    assert first.count(b"HTTP/1.1 200") == 1
    assert rest.count(b"HTTP/1.1 200") == 2


async def test_a_client_that_dawdles_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_REQUEST_S", 0.2)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
        assert await read_all(stream) == b""
    monkeypatch.undo()
    assert b"HTTP/1.1 200" in await ask(port, get())


async def test_a_client_that_says_nothing_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_IDLE_S", 0.1)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await read_all(stream) == b""


async def test_idle_connections_make_room_for_new_ones(port: int) -> None:
    idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(_server._MOST_CONNECTIONS)]
    try:
        for stream in idle:  # each has been served once, so each is known to be accepted
            await stream.send_all(get("/x", close=False))
            await stream.receive_some()
        assert b"HTTP/1.1 200" in await ask(port, get())
        assert await read_all(idle[0]) == b""
        await idle[1].send_all(get())
        assert b"HTTP/1.1 200" in await read_all(idle[1])
    finally:
        for stream in idle:
            await trio.aclose_forcefully(stream)


async def test_a_node_that_fails_to_tell_is_a_500(port: int, measured: Measured) -> None:
    measured.failure = RuntimeError("no")
    answer = await ask(port, get())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"RuntimeError" not in answer
    measured.failure = None
    assert b"HTTP/1.1 200" in await ask(port, get())


async def test_closing_lets_an_answer_under_way_be_given(
    context: FrontDoorContext, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_LAST_ANSWERS_S", 3600.0)  # it is not patience that ends it
    measured.wait = trio.Event()
    answers: list[bytes] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with open_metrics_port(context, PrometheusConfig(listen="127.0.0.1:0")) as url:
                port = int(url.split(":")[2].partition("/")[0])
                idle = await trio.open_tcp_stream("127.0.0.1", port)

                async def scrape() -> None:
                    answers.append(await ask(port, get()))

                nursery.start_soon(scrape)
                with trio.fail_after(60):
                    await measured.asked.wait()
                nursery.start_soon(_set_soon, measured.wait)
            assert await read_all(idle) == b""
            await idle.aclose()
    assert b"HTTP/1.1 200" in answers[0]
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)


async def _set_soon(event: trio.Event) -> None:
    await trio.sleep(0.05)
    event.set()


async def test_off_by_default(context: FrontDoorContext) -> None:
    async with open_metrics_port(context, PrometheusConfig()) as url:
        assert url == ""


async def test_an_address_that_is_taken_is_said(context: FrontDoorContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=listen):
            async with open_metrics_port(context, PrometheusConfig(listen=listen)):
                raise AssertionError("it must not open")


async def test_an_error_of_the_block_comes_out_as_it_is(context: FrontDoorContext) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_metrics_port(context, PrometheusConfig(listen="127.0.0.1:0")):
            raise KeyError("mine")


@pytest.mark.parametrize(
    "listen", ["9464", "localhost:9464", "127.0.0.1", "127.0.0.1:99999", "::1:9464", "1.2.3:1"]
)
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ValueError):
        PrometheusConfig(listen=listen)


def test_ipv6_is_an_address() -> None:
    assert PrometheusConfig(listen="[::1]:9464").listen


def test_nobody_reaches_a_node_this_way() -> None:
    with pytest.raises(InvalidRequestError):
        connect("http://x")
