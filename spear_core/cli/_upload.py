"""A file on the command line, as code to deploy."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from spear_core.api import ArtifactUpload, IsolationLevel, Limits
from spear_core.cli._options import SIZE

__all__ = ["CodeOptions", "code_options", "make_upload", "name_for"]

F = TypeVar("F", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class CodeOptions:
    """How the code wants to be run; the parameters that :func:`code_options` adds."""

    env: Sequence[str]
    arg: Sequence[str]
    runtime: str
    isolation: str | None
    memory: int | None
    cpu: float | None
    open_files: int | None
    processes: int | None
    max_output: int | None

    def limits(self) -> Limits:
        """What one execution may use."""
        return Limits(
            memory_bytes=self.memory,
            cpu_seconds=self.cpu,
            open_files=self.open_files,
            processes=self.processes,
            output_bytes=self.max_output,
        )


def code_options(command: F) -> F:
    """Environment, arguments, limits, isolation, runtime."""
    positive = click.IntRange(min=1)
    levels = click.Choice([level.name.lower() for level in IsolationLevel])
    options = [
        click.option(
            "--env",
            "-e",
            multiple=True,
            metavar="K=V",
            help="An environment variable for the code; `K` alone passes on yours. Repeatable.",
        ),
        click.option(
            "--arg", "-a", multiple=True, metavar="ARG", help="A command-line argument. Repeatable."
        ),
        click.option("--memory", type=SIZE, metavar="SIZE", help="Memory limit, such as 64MiB."),
        click.option(
            "--cpu",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="CPU time limit.",
        ),
        click.option("--processes", type=positive, metavar="N", help="Limit of processes."),
        click.option("--open-files", type=positive, metavar="N", help="Limit of open files."),
        click.option("--max-output", type=SIZE, metavar="SIZE", help="Limit of the result's size."),
        click.option(
            "--isolation",
            type=levels,
            help="Refuse to run with less than this; `spear doctor` shows what is there.",
        ),
        click.option(
            "--runtime", default="", metavar="NAME", help="Default: the one that knows the file."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def name_for(path: Path) -> str:
    """An artifact name made from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-_.")[:100] or "code"


def _split(file: str) -> tuple[Path, str]:
    """``FILE[:ENTRY]``; a file that has a colon in its name is found all the same."""
    path, colon, entry = file.rpartition(":")
    if colon and path and not Path(file).exists():
        return Path(path), entry
    return Path(file), ""


def _read(path: Path) -> tuple[bytes, bool]:
    """A regular file's content, and whether it is executable."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise click.UsageError(f"{path} is no regular file")
            return file.read(), bool(mode & 0o111)
    except FileNotFoundError:
        raise click.UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise click.UsageError(f"{path} is a directory; name the file to run") from None
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _file_name(path: Path) -> str:
    """A file's own name; what is not UTF-8 in it is replaced."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _text(option: str, value: str) -> str:
    """What the command line gave, whatever the locale. :raises click.UsageError: not UTF-8."""
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeDecodeError:
        raise click.UsageError(f"{option}: not UTF-8: {value!a}") from None


def _environment(pairs: Sequence[str]) -> Mapping[str, str]:
    env = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or (not equals and key not in os.environ):
            reason = "write K=V" if not key else f"write {key}=VALUE; you have no {key} to pass on"
            raise click.UsageError(f"--env {pair}: {reason}")
        env[_text("--env", key)] = _text("--env", value if equals else os.environ[key])
    return env


def make_upload(file: str, code: CodeOptions, *, name: str = "", **settings: Any) -> ArtifactUpload:
    """Read ``FILE[:ENTRY]``. :raises click.UsageError: it cannot be read."""
    path, entry = _split(file)
    content, executable = _read(path)
    return ArtifactUpload(
        name=name or name_for(path),
        filename=_file_name(path),
        content=content,
        runtime=code.runtime,
        entry=_text("ENTRY", entry),
        env=_environment(code.env),
        args=tuple(_text("--arg", arg) for arg in code.arg),
        limits=code.limits(),
        required_isolation=IsolationLevel[code.isolation.upper()] if code.isolation else None,
        executable=executable,
        **settings,
    )
