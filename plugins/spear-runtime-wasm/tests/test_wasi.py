"""Real C programs, compiled for WASI by zig, as commands."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import ExecutionStatus

UPPER = r"""
#include <ctype.h>
#include <stdio.h>
int main(void) {
    int c, n = 0;
    while ((c = getchar()) != EOF) { putchar(toupper(c)); n++; }
    fprintf(stderr, "%d bytes\n", n);
    return 0;
}
"""
ENVIRONMENT = r"""
#include <stdio.h>
#include <stdlib.h>
extern char **environ;
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("arg %s\n", argv[i]);
    for (char **e = environ; *e; e++) printf("env %s\n", *e);
    printf("file %s\n", fopen("/etc/passwd", "r") || fopen("x", "w") ? "opened" : "refused");
    return 0;
}
"""
EXIT = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    fprintf(stderr, "first\nno newline at the end");
    exit(atoi(argv[1]));
}
"""
CLOCKS = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <sys/random.h>
int main(void) {
    struct timespec a, b, r, wall;
    unsigned char noise[16] = {0};
    clock_gettime(CLOCK_MONOTONIC, &a);
    usleep(50000);
    struct timespec until = a; until.tv_nsec += 80000000;
    if (until.tv_nsec >= 1000000000) { until.tv_sec++; until.tv_nsec -= 1000000000; }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, &r);
    clock_gettime(CLOCK_MONOTONIC, &b);
    clock_gettime(CLOCK_REALTIME, &wall);
    getentropy(noise, sizeof noise);
    int sum = 0; for (int i = 0; i < 16; i++) sum += noise[i];
    printf("%ld %ld %d %lld\n", (long)a.tv_sec,
           (long)((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000),
           sum > 0, (long long)wall.tv_sec);
    return 0;
}
"""
COPY = r"""
#include <unistd.h>
static char block[65536];
int main(void) {
    ssize_t n;
    while ((n = read(0, block, sizeof block)) > 0)
        for (ssize_t at = 0; at < n;) {
            ssize_t wrote = write(1, block + at, n - at);
            if (wrote < 0) return 1;
            at += wrote;
        }
    return n < 0;
}
"""
ALLOCATE = r"""
#include <stdlib.h>
#include <string.h>
int main(void) {
    for (int i = 0; i < 1000; i++) {
        char *volatile p = malloc(1 << 20);
        if (!p) abort();
        memset(p, 1, 1 << 20);
    }
    return 0;
}
"""
FUNCTION = r"""
#include <stdlib.h>
__attribute__((export_name("spear_alloc"))) void *alloc(int n) { return malloc(n); }
__attribute__((export_name("spear_free"))) void release(void *p, int n) { (void)n; free(p); }
static int calls;
__attribute__((export_name("handle"))) long long handle(char *p, int n) {
    char *out = malloc(n + 1);
    for (int i = 0; i < n; i++) out[i] = p[n - 1 - i];
    out[n] = '0' + ++calls;
    return ((long long)(int)out << 32) | (n + 1);
}
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Compiles C to WASI; each program once."""
    directory = tmp_path_factory.mktemp("wasi")

    def compile_c(source: str, *flags: str) -> bytes:
        name = hashlib.sha256(f"{source}{flags}".encode()).hexdigest()[:16]
        out = directory / f"{name}.wasm"
        if not out.exists():
            text = directory / f"{name}.c"
            text.write_text(source)
            zig = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi", "-Os", "-s"]
            subprocess.run([*zig, *flags, "-o", str(out), str(text)], check=True)
        return out.read_bytes()

    return compile_c


async def test_stdin_is_the_input_stdout_the_output_stderr_the_log(
    guests: Any, log: Any, build: Any
) -> None:
    response = await guests.run(build(UPPER), b"hello, world")
    assert response.payload == b"HELLO, WORLD"
    assert log.lines == [("e1", "12 bytes", "error", "stderr")]


async def test_arguments_and_environment_and_nothing_else(guests: Any, build: Any) -> None:
    response = await guests.run(
        build(ENVIRONMENT), args=("one", "zwölf"), env={"A": "1", "B": "x=y"}, filename="prog.wasm"
    )
    assert response.payload.decode().splitlines() == [
        "arg prog.wasm", "arg one", "arg zwölf", "env A=1", "env B=x=y", "file refused",
    ]  # fmt: skip


@pytest.mark.parametrize("code", [1, 3, 126, 255])
async def test_an_exit_code_is_a_failure_with_the_last_lines(
    guests: Any, log: Any, build: Any, code: int
) -> None:
    response = await guests.run(build(EXIT), args=(str(code),))
    error = response.error
    assert (error.code, error.kind) == ("unknown", "exit")
    assert error.message == f"exited with code {code}: no newline at the end"
    assert error.details == {"exit_code": str(code), "stderr": "first\nno newline at the end"}
    assert [entry[1] for entry in log.lines] == ["first", "no newline at the end"]


async def test_exit_zero_completes(guests: Any, build: Any) -> None:
    response = await guests.run(build(EXIT), args=("0",))
    assert response.status is ExecutionStatus.COMPLETED


async def test_clocks_sleep_and_random(guests: Any, build: Any) -> None:
    response = await guests.run(build(CLOCKS))
    began, slept, random, wall = (int(field) for field in response.payload.split())
    assert began == 0, "the monotonic clock starts with the execution"
    assert 80 <= slept < 10_000
    assert random == 1
    assert wall > 1_700_000_000


async def test_four_mebibytes_through(guests: Any, build: Any) -> None:
    payload = bytes(range(256)) * (1 << 14)
    with trio.fail_after(60):
        assert (await guests.run(build(COPY), payload)).payload == payload


async def test_c_out_of_memory(guests: Any, build: Any) -> None:
    response = await guests.run(build(ALLOCATE))
    assert response.error.code == "resource_exhausted"
    assert response.error.kind == "out_of_memory"


async def test_a_c_function_guest(guests: Any, build: Any) -> None:
    code = build(FUNCTION, "-mexec-model=reactor")
    async with guests.open(code, reuse=True) as instance:
        answers = [
            (await instance.execute(guests.request(text))).payload for text in (b"abc", b"xy")
        ]
    assert answers == [b"cba1", b"yx2"]


async def test_stdout_of_a_function_guest_is_log(guests: Any, log: Any, build: Any) -> None:
    code = build(FUNCTION.replace(
        "char *out = malloc", 'printf("%d bytes\\n", n); fflush(stdout); char *out = malloc'
    ).replace("#include <stdlib.h>", "#include <stdlib.h>\n#include <stdio.h>"),
        "-mexec-model=reactor",
    )  # fmt: skip
    response = await guests.run(code, b"abc")
    assert response.payload == b"cba1"
    assert ("e1", "3 bytes", "info", "stdout") in log.lines


async def test_the_compiled_file_itself_runs(guests: Any, build: Any, tmp_path: Path) -> None:
    """As deployed: by path, with its own name in messages."""
    response = await guests.run(build(UPPER) + b"\0\x05\x04note", b"still fine")
    assert response.payload == b"STILL FINE"
