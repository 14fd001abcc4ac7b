"""Parts of which stores are made, for the built-in ones and for plugins.

What every store has to do in the same way: checking what callers pass, telling watchers, keeping
deadlines and old versions, taking values piece by piece, and copying large ones.
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
    check_size,
    check_transaction,
    check_ttl,
    compare_holds,
    object_as_expected,
    object_conflict,
    past_revision,
    version_gone,
)
from spear_core.stores._copying import copy_to
from spear_core.stores._deadlines import Deadlines
from spear_core.stores._disk import sync
from spear_core.stores._hashing import hashed_beside
from spear_core.stores._history import History, HistoryChannel, News
from spear_core.stores._idle import IdleSweep
from spear_core.stores._piping import PipeTaker
from spear_core.stores._sealed import SEALS, check_sealed
from spear_core.stores._versions import Picture, Versions
from spear_core.stores._writing import PieceWriter

__all__ = [
    "MAX_CHANGES",
    "MAX_KEY",
    "MAX_METADATA_VALUE",
    "SEALS",
    "Deadlines",
    "History",
    "HistoryChannel",
    "IdleSweep",
    "News",
    "Picture",
    "PieceWriter",
    "PipeTaker",
    "Versions",
    "check_holder",
    "check_limit",
    "check_metadata_key",
    "check_object_key",
    "check_operations",
    "check_sealed",
    "check_size",
    "check_transaction",
    "check_ttl",
    "compare_holds",
    "copy_to",
    "hashed_beside",
    "object_as_expected",
    "object_conflict",
    "past_revision",
    "sync",
    "version_gone",
]
