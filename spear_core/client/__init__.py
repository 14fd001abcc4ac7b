"""Use a node from Python, on trio; :mod:`.aio` does so on asyncio, :mod:`.sync` without either.

::

    async with connect() as node:
        result = await node.invoke("hello", "world", timeout_s=10)
        print(result.text)
"""

from spear_core.client._calls import CallOptions, Result
from spear_core.client._node import Node, connect
from spear_core.client._objects import Object, Objects
from spear_core.client._task import LogReader, RemoteTask

__all__ = [
    "CallOptions",
    "LogReader",
    "Node",
    "Object",
    "Objects",
    "RemoteTask",
    "Result",
    "connect",
]
