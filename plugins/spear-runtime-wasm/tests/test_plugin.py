"""The plugin as the node sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cattrs
import pytest

from spear_core.api import Health
from spear_runtime_wasm import _runtime, plugin
from spear_runtime_wasm._config import WasmConfig


def test_the_hooks_need_no_engine() -> None:
    code = (
        "import sys; sys.modules['wasmtime'] = None; import spear_runtime_wasm.plugin as p;"
        "spec, = p.spear_runtimes(); assert spec.name == 'wasm';"
        "assert 'spear_runtime_wasm._ffi' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "head", "shape"),
    [
        ("x.wasm", b"\0asm\x01\0\0\0", "wasm"),
        ("no-suffix", b"\0asm\x01\0\0\0", "wasm"),
        ("x.wat", b"(module)", "wasm"),
        ("broken.wasm", b"", "wasm"),
        ("x.py", b"print()", None),
        ("x", b"\x7fELF", None),
    ],
)
def test_recognise(name: str, head: bytes, shape: str | None) -> None:
    assert plugin.recognise(Path(name), head, "") == shape


async def test_the_fingerprint_of_this_machine(runtime: Any) -> None:
    found = await runtime.fingerprint()
    assert found.health is Health.HEALTHY
    assert found.details["wasmtime"].startswith("50.")


async def test_what_is_loaded_is_looked_at_once(
    runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding it takes so long that everybody else's calls would notice who polls the node."""
    first = await runtime.fingerprint()
    monkeypatch.setattr(_runtime, "library_path", _not_installed)
    assert await runtime.fingerprint() == first


async def test_what_was_unwell_is_looked_at_again(
    runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_runtime, "library_path", _not_installed)
        assert (await runtime.fingerprint()).health is Health.UNDETECTED
    assert (await runtime.fingerprint()).health is Health.HEALTHY


def test_without_wasmtime_the_runtime_is_undetected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "library_path", _not_installed)
    found = _runtime.fingerprint(WasmConfig())
    assert found.health is Health.UNDETECTED
    assert "pip install wasmtime" in found.message


def test_another_version_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime.importlib.metadata, "version", lambda name: "51.0.0")
    found = _runtime.fingerprint(WasmConfig())
    assert found.health is Health.UNHEALTHY
    assert ">=50.0.1,<51" in found.message


def limited(gibibytes: int, code: str) -> str:
    """What a process says that may not have more address space."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({gibibytes} << 30,) * 2)\n"
    command = [sys.executable, "-c", limit + code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_little_address_space_means_fewer_instances() -> None:
    code = "from spear_runtime_wasm._host import get_host; print(get_host(1024).slots)"
    assert limited(300, code) == "64\n"


def test_too_little_address_space_is_unhealthy_and_no_crash() -> None:
    code = """if True:
        from spear_runtime_wasm._runtime import WasmConfig, fingerprint
        from spear_runtime_wasm._host import get_host
        from spear_runtime_wasm._ffi import EngineError
        print(fingerprint(WasmConfig()).health.value)
        try:
            get_host(1024)
        except EngineError as exc:
            print(exc)"""
    health, message = limited(8, code).splitlines()
    assert health == "unhealthy"
    assert "ulimit -v" in message


@pytest.mark.parametrize(
    "section", [{"memory_bytes": 0}, {"max_live_instances": 20_000}, {"worker_threads": -1}]
)
def test_settings_out_of_range_are_refused(section: dict[str, int]) -> None:
    with pytest.raises(Exception, match="WasmConfig"):
        cattrs.Converter(forbid_extra_keys=True).structure(section, WasmConfig)


def _not_installed() -> Path:
    raise ImportError("wasmtime is not installed")
