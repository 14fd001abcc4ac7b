"""Ctrl-C while guests call the host as fast as they can: an interrupt inside a callback from wasm
would end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = r"""
import hashlib, os, random, signal, sys, threading, time
from pathlib import Path
import trio
from spear_core.api import Artifact, ExecutionRequest, InstanceSpec, RuntimeInstanceId
from spear_core.testing import make_context
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import open_wasm_runtime

CODE = b'''(module (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
  (import "spear" "sleep_ms" (func $sleep (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (loop
    (drop (call $log (i32.const 2) (i32.const 0) (i32.const 8)))
    (call $sleep (i32.const 0)) (br 0))))'''
folder = Path(sys.argv[1])
context = make_context(folder)  # not one for each run: an interrupt in its finalizer is lost

def interrupt(ended):
    time.sleep(random.uniform(0.001, 0.004))
    os.kill(os.getpid(), signal.SIGINT)
    while not ended.wait(1):  # one that strikes in a finalizer is lost
        os.kill(os.getpid(), signal.SIGINT)

async def main(ended):
    path = folder / "code"
    path.write_bytes(CODE)
    digest = hashlib.sha256(CODE).hexdigest()
    artifact = Artifact(name="a", version=1, digest=digest, runtime="wasm", shape="wasm",
                        path=path, filename="a.wat")
    async with open_wasm_runtime(context, WasmConfig()) as runtime:
        await runtime.prepare(artifact)
        name = RuntimeInstanceId(runtime_type="wasm", instance_id="i")
        threading.Thread(target=interrupt, args=(ended,)).start()
        async with runtime.open_instance(InstanceSpec(id=name, artifact=artifact)) as instance:
            await instance.execute(ExecutionRequest(execution_id="e", task_id="t"))

caught = 0
for _ in range(25):
    ended = threading.Event()
    try:
        trio.run(main, ended)
    except KeyboardInterrupt:
        caught += 1
    except BaseExceptionGroup as group:
        assert group.subgroup(KeyboardInterrupt) is not None
        caught += 1
    finally:
        ended.set()
print(caught)
"""


def test_an_interrupt_never_strikes_inside_a_callback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "25\n", "")
