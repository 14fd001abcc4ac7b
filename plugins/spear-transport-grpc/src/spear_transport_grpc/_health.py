"""The standard services beside ours: health checking and server reflection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio
from google.protobuf.message import DecodeError

from spear_transport_grpc._bridge import (
    Method,
    RpcError,
    ServerCall,
    StatusCode,
    Streaming,
    Unary,
)
from spear_transport_grpc._protos._pool import POOL
from spear_transport_grpc._protos.grpc.health.v1 import health_pb2
from spear_transport_grpc._protos.grpc.reflection.v1 import reflection_pb2
from spear_transport_grpc._protos.grpc.reflection.v1alpha import reflection_pb2 as alpha_pb2

__all__ = ["health_methods", "reflection_methods"]

_Status = health_pb2.HealthCheckResponse
_OWN = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


def health_methods(services: Iterable[str], leaving: trio.Event) -> Mapping[str, Method]:
    """``grpc.health.v1.Health``: every service serves until ``leaving`` is set."""
    known = {"", *services, *_OWN}

    def now(data: bytes | None) -> health_pb2.HealthCheckResponse:
        try:
            service = health_pb2.HealthCheckRequest.FromString(data or b"").service
        except DecodeError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        if service not in known:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.NOT_SERVING if leaving.is_set() else _Status.SERVING)

    async def check(data: bytes, call: ServerCall) -> bytes:
        answer = now(data)
        if answer.status == _Status.SERVICE_UNKNOWN:
            raise RpcError(StatusCode.NOT_FOUND, "there is no such service here")
        return answer.SerializeToString()

    async def watch(call: ServerCall) -> None:
        request = await call.receive()
        await call.send(now(request).SerializeToString())
        await leaving.wait()
        await call.send(now(request).SerializeToString())

    return {
        "/grpc.health.v1.Health/Check": Unary(check),
        "/grpc.health.v1.Health/Watch": Streaming(watch),
    }


def reflection_methods(services: Iterable[str], leaving: trio.Event) -> Mapping[str, Method]:
    """``grpc.reflection.v1`` and its older name: what the services look like."""
    names = sorted({*services, *_OWN})
    return {
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Streaming(
            _until(leaving, _Reflection(module, names).serve)
        )
        for version, module in (("v1", reflection_pb2), ("v1alpha", alpha_pb2))
    }


def _until(
    leaving: trio.Event, serve: Callable[[ServerCall], Awaitable[None]]
) -> Callable[[ServerCall], Awaitable[None]]:
    """A handler that ends when the server leaves: clients keep this stream open for no reason."""

    async def handle(call: ServerCall) -> None:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await leaving.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await serve(call)
            nursery.cancel_scope.cancel()

    return handle


class _Reflection:
    """One version of the protocol; the messages are the same.

    :param module: the version's messages.
    """

    def __init__(self, module: Any, services: list[str]) -> None:
        self._module = module
        self._services = services

    async def serve(self, call: ServerCall) -> None:
        """Answer every request."""
        module = self._module
        while (data := await call.receive()) is not None:
            request = module.ServerReflectionRequest.FromString(data)
            answer = module.ServerReflectionResponse(
                valid_host=request.host, original_request=request
            )
            try:
                self._fill(answer, request)
            except (KeyError, ValueError, TypeError):
                answer.error_response.error_code = int(StatusCode.NOT_FOUND)
                answer.error_response.error_message = "there is no such thing here"
            await call.send(answer.SerializeToString())

    def _fill(self, answer: Any, request: Any) -> None:
        """**Raises** :exc:`KeyError` for what does not exist."""
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            for name in self._services:
                answer.list_services_response.service.add().name = name
        elif kind == "file_by_filename":
            self._files(answer, POOL.FindFileByName(request.file_by_filename))
        elif kind == "file_containing_symbol":
            self._files(answer, _file_with(request.file_containing_symbol))
        elif kind == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            POOL.FindMessageTypeByName(name)
            answer.all_extension_numbers_response.base_type_name = name  # nobody extends ours
        else:
            raise KeyError(kind)

    def _files(self, answer: Any, file: Any) -> None:
        """A file, after all that it imports."""
        seen: dict[str, bytes] = {}

        def add(each: Any) -> None:
            if each.name not in seen:
                for needed in each.dependencies:
                    add(needed)
                seen[each.name] = each.serialized_pb

        add(file)
        # the file that was asked for comes first: some clients look no further
        own = seen.pop(file.name)
        answer.file_descriptor_response.file_descriptor_proto.extend([own, *seen.values()])


def _file_with(symbol: str) -> Any:
    """The file of a symbol; a method's is its service's."""
    try:
        return POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        return POOL.FindFileContainingSymbol(symbol.rpartition(".")[0])
