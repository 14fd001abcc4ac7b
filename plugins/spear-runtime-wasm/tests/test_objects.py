"""A guest's objects (guest ABI 17), with the hostcalls of the node and a real store."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import HostcallContext, HostcallValue, ObjectStore, ObjectView
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.builtins.objects import ObjectsConfig, open_objects
from spear_core.errors import ObjectForbiddenError
from spear_core.testing import make_context

ENOENT, EIO, E2BIG, EACCES, EFAULT = -2, -5, -7, -13, -14
EEXIST, EINVAL, ENOSPC, ESTALE = -17, -22, -28, -116
KEY, VALUE, CELL, BUFFER, NUMBERS = 8, 64, 1024, 2048, 8192
"""Where the guest keeps: a key, a value, a length, an output buffer, the results."""
HEAD = """
  (import "spear" "obj_put" (func $put (param i32 i32 i32 i32 i64) (result i64)))
  (import "spear" "obj_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "spear" "obj_stat" (func $stat (param i32 i32 i32 i32) (result i32)))
  (import "spear" "obj_list" (func $list (param i32 i32 i32 i32) (result i32)))
  (import "spear" "obj_ref" (func $ref (param i32 i32) (result i32)))
  (import "spear" "obj_unref" (func $unref (param i32 i32) (result i32)))
  (import "spear" "obj_pin" (func $pin (param i32 i32) (result i32)))
  (import "spear" "obj_unpin" (func $unpin (param i32 i32) (result i32)))
  (import "spear" "obj_delete" (func $delete (param i32 i32) (result i32)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))"""


class WithoutFiles:
    """A store whose views have no files, as one far away would."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def open(self, key: str, **rest: Any) -> AsyncIterator[ObjectView]:
        async with self._store.open(key, **rest) as view:
            yield attrs.evolve(view, fd=None)


@pytest.fixture
async def store(log: Any, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """The store behind the hostcalls of every guest here; `files` counts how often one went."""
    context = make_context(tmp_path)
    async with (
        open_memory_store(context, MemoryStoreConfig(memory_store_bytes=64 << 20)) as store,
        open_objects(context, ObjectsConfig()) as provider,
    ):

        async def exchange(
            execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
        ) -> HostcallValue:
            log.files += value.fd is not None
            caller = HostcallContext(
                execution_id=execution_id,
                task_id="t1",
                artifact="guest@1",
                objects=log.seen_as(store),
                fd=value.fd,
                takes_fd=takes_fd,
            )
            answer = await provider.call(caller, name, bytes(value.payload))
            assert isinstance(answer, HostcallValue)
            log.files += answer.fd is not None
            return answer

        log.exchange, log.files, log.seen_as = exchange, 0, lambda store: store
        yield store
        del log.exchange  # no cycle keeps the store and its files


def guest(*calls: str, capacity: int = 4096, key: bytes = b"key", pages: int = 1) -> str:
    """A guest that makes these calls and writes out what each returned, the cell, the buffer."""
    stores = "\n".join(
        f"(i64.store (i32.const {NUMBERS + 8 * n}) {call})" for n, call in enumerate(calls)
    )
    return f"""(module {HEAD}
      (memory (export "memory") {pages})
      (data (i32.const {KEY}) "{key.decode()}") (data (i32.const {VALUE}) "the value")
      (func (export "_start")
        (i32.store (i32.const {CELL}) (i32.const {capacity}))
        {stores}
        (drop (call $write (i32.const {NUMBERS}) (i32.const {8 * len(calls)})))
        (drop (call $write (i32.const {CELL}) (i32.const 4)))
        (drop (call $write (i32.const {BUFFER}) (i32.const 4096)))))"""


def put(expect: int = -1, *, ptr: int = VALUE, size: int = 9, key_len: int = 3) -> str:
    numbers = " ".join(f"(i32.const {n})" for n in (KEY, key_len, ptr, size))
    return f"(call $put {numbers} (i64.const {expect}))"


def out(name: str, *, key_len: int = 3, ptr: int = BUFFER, cell: int = CELL) -> str:
    numbers = " ".join(f"(i32.const {n})" for n in (KEY, key_len, ptr, cell))
    return f"(i64.extend_i32_s (call ${name} {numbers}))"


def one(name: str, key_len: int = 3) -> str:
    return f"(i64.extend_i32_s (call ${name} (i32.const {KEY}) (i32.const {key_len})))"


def cell(value: int) -> str:
    """Not a call: sets the cell, and is 0."""
    return f"(block (result i64) (i32.store (i32.const {CELL}) (i32.const {value})) (i64.const 0))"


async def results_of(guests: Any, *calls: str, **fields: Any) -> tuple[list[int], int, bytes]:
    response = await guests.run(guest(*calls, **fields))
    assert response.error is None, response.error
    count = len(calls)
    *numbers, length = struct.unpack_from(f"<{count}qI", response.payload)
    return numbers, length, response.payload[8 * count + 4 :]


async def test_put_and_get(guests: Any, store: ObjectStore) -> None:
    numbers, length, output = await results_of(guests, put(), put(), out("get"))
    assert numbers == [1, 2, 9]
    assert output[:length] == b"the value"
    assert await store.get("key") == (await store.stat("key"), b"the value")


async def test_what_is_expected_is_held_to(guests: Any, store: ObjectStore) -> None:
    numbers, _, _ = await results_of(guests, put(0), put(0), put(1), put(1), put(7), put(-2))
    assert numbers == [1, EEXIST, 2, ESTALE, ESTALE, EINVAL]
    assert (await store.stat("key")).version == 2


async def test_a_buffer_that_is_too_small_can_be_tried_again(
    guests: Any, store: ObjectStore
) -> None:
    numbers, length, output = await results_of(
        guests, put(), cell(3), out("get"), out("get"), capacity=3
    )
    assert numbers == [1, 0, ENOSPC, 9]  # the first wrote the size that the second then had
    assert output[:length] == b"the value"


async def test_the_same_value_comes_when_it_is_tried_again(
    guests: Any, store: ObjectStore, log: Any
) -> None:
    await store.put("key", b"first")
    exchange = log.exchange
    asked = 0

    async def overwriting(*args: Any, **rest: Any) -> HostcallValue:
        nonlocal asked
        asked += 1
        answer: HostcallValue = await exchange(*args, **rest)
        await store.put("key", b"another one")
        return answer

    log.exchange = overwriting
    numbers, _, output = await results_of(guests, out("get"), out("get"), out("get"), capacity=3)
    assert numbers == [ENOSPC, 5, ENOSPC]  # the third is asked for anew, and has 5 bytes of room
    assert (output[:5], asked) == (b"first", 2)


async def test_a_guest_reads_what_it_has_just_written(guests: Any, store: ObjectStore) -> None:
    """Also where it had asked with too little room before."""
    await store.put("key", b"as it was before")
    numbers, length, output = await results_of(guests, out("get"), put(), out("get"), capacity=3)
    assert numbers == [ENOSPC, 2, 9]
    assert output[:length] == b"the value"


async def test_stat_and_list_are_compact_json(guests: Any, store: ObjectStore) -> None:
    await store.put("key", b"a value", content_type="text/plain")
    await store.put("kez", b"")
    await store.put("other", b"")
    numbers, length, output = await results_of(guests, out("stat"))
    stat = json.loads(output[:length])
    assert numbers == [length]
    assert b": " not in output[:length]
    assert b", " not in output[:length]
    assert (stat["key"], stat["size"], stat["version"]) == ("key", 7, 1)
    assert (stat["content_type"], stat["refs"], stat["pinned"]) == ("text/plain", 0, False)
    numbers, length, output = await results_of(guests, out("list", key_len=2))
    assert [stat["key"] for stat in json.loads(output[:length])] == ["key", "kez"]
    numbers, length, _ = await results_of(guests, out("list", key_len=2), capacity=10)
    assert numbers == [ENOSPC]
    assert length > 100


async def test_references_pins_and_deleting(guests: Any, store: ObjectStore) -> None:
    verbs = ("ref", "pin", "unref", "unpin", "unpin")
    numbers, _, _ = await results_of(guests, put(), *map(one, verbs), put(), one("delete"))
    assert numbers == [1, 0, 0, 0, 0, ENOENT, 2, 0]
    numbers, _, _ = await results_of(
        guests, *map(one, ("ref", "unref", "pin", "unpin", "delete")), out("get"), out("stat")
    )
    assert numbers == [ENOENT] * 7


@pytest.mark.parametrize("files", [True, False])
async def test_a_large_value_goes_straight_to_and_from_memory(
    guests: Any, store: ObjectStore, log: Any, *, files: bool
) -> None:
    size = 5 << 20
    value = os.urandom(size)
    await store.put("key", value)
    if not files:
        log.seen_as = WithoutFiles
    where = 1 << 16
    read = f"""(block (result i64) (i32.store (i32.const {CELL}) (i32.const {size}))
        {out("get", ptr=where)})"""
    copy = put(ptr=where, size=size)
    numbers, length, _ = await results_of(guests, read, copy, pages=90)
    assert (numbers, length) == ([size, 2], size)
    assert (await store.get("key"))[1] == value
    assert log.files == (2 if files else 1)


async def test_bad_arguments(guests: Any, store: ObjectStore) -> None:
    far = 1 << 20
    numbers, _, _ = await results_of(
        guests,
        put(key_len=-1),
        put(ptr=far),
        put(size=-1),
        put(key_len=0),
        put(key_len=5000),
        out("get", key_len=-1),
        out("get", cell=far),
        put(),
        out("get", ptr=far),
        out("get"),
        one("pin", far),
        one("pin", -1),
    )
    assert numbers == [
        *(EFAULT, EFAULT, EFAULT, EINVAL, EINVAL),
        *(EFAULT, ENOENT, 1, EFAULT, 9, EINVAL, EFAULT),
    ]


async def test_failures_are_numbers_and_the_unexpected_ones_a_line_in_the_log(
    guests: Any, store: ObjectStore, log: Any
) -> None:
    numbers, _, _ = await results_of(guests, put(size=60 << 20), put(size=60 << 20), pages=1000)
    assert numbers[0] == 1
    await store.put("other", bytes(3 << 20))
    numbers, _, _ = await results_of(guests, out("get", key_len=2), put(size=62 << 20), pages=1000)
    assert numbers == [ENOENT, E2BIG]

    async def refusing(*args: Any, **rest: Any) -> HostcallValue:
        raise ObjectForbiddenError("guest may not read 'key'")

    log.exchange = refusing
    numbers, _, _ = await results_of(guests, out("get"))
    assert numbers == [EACCES]
    told = [line[1] for line in log.lines]
    assert len(told) == 2
    assert told[0].startswith("obj_put of 'key' failed: resource_exhausted: ")
    assert told[1] == "obj_get of 'key' failed: permission_denied: guest may not read 'key'"


C_GUEST = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define SPEAR(name) __attribute__((import_module("spear"), import_name(#name)))
SPEAR(obj_put) int64_t obj_put(const char *, int32_t, const void *, int32_t, int64_t);
SPEAR(obj_get) int32_t obj_get(const char *, int32_t, void *, uint32_t *);
SPEAR(obj_stat) int32_t obj_stat(const char *, int32_t, char *, uint32_t *);
SPEAR(obj_ref) int32_t obj_ref(const char *, int32_t);
SPEAR(obj_unref) int32_t obj_unref(const char *, int32_t);

/* The version in a stat: every JSON here is compact. */
static int64_t version_of(const char *key, int32_t length) {
  char stat[2048]; uint32_t size = sizeof stat - 1;
  int32_t found = obj_stat(key, length, stat, &size);
  if (found < 0) return found == -2 ? 0 : found;
  stat[size] = 0;
  return atoll(strstr(stat, "\"version\":") + 10);
}

int main(void) {
  for (int i = 0; i < 50; i++) for (;;) {  /* count up, whoever else does */
    int64_t version = version_of("count", 5);
    uint32_t count = 0, size = sizeof count;
    if (version && obj_get("count", 5, &count, &size) != 4) return 1;
    count++;
    int64_t put = obj_put("count", 5, &count, 4, version);
    if (put > 0) break;
    if (put != -116 && put != -17) return 2;
  }
  uint32_t size = 1 << 20;
  double *numbers = malloc(size), sum = 0;
  if (obj_get("numbers", 7, numbers, &size) == -28 && !(numbers = realloc(numbers, size))) return 3;
  int32_t length = obj_get("numbers", 7, numbers, &size);
  for (int32_t i = 0; i < length / 8; i++) { sum += numbers[i]; numbers[i] *= 2; }
  if (obj_put("doubled", 7, numbers, length, 0) < 1) return 4;
  if (obj_put("doubled", 7, numbers, length, 0) != -17) return 5;
  if (obj_ref("doubled", 7) || obj_unref("doubled", 7)) return 6;  /* nothing keeps it now */
  printf("%.0f %d", sum, version_of("doubled", 7) == 0);
  return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("ziglang")
    folder = tmp_path_factory.mktemp("c")
    (folder / "guest.c").write_text(C_GUEST)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi", "-Os", "-s"]
    subprocess.run([*zig, "-o", "guest.wasm", "guest.c"], cwd=folder, check=True)
    return (folder / "guest.wasm").read_bytes()


async def test_a_guest_in_c(guests: Any, store: ObjectStore, compiled: bytes) -> None:
    import array

    numbers = array.array("d", range(300_000))
    await store.put("numbers", memoryview(numbers).cast("B"))
    for _ in range(2):
        response = await guests.run(compiled)
        assert response.error is None, response.error
        assert response.payload == b"%d 1" % sum(range(300_000))
    assert struct.unpack("<I", (await store.get("count"))[1]) == (100,)
