"""Every command in a README or in ``docs/`` runs, and prints what the document says it prints.

A document is one shell session: its blocks marked ``console``, in order, each command after ``$ ``.
Lines below a command are what it prints; ``…`` stands for anything, also for several lines when
it is alone. ``uv run`` is taken off and ``pip install`` left out: the environment that runs this
test is the one to try.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "plugins/*/*.md", "sdk/*/*.md")
    for path in ROOT.glob(pattern)
)
ELSEWHERE = {Path("docs/write-a-plugin.md"): "followed word by word in tests/packaging"}
HEAVY = re.compile(r"uv run --group \w+ (pytest|nox)\b")
"""Commands that are this test run itself, or contain it; ``.ci/run`` runs them as written."""
FAKE_UV = """#!/bin/sh
[ "$1" = run ] || exit 0
shift
while :; do
  case "$1" in
    --group | --with | --package) shift 2 ;;
    *) break ;;
  esac
done
exec "$@"
"""
LEAVE = """
leave() {
  status=$?
  echo; echo '--- end ---'
  for job in $(jobs -p); do kill $job; wait $job || status=1; done
  exit $status
}
trap leave EXIT
"""
MARK = "--- command {} ---"

Command = tuple[str, list[str]]
"""What to type, and the lines it prints."""


def commands(document: Path) -> list[Command]:
    """The commands of a document; one that reads ``<<'END'`` goes on to the line ``END``."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert block.startswith("$ "), (
            f"{document}: a console block begins with a command:\n{block}"
        )
        heredoc = False
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
                heredoc = line.endswith("<<'END'")
            elif heredoc:
                more = line[1:].removeprefix(" ") if line.startswith(">") else line
                found[-1] = (f"{found[-1][0]}\n{more}", [])
                heredoc = more != "END"
            elif line.strip():
                found[-1][1].append(line)
    return found


def script(typed: list[Command]) -> str:
    """A shell script that runs the commands as somebody at a terminal would."""
    lines = ["set -euo pipefail", "exec 2>&1", LEAVE]
    for number, (command, _) in enumerate(typed):
        lines += [f"echo '{MARK.format(number)}'", command]
        if re.search(r"\bspear node\b.*&$", command):
            lines.append("until spear ps >/dev/null 2>&1; do sleep 0.05; kill -0 $!; done")
    return "\n".join(lines) + "\n"


def assert_printed(expected: list[str], printed: str, command: str) -> None:
    """The expected lines are in the output, in this order."""
    at = 0
    for line in expected:
        # blanks before it are its own, too: where a column is aligned to the right, 9s has one more
        # of them than 10s
        pattern = ".*".join(re.escape(part) for part in re.split(" *…", line.strip()))
        match = re.compile(rf"^\s*{pattern}\s*$", re.MULTILINE).search(printed, at)
        assert match, f"$ {command}\ndid not print\n{line}\nbut\n{printed}"
        at = match.end()


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the examples in it and nothing of the working tree that could be imported."""
    desk = tmp_path / "spear"
    shutil.copytree(ROOT / "examples", desk / "examples")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in {"uv": FAKE_UV, "pip": "#!/bin/sh\n"}.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    return desk


def shell(desk: Path, text: str) -> tuple[int, str]:
    """Run a script at that desk; its exit status and everything it printed."""
    path = f"{desk.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = dict(os.environ, PATH=path, HOME=str(desk.parent), XDG_STATE_HOME=str(desk.parent / "s"))
    env.pop("SPEAR_STATE_DIR", None)
    with subprocess.Popen(
        ["bash", "-c", text],
        cwd=desk,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


@pytest.mark.parametrize("document", [str(path) for path in DOCUMENTS if path not in ELSEWHERE])
def test_every_command_of_a_document_runs(document: str, desk: Path) -> None:
    typed = [(c, out) for c, out in commands(Path(document)) if not HEAVY.search(c)]
    if not typed:
        return
    status, printed = shell(desk, script(typed))
    assert status == 0, f"exit status {status}\n{printed}"
    for number, (command, expected) in enumerate(typed):
        _, _, rest = printed.partition(MARK.format(number))
        output = re.split(r"--- (?:command \d+|end) ---", rest)[0]
        assert_printed(expected, output, command)


def test_the_readme_gets_to_the_point() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    install = next(n for n, line in enumerate(lines, 1) if line.startswith("$ pip install"))
    result = next(n for n, line in enumerate(lines, 1) if line.startswith('{"words"'))
    assert install <= 15
    assert result <= 30


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [c for c, _ in commands(Path("README.md")) if "pytest" in c]
    assert f"\n{command} </dev/null\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
