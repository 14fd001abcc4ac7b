"""Parts of which stores are made, for the built-in ones and for plugins.

What every store has to do in the same way: checking what callers pass, telling watchers, and
keeping deadlines.
"""

from spear_core.stores._checks import (
    MAX_CHANGES,
    MAX_KEY,
    MAX_METADATA_VALUE,
    check_holder,
    check_limit,
    check_metadata_key,
    check_object_key,
    check_operations,
    check_transaction,
    check_ttl,
    compare_holds,
    object_as_expected,
    object_conflict,
    past_revision,
)
from spear_core.stores._deadlines import Deadlines
from spear_core.stores._history import HistoryChannel, News

__all__ = [
    "MAX_CHANGES",
    "MAX_KEY",
    "MAX_METADATA_VALUE",
    "Deadlines",
    "HistoryChannel",
    "News",
    "check_holder",
    "check_limit",
    "check_metadata_key",
    "check_object_key",
    "check_operations",
    "check_transaction",
    "check_ttl",
    "compare_holds",
    "object_as_expected",
    "object_conflict",
    "past_revision",
]
