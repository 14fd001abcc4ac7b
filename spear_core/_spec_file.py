"""``spear.toml``: what an artifact is and wants, written next to its code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from spear_core._bundle import pack
from spear_core._file_patterns import matcher, walk
from spear_core._quantities import parse_duration, parse_size
from spear_core._requirements import check_requirement, parse_requirements
from spear_core._structuring import structure
from spear_core.api import (
    ArtifactUpload,
    IsolationLevel,
    Limits,
    ObjectGrants,
    PoolSettings,
    Resources,
    RetryPolicy,
)
from spear_core.errors import ConfigError

__all__ = ["SPEC_FILE", "load_spec"]

SPEC_FILE = "spear.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEPENDENCY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[0-9]{1,9})?")
_MOST_BYTES = 512 << 20
"""Of all files together; the node has a limit of its own, this one saves our memory."""


def _checked(check: Callable[[Any], object]) -> Any:
    """A validator that says what ``check`` has against a value."""
    return lambda _self, _field, value: None if value is None else check(value)


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is no {what}")

    return check


_size, _duration = _checked(parse_size), _checked(parse_duration)
_positive = validators.optional(validators.gt(0))


@attrs.frozen(kw_only=True)
class _LimitsTable:
    memory: str | int | None = attrs.field(default=None, validator=_size)
    cpu_seconds: float | None = attrs.field(default=None, validator=_positive)
    open_files: int | None = attrs.field(default=None, validator=_positive)
    processes: int | None = attrs.field(default=None, validator=_positive)
    output: str | int | None = attrs.field(default=None, validator=_size)


@attrs.frozen(kw_only=True)
class _ResourcesTable:
    cpu: float | None = attrs.field(default=None, validator=_positive)
    memory: str | int | None = attrs.field(default=None, validator=_size)


@attrs.frozen(kw_only=True)
class _RetryTable:
    attempts: int | None = attrs.field(default=None, validator=_positive)
    initial_backoff: str | float | None = attrs.field(default=None, validator=_duration)
    max_backoff: str | float | None = attrs.field(default=None, validator=_duration)
    multiplier: float | None = attrs.field(
        default=None, validator=validators.optional(validators.ge(1))
    )
    jitter: float | None = attrs.field(
        default=None,
        validator=validators.optional(validators.and_(validators.ge(0), validators.le(1))),
    )


@attrs.frozen(kw_only=True)
class _Spec:
    """The file as it is written."""

    file: str = ""
    name: str | None = attrs.field(
        default=None,
        validator=_checked(_matching(_NAME, "name: use up to 100 letters, digits, '-_.'")),
    )
    entry: str = ""
    runtime: str = ""
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    secrets: Mapping[str, str] = attrs.field(factory=dict)
    args: tuple[str, ...] = ()
    limits: _LimitsTable = _LimitsTable()
    resources: _ResourcesTable = _ResourcesTable()
    isolation: str | None = attrs.field(
        default=None,
        validator=validators.optional(
            validators.in_([level.name.lower() for level in IsolationLevel])
        ),
    )
    timeout: str | float | None = attrs.field(default=None, validator=_duration)
    reuse: bool | None = None
    retry: _RetryTable = _RetryTable()
    idempotent: bool = False
    concurrency: int = attrs.field(default=1, validator=validators.gt(0))
    max_concurrent: int | None = attrs.field(default=None, validator=_positive)
    weight: float = attrs.field(default=1.0, validator=validators.gt(0))
    pool: PoolSettings = PoolSettings()
    requirements: tuple[str, ...] = ()
    requirements_file: str | None = None
    dependencies: tuple[str, ...] = ()
    objects: ObjectGrants = ObjectGrants()


def load_spec(path: Path) -> ArtifactUpload:
    """The artifact that a ``spear.toml`` describes, with the files beside it.

    :raises ConfigError: with everything that is wrong, by its TOML path.
    """
    raw = _read(path)
    spec, problems = structure(raw, _Spec, "")
    if spec is None:  # see what is wrong with the rest, all the same
        broken = {re.split(r"[.:\[]", problem, maxsplit=1)[0].strip('"') for problem in problems}
        rest = {key: value for key, value in raw.items() if key not in broken}
        spec, _ = structure(rest, _Spec, "")
    reading = _Reading(path.parent, spec)
    upload = reading.upload(skip_files="file" in raw and not spec.file)
    if problems or reading.problems:
        raise _invalid(path, problems + reading.problems)
    return upload


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start})"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not valid TOML: {error}"
    raise ConfigError(f"{path} {problem}", problems=(f"{path} {problem}",))


def _invalid(path: Path, problems: list[str]) -> ConfigError:
    lines = "".join(f"\n  {line}" for line in problems)
    return ConfigError(f"{path} is not valid:{lines}", problems=problems)


class _Reading:
    """Goes from a spec that is well formed to the files it names, and collects what is wrong."""

    def __init__(self, root: Path, spec: _Spec) -> None:
        self._root = root
        self._spec = spec
        self.problems: list[str] = []

    def upload(self, *, skip_files: bool) -> ArtifactUpload:
        """What to deploy; of no use when there are problems."""
        spec = self._spec
        self._check_names()
        requirements = self._requirements()
        content, bundle, executable = (b"", False, False) if skip_files else self._content()
        return ArtifactUpload(
            name=spec.name or _name_of(self._root),
            filename=spec.file if bundle else Path(spec.file).name,
            content=content,
            bundle=bundle,
            executable=executable,
            runtime=spec.runtime,
            reuse=spec.reuse,
            entry=spec.entry,
            env=spec.env,
            secrets=spec.secrets,
            args=spec.args,
            limits=Limits(
                memory_bytes=_bytes(spec.limits.memory),
                cpu_seconds=spec.limits.cpu_seconds,
                open_files=spec.limits.open_files,
                processes=spec.limits.processes,
                output_bytes=_bytes(spec.limits.output),
            ),
            resources=Resources(cpu=spec.resources.cpu, memory_bytes=_bytes(spec.resources.memory)),
            required_isolation=IsolationLevel[spec.isolation.upper()] if spec.isolation else None,
            timeout_s=_seconds(spec.timeout),
            idempotent=spec.idempotent,
            retry=_retry(spec.retry),
            max_concurrent=spec.max_concurrent,
            concurrency=spec.concurrency,
            weight=spec.weight,
            pool=spec.pool,
            requirements=requirements,
            dependencies=spec.dependencies,
            objects=spec.objects,
        )

    def _check_names(self) -> None:
        spec = self._spec
        for key in ("env", "secrets"):
            for name in getattr(spec, key):
                if not _VARIABLE.fullmatch(name):
                    self.problems.append(
                        f"{key}: {name!r} is no name for a variable; use letters, digits and '_'"
                    )
        for name in sorted(spec.env.keys() & spec.secrets.keys()):
            self.problems.append(f"secrets.{name}: env has the same variable")
        for number, dependency in enumerate(spec.dependencies):
            if not _DEPENDENCY.fullmatch(dependency):
                self.problems.append(
                    f"dependencies[{number}]: {dependency!r} is not of the form name or name@1"
                )

    def _requirements(self) -> tuple[str, ...]:
        spec = self._spec
        for number, requirement in enumerate(spec.requirements):
            try:
                check_requirement(requirement)
            except ValueError as error:
                self.problems.append(f"requirements[{number}]: {requirement!r}: {error}")
        found = list(spec.requirements)
        if spec.requirements_file is not None:
            try:
                text = (self._root / spec.requirements_file).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                self.problems.append(f"requirements_file: {spec.requirements_file}: {reason}")
                return ()
            more, wrong = parse_requirements(text)
            found += more
            self.problems += [
                f"requirements_file: {spec.requirements_file}:{line}: {problem}"
                for line, problem in wrong
            ]
        return tuple(dict.fromkeys(found))

    def _content(self) -> tuple[bytes, bool, bool]:
        """What to send, whether it is a bundle, and whether the file is executable."""
        spec = self._spec
        file = self._root / spec.file
        if not spec.file:
            self.problems.append("file: required, and not set: the file to run")
            return b"", False, False
        parts = spec.file.split("/")
        if "" in parts or ".." in parts or "." in parts:
            self.problems.append("file: expected a path below the directory of spear.toml")
            return b"", False, False
        if not file.is_file():
            self.problems.append(f"file: {spec.file}: no such file")
            return b"", False, False
        try:
            paths = self._chosen()
            executable = bool(file.stat().st_mode & 0o111)
            if self.problems:
                return b"", False, False
            if paths == {spec.file}:
                return file.read_bytes(), False, executable
            return pack(self._root, paths, limit=_MOST_BYTES), True, executable
        except OSError as error:
            self.problems.append(f"{error.filename}: {error.strerror or error}")
            return b"", False, False

    def _chosen(self) -> set[str]:
        """The paths of the files to take along."""
        spec = self._spec
        excluded = self._patterns("exclude", spec.exclude)
        included = self._patterns("include", spec.include or ())
        matched: set[re.Pattern[str]] = set()
        chosen = {spec.file}
        own = {SPEC_FILE, spec.requirements_file}
        for path, is_link in walk(self._root, excluded):
            mine = [pattern for pattern in included if pattern.fullmatch(path)]
            matched.update(mine)
            if (spec.include is not None and not mine) or path in own:
                continue
            target = (self._root / path).resolve()
            if is_link or not target.is_relative_to(self._root.resolve()):
                self.problems.append(
                    f"include: {path} is a symbolic link to "
                    f"{'a directory' if is_link else 'outside of the directory'}, which is not "
                    "followed; add it to `exclude`"
                )
            elif not target.is_file():
                self.problems.append(f"include: {path} is no regular file; add it to `exclude`")
            else:
                chosen.add(path)
        for number, pattern in enumerate(included):
            if pattern not in matched:
                what = (spec.include or ())[number]
                self.problems.append(f"include[{number}]: {what!r} matches no file")
        return chosen

    def _patterns(self, key: str, patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
        found = []
        for number, pattern in enumerate(patterns):
            try:
                found.append(matcher(pattern))
            except ValueError as error:
                self.problems.append(f"{key}[{number}]: {pattern!r}: {error}")
        return found


def _name_of(root: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name)
    return name.lstrip("-_.")[:100] or "code"


def _bytes(size: str | int | None) -> int | None:
    return None if size is None else parse_size(size)


def _seconds(duration: str | float | None) -> float | None:
    return None if duration is None else parse_duration(duration)


def _retry(table: _RetryTable) -> RetryPolicy:
    given = {
        "attempts": table.attempts,
        "initial_backoff_s": _seconds(table.initial_backoff),
        "max_backoff_s": _seconds(table.max_backoff),
        "multiplier": table.multiplier,
        "jitter": table.jitter,
    }
    return RetryPolicy(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
