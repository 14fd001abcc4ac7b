"""Leaving an artifact alone whose instances keep breaking."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from spear_core.api import Artifact, ExecutionConfig
from spear_core.errors import ChannelError, CircuitOpenError, InstanceError, SpearError

__all__ = ["Circuits"]

_Key = tuple[str, int]


@attrs.define(eq=False)
class _Circuit:
    failures: int = 0
    """In a row."""
    open_until: float = 0.0
    last: str = ""
    probing: bool = False


class Circuits:
    """One circuit for each version of an artifact that has failed lately.

    *Closed*, it counts executions that broke in a row; ``circuit_failures`` of them open it.
    *Open*, everything of that artifact fails at once. After ``circuit_open_ms`` one execution is
    let through: if it ends, the circuit is closed, if it breaks, open again.
    """

    def __init__(self, config: ExecutionConfig, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._circuits: dict[_Key, _Circuit] = {}
        self.reconfigure(config)

    def reconfigure(self, config: ExecutionConfig) -> None:
        """Take other limits, for failures from now on."""
        self._most = config.circuit_failures
        self._open_s = config.circuit_open_ms / 1000

    def check(self, artifact: Artifact) -> None:
        """Refuse a task that could not run. :raises CircuitOpenError: for how long."""
        if not self._circuits:
            return
        circuit = self._circuits.get((artifact.name, artifact.version))
        if circuit is not None and circuit.open_until:
            self._check(artifact, circuit)

    def enter(self, artifact: Artifact) -> None:
        """An execution begins; :meth:`succeeded`, :meth:`failed` or :meth:`left` must follow.

        :raises CircuitOpenError: not now, or somebody else is finding out just now.
        """
        if not self._circuits:
            return
        circuit = self._circuits.get((artifact.name, artifact.version))
        if circuit is not None and circuit.open_until:
            self._check(artifact, circuit)
            circuit.probing = True

    def _check(self, artifact: Artifact, circuit: _Circuit) -> None:
        left = circuit.open_until - self._clock()
        if left > 0 or circuit.probing:
            left = max(left, 0.1)
            raise CircuitOpenError(
                f"{artifact.ref} broke {circuit.failures} times in a row, the last time with: "
                f"{circuit.last}; try again in {left:.2g} s, when one execution is let through "
                "(execution.circuit_failures, execution.circuit_open_ms)",
                retry_after=left,
            )

    def succeeded(self, artifact: Artifact) -> None:
        """An execution ended, in whatever way its guest wanted."""
        if self._circuits:
            self._circuits.pop((artifact.name, artifact.version), None)

    def left(self, artifact: Artifact) -> None:
        """An execution was cancelled, or ended by something that says nothing of the artifact."""
        circuit = self._circuits.get((artifact.name, artifact.version))
        if circuit is not None:
            circuit.probing = False

    def failed(self, artifact: Artifact, error: SpearError) -> bool:
        """An execution broke. :return: the circuit is open because of it."""
        if not self._most or not _is_breakage(error):
            self.left(artifact)
            return False
        circuit = self._circuits.setdefault((artifact.name, artifact.version), _Circuit())
        circuit.failures += 1
        circuit.last = error.message
        if circuit.failures < self._most or (circuit.open_until and not circuit.probing):
            return False
        circuit.probing = False
        circuit.open_until = self._clock() + self._open_s
        return True


def _is_breakage(error: SpearError) -> bool:
    """Whether an error tells of a broken instance, not of a refusal."""
    return isinstance(error, InstanceError | ChannelError) or error.code == "internal"
