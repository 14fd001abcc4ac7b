"""Who a client is, as far as its certificate says."""

from __future__ import annotations

from spear_transport_grpc._bridge import ServerCall

__all__ = ["caller_of"]

_NAMES = ("x509_subject_alternative_name", "x509_common_name")


def caller_of(call: ServerCall) -> str:
    """The first name in the client's certificate: an alternative name, else its common name; empty
    when it showed none."""
    identity = call.identity()
    if not identity:
        return ""
    for name in _NAMES:
        for value in identity.get(name, ()):
            return value.decode("utf-8", "replace")
    return ""
