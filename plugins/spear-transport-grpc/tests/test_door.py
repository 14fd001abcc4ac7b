"""Where the front door listens, whom it lets in, and how it opens and closes."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

from spear_core.api import InvokeRequest, NodeApi
from spear_core.errors import ConfigError, NodeUnreachableError
from spear_core.testing import Resources
from spear_transport_grpc import _server, plugin
from spear_transport_grpc._bridge import RpcError, StatusCode, open_channel
from spear_transport_grpc._config import DoorConfig
from spear_transport_grpc._protos.grpc.health.v1 import health_pb2

LAZY = """
import sys, trio
from pathlib import Path
from spear_core.api import FrontDoorContext
from spear_core.testing import make_context
from spear_transport_grpc import plugin
from spear_transport_grpc._config import DoorConfig

async def main():
    folder = Path(sys.argv[1])
    context = FrontDoorContext(plugin=make_context(folder), node=None, node_dir=folder)
    async with plugin.open_door(context, DoorConfig()):
        assert (folder / "grpc.sock").is_socket()
        print([name for name in ("grpc", "google.protobuf") if name in sys.modules])

trio.run(main)
"""


@attrs.frozen
class Papers:
    """Certificates as files."""

    folder: Path

    def issue(self, name: str, ca: trustme.CA) -> tuple[str, str]:
        cert = ca.issue_cert(name, common_name=name)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.cert_chain_pems[0].write_to_path(paths[0])
        cert.private_key_pem.write_to_path(paths[1])
        return str(paths[0]), str(paths[1])

    def authority(self, name: str) -> tuple[str, trustme.CA]:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(self.folder / f"{name}.pem")
        return str(self.folder / f"{name}.pem"), ca


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


# ---- the Unix socket


def test_nothing_is_loaded_before_somebody_comes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAZY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


async def test_the_socket_is_private_before_and_after_the_first_client(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    async with serve(tmp_path, table_node()) as url:
        path = Path(url.removeprefix("grpc+unix://"))
        assert path == tmp_path / "state" / "grpc.sock"
        for _ in range(2):
            found = os.lstat(path)
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o600
            async with plugin.connect(url) as api:
                await api.status()
    assert list((tmp_path / "state").iterdir()) == []


async def test_all_who_come_at_the_start_are_served(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    async def come(url: str) -> None:
        async with plugin.connect(url) as api:
            await api.invoke(InvokeRequest(function="f"))

    node = table_node()
    async with serve(tmp_path, node) as url, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(come, url)
    assert len(node.asked) == 20


async def test_a_socket_whose_path_is_long(serve: Any, table_node: Any, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with serve(folder, table_node()) as url, plugin.connect(url) as api:
        await api.status()


async def test_a_door_that_nobody_uses_closes_at_once(
    serve: Any, table_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_LAST_ANSWERS_S", 3600.0)  # it is not patience that ends it
    with trio.fail_after(60):
        async with serve(tmp_path, table_node()):
            pass
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_client_that_leaves_while_the_door_opens(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    async with serve(tmp_path, table_node()) as url:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(url.removeprefix("grpc+unix://"))
        async with plugin.connect(url) as api:
            await api.status()


async def test_a_directory_of_others_is_refused(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700"):
        async with serve(tmp_path, table_node(), DoorConfig(listen=(f"grpc+unix://{shared}/g",))):
            pytest.fail("it opened")


async def test_opening_and_closing_leaves_nothing(
    serve: Any, table_node: Any, tmp_path: Path
) -> None:
    async def once() -> None:
        async with serve(tmp_path, table_node()) as url, plugin.connect(url) as api:
            await api.status()

    await once()
    before = Resources.now()
    for _ in range(5):
        await once()
    assert await Resources.settled(before, seconds=5) == []


# ---- TCP


async def test_a_port_on_this_machine(serve: Any, table_node: Any, tmp_path: Path) -> None:
    config = DoorConfig(listen=("grpc://127.0.0.1:0", "grpc.sock"))
    async with serve(tmp_path, table_node(), config) as urls:
        assert len(urls.split()) == 2
        for url in urls.split():
            async with plugin.connect(url) as api:
                assert (await api.status()).node_id == "n"


async def test_a_port_that_is_taken(serve: Any, table_node: Any, tmp_path: Path) -> None:
    from spear_core.errors import ChannelError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = DoorConfig(listen=(f"grpc://127.0.0.1:{taken.getsockname()[1]}",))
        with pytest.raises(ChannelError, match="cannot listen"):
            async with serve(tmp_path, table_node(), config):
                pytest.fail("it opened")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DoorConfig(listen=("grpc://0.0.0.0:0",)), "is not encrypted"),
        (DoorConfig(listen=("grpc://[::]:0",)), "is not encrypted"),
        (DoorConfig(listen=("grpcs://127.0.0.1:0",)), "needs tls_cert and tls_key"),
        (
            DoorConfig(listen=("grpcs://0.0.0.0:0",), tls_cert="c", tls_key="k"),
            "asks clients for no certificate",
        ),
        (DoorConfig(listen=("http://127.0.0.1:0",)), "should begin with grpc://"),
        (
            DoorConfig(listen=("grpcs://127.0.0.1:0",), tls_cert="/no/cert", tls_key="/no/key"),
            "cannot be read",
        ),
    ],
)
async def test_a_door_for_strangers_is_refused(
    serve: Any, table_node: Any, tmp_path: Path, config: DoorConfig, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        async with serve(tmp_path, table_node(), config):
            pytest.fail("it opened")


@pytest.mark.parametrize("entry", ["", "127.0.0.1:50052", "/run/grpc.sock", "grpc:50052", "a\0b"])
def test_a_file_by_mistake_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="write grpc://127"):
        DoorConfig(listen=(entry,))


async def test_who_insists_may_be_careless(serve: Any, table_node: Any, tmp_path: Path) -> None:
    config = DoorConfig(listen=("grpc://0.0.0.0:0",), insecure=True)
    async with (
        serve(tmp_path, table_node(), config) as url,
        plugin.connect(url.replace("0.0.0.0", "127.0.0.1")) as api,
    ):
        await api.status()


# ---- TLS


async def test_a_clients_certificate_says_who_calls(
    serve: Any, table_node: Any, tmp_path: Path, papers: Papers
) -> None:
    ca_path, ca = papers.authority("ca")
    cert, key = papers.issue("localhost", ca)
    mine, my_key = papers.issue("alice.example", ca)
    config = DoorConfig(
        listen=("grpcs://127.0.0.1:0",), tls_cert=cert, tls_key=key, client_ca=ca_path
    )
    node = table_node()
    async with serve(tmp_path, node, config) as url:
        there = url.replace("127.0.0.1", "localhost")
        async with plugin.connect(f"{there}?ca={ca_path}&cert={mine}&key={my_key}") as api:
            await api.invoke(InvokeRequest(function="f", caller="somebody else"))
        assert node.asked[0][1].caller == "alice.example"

        other_path, other = papers.authority("other")
        strange, strange_key = papers.issue("mallory.example", other)
        for query in (f"ca={ca_path}", f"ca={ca_path}&cert={strange}&key={strange_key}"):
            with pytest.raises(NodeUnreachableError):
                async with plugin.connect(f"{there}?{query}"):
                    pytest.fail("a stranger is in")
        with pytest.raises(NodeUnreachableError):  # a node that is not the one it says
            async with plugin.connect(f"{there}?ca={other_path}&cert={mine}&key={my_key}"):
                pytest.fail("it is not trusted")
    assert len(node.asked) == 1


async def test_tls_without_client_certificates_on_this_machine(
    serve: Any, table_node: Any, tmp_path: Path, papers: Papers
) -> None:
    ca_path, ca = papers.authority("ca")
    cert, key = papers.issue("localhost", ca)
    config = DoorConfig(listen=("grpcs://127.0.0.1:0",), tls_cert=cert, tls_key=key)
    node = table_node()
    async with serve(tmp_path, node, config) as url:
        there = url.replace("127.0.0.1", "localhost")
        async with plugin.connect(f"{there}?ca={ca_path}") as api:
            await api.invoke(InvokeRequest(function="f", caller="bob"))
    assert node.asked[0][1].caller == "bob"


# ---- closing


async def test_closing_lets_a_call_finish(serve: Any, table_node: Any, tmp_path: Path) -> None:
    node = table_node()
    answered: list[bool] = []

    async def call(api: NodeApi) -> None:
        answered.append((await api.invoke(InvokeRequest(function="sleep"))).success)

    async def let_go() -> None:
        await trio.sleep(0.2)
        node.release.set()

    async with trio.open_nursery() as nursery, serve(tmp_path, node) as url:
        client = plugin.connect(url)
        api = await client.__aenter__()
        nursery.start_soon(call, api)
        await node.sleeping.wait()
        nursery.start_soon(let_go)
    await client.__aexit__(None, None, None)
    assert answered == [True]
    assert node.cancelled == 0


async def test_a_cancelled_door_closes_at_once(serve: Any, table_node: Any, tmp_path: Path) -> None:
    node = table_node()
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with (
            serve(tmp_path, node) as url,
            plugin.connect(url) as api,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(api.invoke, InvokeRequest(function="sleep"))
            await node.sleeping.wait()
            scope.cancel()
    assert node.cancelled == 1
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_message_over_the_limit(serve: Any, table_node: Any, tmp_path: Path) -> None:
    from spear_core.errors import SpearError

    config = DoorConfig(max_message_bytes=1 << 20)
    async with serve(tmp_path, table_node(), config) as url, plugin.connect(url) as api:
        with pytest.raises(SpearError) as caught:
            await api.invoke(InvokeRequest(function="f", payload=bytes(2 << 20)))
        assert caught.value.code == "resource_exhausted"
        await api.status()


# ---- health and reflection


async def test_health(serve: Any, table_node: Any, tmp_path: Path) -> None:
    response = health_pb2.HealthCheckResponse
    async with (
        serve(tmp_path, table_node()) as url,
        open_channel(f"unix:{url.removeprefix('grpc+unix://')}") as channel,
    ):
        for service in ("", "spear.v1.TaskService", "grpc.health.v1.Health"):
            assert await check(channel, service) == response.SERVING
        with pytest.raises(RpcError) as caught:
            await check(channel, "no.such.Service")
        assert caught.value.code is StatusCode.NOT_FOUND


async def check(channel: Any, service: str) -> int:
    question = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    data = await channel.call("/grpc.health.v1.Health/Check", question)
    return health_pb2.HealthCheckResponse.FromString(data).status


async def test_watchers_hear_that_the_door_closes(
    serve: Any, table_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_LAST_ANSWERS_S", 3600.0)
    seen: list[int] = []

    async def watch(channel: Any, started: Callable[[], None]) -> None:
        async with channel.open_call("/grpc.health.v1.Health/Watch") as call:
            await call.send(health_pb2.HealthCheckRequest().SerializeToString())
            while (data := await call.receive()) is not None:
                seen.append(health_pb2.HealthCheckResponse.FromString(data).status)
                started()

    begun = trio.Event()
    with trio.fail_after(60):  # nobody waits for the watcher to leave
        async with trio.open_nursery() as nursery, serve(tmp_path, table_node()) as url:
            target = f"unix:{url.removeprefix('grpc+unix://')}"
            client = open_channel(target)
            nursery.start_soon(watch, await client.__aenter__(), begun.set)
            await begun.wait()
    await client.__aexit__(None, None, None)
    response = health_pb2.HealthCheckResponse
    assert seen == [response.SERVING, response.NOT_SERVING]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_everything(
    serve: Any, table_node: Any, tmp_path: Path, version: str
) -> None:
    from importlib import import_module

    from google.protobuf import descriptor_pb2, descriptor_pool

    module = import_module(f"spear_transport_grpc._protos.grpc.reflection.{version}.reflection_pb2")
    request = module.ServerReflectionRequest
    async with (
        serve(tmp_path, table_node()) as url,
        open_channel(f"unix:{url.removeprefix('grpc+unix://')}") as channel,
        channel.open_call(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        ) as call,
    ):

        async def ask(**question: Any) -> Any:
            await call.send(request(**question).SerializeToString())
            return module.ServerReflectionResponse.FromString(await call.receive())

        listed = (await ask(list_services="")).list_services_response.service
        names = [service.name for service in listed]
        assert {"spear.v1.FunctionService", "grpc.health.v1.Health"} <= set(names)
        assert "spear.v1.ChannelService" not in names
        for name in names:
            answer = await ask(file_containing_symbol=name)
            files = answer.file_descriptor_response.file_descriptor_proto
            pool = descriptor_pool.DescriptorPool()
            for data in reversed(files):
                pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
            assert pool.FindServiceByName(name).methods
        method = await ask(file_containing_symbol="spear.v1.TaskService.GetTask")
        assert method.HasField("file_descriptor_response")
        missing = await ask(file_by_filename="no/such/file.proto")
        assert missing.error_response.error_code == int(StatusCode.NOT_FOUND)
