"""A file or a directory on the command line, as code to deploy."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from spear_core._requirements import check_requirement
from spear_core._spec_file import SPEC_FILE, load_spec
from spear_core.api import ArtifactUpload, IsolationLevel, Limits
from spear_core.cli._options import SIZE
from spear_core.client._upload import name_for

__all__ = ["CodeOptions", "code_options", "make_upload", "name_for"]

F = TypeVar("F", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class CodeOptions:
    """How the code wants to be run; the parameters that :func:`code_options` adds."""

    env: Sequence[str]
    secret: Sequence[str]
    requirement: Sequence[str]
    arg: Sequence[str]
    runtime: str
    isolation: str | None
    memory: int | None
    cpu: float | None
    open_files: int | None
    processes: int | None
    max_output: int | None

    def limits(self, written: Limits) -> Limits:
        """What one execution may use; what is not given stays as written."""
        given: dict[str, Any] = {
            "memory_bytes": self.memory,
            "cpu_seconds": self.cpu,
            "open_files": self.open_files,
            "processes": self.processes,
            "output_bytes": self.max_output,
        }
        return attrs.evolve(
            written, **{key: value for key, value in given.items() if value is not None}
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
            "--secret",
            multiple=True,
            metavar="K=NAME",
            help="A variable with the value of a secret that the node defines. Repeatable.",
        ),
        click.option(
            "--requirement",
            "-r",
            multiple=True,
            metavar="REQ",
            help="A Python package that the code imports, such as `httpx>=0.27`. Repeatable.",
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


def _pairs(option: str, pairs: Sequence[str], what: str) -> Mapping[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise click.UsageError(f"{option} {pair}: write {what}")
        found[_text(option, key)] = _text(option, value)
    return found


def make_upload(
    file: str,
    code: CodeOptions,
    *,
    name: str = "",
    timeout_s: float | None = None,
    reuse: bool | None = None,
) -> ArtifactUpload:
    """Read ``FILE[:ENTRY]``, or a directory with a ``spear.toml``; options given win over it.

    :raises click.UsageError: it cannot be read. :raises ConfigError: the ``spear.toml`` is wrong.
    """
    path, entry = _split(file)
    spec = path / SPEC_FILE if path.is_dir() else path
    if spec.name == SPEC_FILE:
        if not spec.exists():
            raise click.UsageError(
                f"there is no {SPEC_FILE} in {path.absolute() if path.is_dir() else path.parent}; "
                "name the file to run, or write one (docs/artifacts.md)"
            )
        upload = load_spec(spec)
    else:
        content, executable = _read(path)
        upload = ArtifactUpload(
            name=name_for(path), filename=_file_name(path), content=content, executable=executable
        )
    given: dict[str, Any] = {
        "name": name,
        "runtime": code.runtime,
        "entry": _text("ENTRY", entry),
        "args": tuple(_text("--arg", arg) for arg in code.arg),
        "timeout_s": timeout_s,
        "reuse": reuse,
        "required_isolation": IsolationLevel[code.isolation.upper()] if code.isolation else None,
        "requirements": _requirements(upload.requirements, code.requirement),
    }
    return attrs.evolve(
        upload,
        env={**upload.env, **_environment(code.env)},
        secrets={**upload.secrets, **_pairs("--secret", code.secret, "VARIABLE=NAME")},
        limits=code.limits(upload.limits),
        **{key: value for key, value in given.items() if value not in (None, "", ())},
    )


def _requirements(written: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    for requirement in given:
        try:
            check_requirement(requirement)
        except ValueError as error:
            raise click.UsageError(f"--requirement {requirement!r}: {error}") from error
    return tuple(dict.fromkeys((*written, *given)))
