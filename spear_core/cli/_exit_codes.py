"""What ``spear`` exits with (``docs/cli.md`` has the same table for people)."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "BROKEN_PIPE",
    "EXIT_CODES",
    "FAILED",
    "INTERNAL",
    "INTERRUPTED",
    "OK",
    "PRECONDITION",
    "TIMED_OUT",
    "USAGE",
    "exit_code",
]

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNAVAILABLE = 4
EXHAUSTED = 5
PRECONDITION = 6
INTERNAL = 7
TIMED_OUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES: Mapping[str, int] = {
    "aborted": PRECONDITION,
    "already_exists": PRECONDITION,
    "cancelled": INTERRUPTED,
    "data_loss": INTERNAL,
    "deadline_exceeded": TIMED_OUT,
    "failed_precondition": PRECONDITION,
    "internal": INTERNAL,
    "invalid_argument": USAGE,
    "not_found": NOT_FOUND,
    "out_of_range": USAGE,
    "permission_denied": PRECONDITION,
    "resource_exhausted": EXHAUSTED,
    "unauthenticated": PRECONDITION,
    "unavailable": UNAVAILABLE,
    "unimplemented": USAGE,
    "unknown": INTERNAL,
}
"""The ``code`` of an error that kept a command from doing its work → exit code. A task that ran
and failed is :data:`FAILED`, whatever its own code."""


def exit_code(code: str) -> int:
    """For an error's ``code``; one that this version does not know is an internal error."""
    return EXIT_CODES.get(code, INTERNAL)
