"""Calls of other functions: what goes to the node, and what comes back."""

from __future__ import annotations

from spear_sdk._output import encode_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal, TypedDict

    from spear_sdk._context import Context

    class CallOptions(TypedDict, total=False):
        """How another function is called."""

        timeout: float | None
        """Seconds; a child never gets more than its parent has left."""
        detached: bool
        """It goes on when its parent ends."""
        priority: Literal["low", "normal", "high", "urgent"]
        idempotency_key: str
        context: Mapping[str, str]
        content_type: str
        input_object: str
        """The key of an object to take as the input, as :attr:`Context.objects` has it."""


__all__ = ["StartedCall", "decode_result", "encode_call"]


class StartedCall:
    """Another function that runs meanwhile; made by :meth:`Context.start`.

    Unless it is detached, it is cancelled when the function that started it ends.
    """

    __slots__ = ("_context", "task_id")

    task_id: str
    """The task."""

    def __init__(self, context: Context, answer: bytes) -> None:
        self._context = context
        self.task_id = str(_split(answer)[0]["task_id"])

    def __repr__(self) -> str:
        return f"<StartedCall {self.task_id}>"

    def result(self) -> Any:
        """Wait for its end and return what :meth:`Context.invoke` would. Raises the same."""
        return decode_result(self._context.hostcall("functions.wait", self._head()))

    async def aresult(self) -> Any:
        """:meth:`result` for async functions; cancelling it leaves the call alone."""
        return decode_result(await self._context.ahostcall("functions.wait", self._head()))

    def cancel(self, reason: str = "") -> None:
        """Cancel it and wait until nothing of it runs. Raises: HostcallError."""
        self._context.hostcall("functions.cancel", self._head(reason))

    async def acancel(self, reason: str = "") -> None:
        """:meth:`cancel` for async functions."""
        await self._context.ahostcall("functions.cancel", self._head(reason))

    def _head(self, reason: str = "") -> bytes:
        head = {"task_id": self.task_id}
        return _join(head | {"reason": reason} if reason else head)


def encode_call(
    function: str,
    value: object,
    *,
    timeout: float | None = None,
    detached: bool = False,
    priority: str = "normal",
    idempotency_key: str = "",
    context: Mapping[str, str] | None = None,
    content_type: str = "",
    input_object: str = "",
) -> bytes:
    """The payload of ``functions.invoke`` and ``functions.start``.

    Raises: OutputError when the input is nothing that can be sent.
    """
    payload, natural_type = encode_output(value)
    head: dict[str, Any] = {"function": function, "content_type": content_type or natural_type}
    if timeout is not None:
        head["timeout_s"] = timeout
    if detached:
        head["detached"] = True
    if priority != "normal":
        head["priority"] = priority
    if idempotency_key:
        head["idempotency_key"] = idempotency_key
    if context:
        head["context"] = dict(context)
    if input_object:
        head["input_object"] = input_object
        if not content_type:
            del head["content_type"]  # that of the object
    return _join(head, payload)


def decode_result(answer: bytes) -> Any:
    """What the other function returned: JSON as its value, text as text, else bytes."""
    head, output = _split(answer)
    kind = str(head["content_type"]).partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        import json

        return json.loads(output)
    return output.decode() if kind.startswith("text/") else output


def _join(head: Mapping[str, Any], payload: bytes | bytearray | memoryview = b"") -> bytes:
    import json

    data = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((len(data).to_bytes(4, "little"), data, payload))


def _split(answer: bytes) -> tuple[Any, bytes]:
    import json

    end = 4 + int.from_bytes(answer[:4], "little")
    return json.loads(answer[4:end]), answer[end:]
