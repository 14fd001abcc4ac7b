"""What a node keeps for life in its metadata store, if that lasts: who it is, what is deployed.

A node whose store does not last keeps the same in files. One that has begun to use a store says so
in ``node.store``, so that it never starts on what is beside when the plugin is missing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from logging import Logger

import attrs
import msgspec

from spear_core.api import MetadataStore
from spear_core.config import NodeSettings
from spear_core.errors import ConfigError, StoreCorruptError, StoreFormatError
from spear_core.node._names import FileNames, NameRecords, open_store_names
from spear_core.node._services import Services
from spear_core.node._state import write_atomically
from spear_core.node._stores import AUTO, chosen_metadata_store, lasts
from spear_core.node._task_records import FORMAT, FORMAT_KEY, IDENTITY
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["KeptState", "check_never_used", "check_not_lost", "check_store", "open_kept_state"]


@attrs.frozen(kw_only=True)
class KeptState:
    """What there is."""

    node_id: str
    names: NameRecords
    store: MetadataStore | None = None
    """``None``: it does not last."""
    complete: bool = True
    """False when another store has more, which this node was told not to use."""


def check_store(plugins: Plugins, settings: NodeSettings, paths: StatePaths, log: Logger) -> bool:
    """Whether the node's metadata store lasts.

    :raises ConfigError: the state directory is kept in a store that is not there, and nobody has
        said to do without; or ``stores.metadata`` names one that is not there.
    """
    chosen = chosen_metadata_store(plugins, settings.spearlet.stores).spec
    used = _store_used(paths)
    if used not in ("", chosen.name):
        what = f"the tasks and artifacts of {paths.root} are in the metadata store {used!r}"
        if settings.spearlet.stores.metadata == AUTO:
            reasons = "".join(f"; {reason}" for reason in plugins.failures)
            raise ConfigError(
                f"{what}, which no plugin provides now{reasons}; install the plugin again "
                "(spear-store-lmdb provides 'lmdb'), or name another store under [stores], "
                "metadata, to do without them"
            )
        log.warning("%s, and are not used: stores.metadata is %r", what, chosen.name)
    return lasts(chosen)


def _store_used(paths: StatePaths) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return paths.store.read_text("ascii").strip()
    return ""


async def open_kept_state(
    services: Services,
    paths: StatePaths,
    *,
    lasting: bool,
    node_id: str,
    log: Logger,
) -> KeptState:
    """Open the store and see what is in it; what files had until now goes there.

    :param lasting: without a store that lasts, files are used.
    :param node_id: what a file says, or has just been made.

    **Raises** :exc:`~spear_core.errors.StoreError`.
    """
    files = FileNames(paths.artifacts / "names")
    if not lasting:
        return KeptState(node_id=node_id, names=files, complete=not _store_used(paths))
    name = services.metadata_store_name
    store = await services.metadata_store()
    await check_not_lost(store, paths, name)
    await _check_format(store)
    known = await _identity(store, node_id)
    if known != node_id:
        write_atomically(paths.node_id, known.encode() + b"\n")
    if _store_used(paths) != name:
        write_atomically(paths.store, name.encode() + b"\n")
    names = await open_store_names(store, files, warn=log.warning)
    return KeptState(node_id=known, names=names, store=store)


async def check_not_lost(store: MetadataStore, paths: StatePaths, name: str) -> None:
    """Tell a store that is new from one whose files are not where they were. A node that took the
    one for the other would remove all code, for no artifact would refer to it.

    :raises StoreCorruptError: the node has used it, and it is empty.
    """
    if await store.get(FORMAT_KEY) is None:
        check_never_used(paths, name)


def check_never_used(paths: StatePaths, name: str) -> None:
    """:raises StoreCorruptError: this store, which has nothing in it, should have."""
    if _store_used(paths) == name:
        raise StoreCorruptError(
            f"the metadata store {name!r} of {paths.root} is empty, and {paths.store.name} says "
            "that tasks and artifacts are in it; if a volume is not mounted, mount it, else "
            f"restore a backup (or remove {paths.store} to begin with nothing)"
        )


async def _check_format(store: MetadataStore) -> None:
    """Refuse what a newer node has written, and mark what is new as ours."""
    found = await store.get(FORMAT_KEY)
    if found is None:
        await store.put(FORMAT_KEY, b"%d" % FORMAT)
    elif not found.value.isdigit() or int(found.value) > FORMAT:
        raise StoreFormatError(
            f"the node's records have the format {found.value.decode(errors='replace')}, and this "
            f"version of SPEAR knows {FORMAT} at most; start a newer one on this state directory"
        )


async def _identity(store: MetadataStore, node_id: str) -> str:
    """Who the node is: what the store says, whatever has become of the file."""
    found = await store.get(IDENTITY)
    if found is None:
        value = msgspec.json.encode({"node_id": node_id, "since": time.time()})
        await store.put(IDENTITY, value)
        return node_id
    try:
        return msgspec.json.decode(found.value, type=_Identity).node_id
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StoreCorruptError(f"the record of the node's identity is damaged: {error}") from error


class _Identity(msgspec.Struct):
    node_id: str
