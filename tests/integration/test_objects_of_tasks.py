"""Agents and wasm guests share objects on a real node, and bad days with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.api import ObjectGrants
from spear_core.client import connect
from spear_core.errors import ObjectNotFoundError

AGENT = b"""
import os, time
from spear_sdk import Context, HostcallError, function

@function
def share(size: int, ctx: Context) -> list:
    stat = ctx.objects.put("shared", os.urandom(size), expect=0)
    return [stat.key, stat.version, stat.sha256]

@function
def look(key: str, ctx: Context) -> list:
    import hashlib
    got = ctx.objects.get(key)
    return [got.key, got.version, hashlib.sha256(got).hexdigest()]

@function
def attempt(key: str, ctx: Context) -> list:
    told = []
    for do in (
        lambda: ctx.objects.get(key),
        lambda: ctx.objects.put(key, b"mine"),
        lambda: ctx.objects.delete(key),
        lambda: ctx.objects.pin(key),
    ):
        try:
            do()
            told.append("done")
        except HostcallError as error:
            told.append([type(error).__name__, error.code])
    return told

@function
def hold(how: str, ctx: Context) -> None:
    ctx.objects.put("held", bytes(1 << 20))
    ctx.objects.add_ref("held")
    kept = ctx.objects.get("held")
    writer = ctx.objects.create("half", size=8 << 20).__enter__()
    writer.write(bytes(3 << 20))
    ctx.objects.put("ready", b"")
    if how == "die":
        os.kill(os.getpid(), 9)
    while how == "cancel":
        time.sleep(1)
"""
GUEST = b"""(module
  (import "spear" "obj_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "spear" "obj_put" (func $put (param i32 i32 i32 i32 i64) (result i64)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
  (memory (export "memory") 40)
  (data (i32.const 8) "/agent/shared") (data (i32.const 32) "copy")
  (func (export "_start") (local $n i32)
    (i32.store (i32.const 0) (i32.const 2000000))
    (local.set $n (call $get (i32.const 8) (i32.const 13) (i32.const 65536) (i32.const 0)))
    (i32.store (i32.const 0) (local.get $n))
    (drop (call $write (i32.const 0) (i32.const 4)))
    (if (i32.gt_s (local.get $n) (i32.const 0)) (then
      (drop (call $put (i32.const 32) (i32.const 4)
                       (i32.const 65536) (local.get $n) (i64.const 0)))))))"""


async def deploy(client: Any) -> None:
    await client.deploy(AGENT, name="agent", filename="agent.py")
    may = ObjectGrants(read=("agent/",))
    await client.deploy(AGENT, name="reader", filename="agent.py", objects=may)
    await client.deploy(GUEST, name="guest", filename="guest.wat", objects=may)
    await client.deploy(AGENT, name="stranger", filename="agent.py")


def memory_files(node: Any) -> int:
    """How many of the node's open files are memory."""
    folder = f"/proc/{node.process.pid}/fd"
    found = 0
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{name}").startswith("/memfd:spear-object")
    return found


@pytest.mark.parametrize("store", ["memory", "lmdb"])
async def test_agents_and_guests_share_objects(start_node: Callable[..., Any], store: str) -> None:
    node = start_node(f'[stores]\nobjects = "{store}"\n')
    async with connect(node.url) as client:
        await deploy(client)
        for size, version in ((10, 1), (1_500_000, 2)):
            answer = (await client.invoke("agent:share", size)).json()
            assert answer[:2] == ["shared", version]
            looked = (await client.invoke("reader:look", "/agent/shared")).json()
            assert looked == ["/agent/shared", *answer[1:]]
            copied = (await client.invoke("guest")).output
            assert copied == size.to_bytes(4, "little")
            copy = (await client.invoke("agent:look", "shared")).json()
            assert copy == answer
            assert (await client.objects.get("guest/copy")).stat.sha256 == answer[2]
            await client.objects.delete("guest/copy")
            await client.objects.delete("agent/shared")


async def test_nobody_touches_what_was_not_granted(node: Any) -> None:
    async with connect(node.url) as client:
        await deploy(client)
        await client.objects.put("agent/secret", b"secret")
        forbidden = ["ObjectForbiddenError", "permission_denied"]
        stranger = await client.invoke("stranger:attempt", "/agent/secret")
        assert stranger.json() == [forbidden] * 4
        reader = await client.invoke("reader:attempt", "/agent/secret")
        assert reader.json() == ["done", *[forbidden] * 3]
        own = await client.invoke("agent:attempt", "secret")
        assert own.json() == ["done", "done", "done", ["ObjectNotFoundError", "not_found"]]


@pytest.mark.parametrize("how", ["die", "end", "cancel"])
async def test_what_a_task_holds_goes_with_it(start_node: Callable[..., Any], how: str) -> None:
    node = start_node('[stores]\nobjects = "memory"\n[execution]\nshutdown_grace_ms = 100\n')
    async with connect(node.url) as client:
        await deploy(client)
        with trio.fail_after(60):
            task = await client.submit("agent:hold", how)
            async with client.objects.watch("agent/ready", start_revision=1) as changes:
                await changes.receive()
            if how == "cancel":
                await task.cancel()
            await client.call(lambda api: api.get_task(task.task_id, wait=True))
            # the reference was the only one, so the object is collected; the writer leaves nothing
            while (await client.objects.usage()).bytes:  # noqa: ASYNC110 - in another process
                await trio.sleep(0.02)
        with pytest.raises(ObjectNotFoundError):
            await client.objects.stat("agent/held")
        assert memory_files(node) == 0
