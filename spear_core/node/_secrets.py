"""Secrets: what the operator has defined, on its way to the guest and nowhere else.

A value is read when an instance is made, handed to the runtime within its
:class:`~spear_core.api.InstanceSpec`, and remembered here only to strike it out of what the guest
says later.
"""

from __future__ import annotations

import logging
import os
import stat
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from spear_core.api import Artifact, ErrorInfo, InstanceSpec, RuntimeInstanceId, SecretSource
from spear_core.errors import SecretNotFoundError, SpearError

__all__ = ["Secrets", "SpecMaker", "struck_out", "without_secrets"]

_LONGEST_BYTES = 64 << 10
"""Of one secret; the environment of a process may have 128 KiB per variable on Linux."""
_SHORTEST_STRUCK = 6
"""Characters. Striking out what is shorter would make a log unreadable and hide nothing."""
_STRUCK = "***"


SpecMaker = Callable[[RuntimeInstanceId, Artifact], InstanceSpec]


def without_secrets(instance_id: RuntimeInstanceId, artifact: Artifact) -> InstanceSpec:
    """What to ask a runtime for, for an artifact that wants no secrets."""
    return InstanceSpec(id=instance_id, artifact=artifact)


class Secrets:
    """The secrets of one node."""

    def __init__(
        self,
        sources: Mapping[str, SecretSource],
        *,
        warn: Callable[[str], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._sources = sources
        self._warn = warn
        self._environ = environ
        self._warned: set[Path] = set()
        self._struck: dict[str, set[str]] = {}
        """Name of a secret → every line of every value it has had here."""

    def configure(self, sources: Mapping[str, SecretSource]) -> None:
        """Take new definitions; instances made from now on get their values."""
        self._sources = sources

    def check(self, artifact_name: str, wanted: Mapping[str, str]) -> None:
        """Whether all secrets are defined, without looking at their values.

        :param wanted: environment variable → name of the secret.
        :raises SecretNotFoundError: names the first that is not.
        """
        for variable, name in wanted.items():
            if name not in self._sources:
                defined = ", ".join(sorted(self._sources)) or "none"
                raise SecretNotFoundError(
                    f"{artifact_name} wants the secret {name!r} as {variable}, which this node "
                    f"does not define (defined: {defined}); add it to the node's configuration, "
                    f'such as `[secrets]` with `{name} = {{ file = "/path" }}`'
                )

    def unresolved(self) -> list[str]:
        """A line about each secret that has no value here and now; none has a value in it."""
        found = []
        for name in self._sources:
            try:
                self._value(name)
            except SecretNotFoundError as error:
                found.append(error.message)
        return found

    def instance_spec(self, instance_id: RuntimeInstanceId, artifact: Artifact) -> InstanceSpec:
        """What to ask a runtime for, with the values of the artifact's secrets.

        :raises SecretNotFoundError: one is not defined, or has no value now.
        """
        if not artifact.secrets:
            return InstanceSpec(id=instance_id, artifact=artifact)
        self.check(artifact.ref, artifact.secrets)
        values = {variable: self._value(name) for variable, name in artifact.secrets.items()}
        return InstanceSpec(id=instance_id, artifact=artifact, secrets=values)

    def _value(self, name: str) -> str:
        source = self._sources[name]
        if source.file is not None:
            value = self._read(name, source.file)
        else:
            found = self._environ.get(source.env or "")
            if found is None:
                raise SecretNotFoundError(
                    f"the secret {name!r} has no value: the environment here is without "
                    f"{source.env} (secrets are defined in [secrets] of the node's configuration)"
                )
            value = found
        if not value or "\0" in value:
            what = "contains a NUL character" if value else "is empty"
            raise SecretNotFoundError(f"the value of the secret {name!r} {what}")
        lines = {line.strip() for line in value.splitlines()}
        struck = {line for line in lines if len(line) >= _SHORTEST_STRUCK}
        self._struck.setdefault(name, set()).update(struck)
        return value

    def _read(self, name: str, path: Path) -> str:
        """A file's content without one line end at its end."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = os.fstat(descriptor).st_mode
                if not stat.S_ISREG(mode):
                    raise SecretNotFoundError(f"the secret {name!r}: {path} is no regular file")
                content = os.read(descriptor, _LONGEST_BYTES + 1)
            finally:
                os.close(descriptor)
            text = content.decode()
        except OSError as error:
            raise SecretNotFoundError(
                f"the secret {name!r} cannot be read: {path}: {error.strerror or error}"
            ) from error
        except UnicodeDecodeError:
            raise SecretNotFoundError(f"the secret {name!r}: {path} is not UTF-8") from None
        if len(content) > _LONGEST_BYTES:
            raise SecretNotFoundError(
                f"the secret {name!r}: {path} has more than {_LONGEST_BYTES} bytes"
            )
        if mode & 0o004 and path not in self._warned:
            self._warned.add(path)
            self._warn(f"the secret {name!r}: every user can read {path}; `chmod o= {path}`")
        return text.removesuffix("\n").removesuffix("\r")

    # What guests say ----------------------------------------------------------------------------

    def strike(self, artifact: Artifact, text: str) -> str:
        """The text of a guest without the values of its secrets."""
        return self._strike(artifact.secrets.values(), text) if artifact.secrets else text

    def strike_all(self, text: str) -> str:
        """A text of any origin without the value of any secret."""
        return self._strike(list(self._struck), text) if self._struck else text

    def _strike(self, names: Iterable[str], text: str) -> str:
        values = {value for name in names for value in self._struck.get(name, ())}
        for value in sorted(values, key=len, reverse=True):  # a longer one may contain a shorter
            text = text.replace(value, _STRUCK)
        return text

    def strike_exception(self, artifact: Artifact, error: SpearError) -> None:
        """Take the values of secrets out of an error that may quote what a guest said."""
        struck = self.strike(artifact, error.message)
        if struck != error.message:
            error.args = (struck, *error.args[1:])

    def strike_error(self, artifact: Artifact, error: ErrorInfo) -> ErrorInfo:
        """An error of a guest without the values of its secrets."""
        if not artifact.secrets:
            return error
        return attrs.evolve(
            error,
            message=self.strike(artifact, error.message),
            kind=self.strike(artifact, error.kind),
            details={key: self.strike(artifact, text) for key, text in error.details.items()},
        )


class _StrikeOut(logging.Filter):
    """Takes the values of secrets out of what a handler writes."""

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (struck := self._secrets.strike_all(message)) != message:
            record.msg, record.args = struck, ()
        if record.exc_info and record.exc_info[0]:
            text = "".join(traceback.format_exception(*record.exc_info))
            record.exc_text = self._secrets.strike_all(text)
        return True


@contextmanager
def struck_out(log: logging.Logger, secrets: Secrets) -> Iterator[None]:
    """Keep the values of secrets out of whatever ``log`` and the loggers below it write."""
    strike = _StrikeOut(secrets)
    handlers = list(log.handlers)
    for handler in handlers:
        handler.addFilter(strike)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(strike)
