"""``docs/write-a-plugin.md``, followed word by word in a fresh environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

DOCUMENT = Path(__file__).parents[2] / "docs" / "write-a-plugin.md"
BLOCK = re.compile(r"^(?:`([^`\n]+)`:\n\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEPT = ("HOME", "LANG", "TMPDIR")


@attrs.frozen
class File:
    """A file to type, from the folder ``my-plugins``."""

    path: str
    text: str


@attrs.frozen
class Command:
    """A command to type, and what it prints; ``…`` stands for anything."""

    line: str
    prints: str

    def matches(self, output: str) -> bool:
        """Whether it printed that. What pip says of its indexes is not ours."""
        if self.line.startswith("pip install"):
            return True
        parts = [re.escape(part.strip()) for part in self.prints.split("…")]
        return re.fullmatch(r"\s*" + ".*?".join(parts) + r"\s*", output, re.DOTALL) is not None


def steps() -> Iterator[File | Command]:
    """What the document says to do, in its order."""
    for path, language, text in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")):
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, prints = part.partition("\n")
                yield Command(line, prints)
        else:
            assert path, f"a block without the name of its file:\n{text}"
            yield File(path, text)


class Terminal:
    """A shell that keeps its directory and its environment from one command to the next."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self._state = folder / ".terminal"
        self._state.write_text(f"cd {folder}\n")
        self._environ = environ

    def type(self, command: Command) -> str:
        """Run it and return what it printed; fail when it fails."""
        script = (
            f". {self._state}\n{command.line}\nstatus=$?\n"
            f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > {self._state}\nexit $status\n'
        )
        done = subprocess.run(
            ["bash", "-c", script],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"$ {command.line}\n{done.stdout}"
        return done.stdout


def test_the_guide_word_by_word(distributions: Path, tmp_path: Path) -> None:
    environ = {name: os.environ[name] for name in KEPT if name in os.environ}
    environ |= {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PIP_FIND_LINKS": str(distributions),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    terminal = Terminal(tmp_path, environ)
    followed = list(steps())
    for step in followed:
        if isinstance(step, File):
            target = tmp_path / "my-plugins" / step.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(step.text, encoding="utf-8")
        else:
            output = terminal.type(step)
            assert step.matches(output), f"$ {step.line}\n{output}\nexpected:\n{step.prints}"
    typed = [step.line for step in followed if isinstance(step, Command)]
    assert [line for line in typed if line.startswith("pytest")] == [
        "pytest -q spear-runtime-sed",
        "pytest -q spear-transport-abstract",
    ]
