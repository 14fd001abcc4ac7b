"""A check of everything that a node keeps, while it does not run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import attrs
import msgspec

from spear_core.api import (
    MetadataStore,
    ObjectStore,
    StoreMaintenance,
    StoreProblem,
)
from spear_core.config import NodeSettings
from spear_core.errors import (
    SpearError,
    StoreCorruptError,
    StoreFullError,
    StoreInUseError,
)
from spear_core.node._artifact_check import check_artifacts
from spear_core.node._backup import Telling
from spear_core.node._finding import Finding
from spear_core.node._kept_state import check_never_used, check_not_lost
from spear_core.node._restore import ASIDE
from spear_core.node._services import Services
from spear_core.node._state import is_node_id, lock_state, write_atomically
from spear_core.node._stopped import open_services, require_state
from spear_core.node._stores import lasts, tasks_are_durable
from spear_core.node._task_check import check_tasks
from spear_core.node._task_records import FORMAT, FORMAT_KEY, IDENTITY
from spear_core.node.paths import StatePaths
from spear_core.plugins import Owned, Plugins

__all__ = ["StateProblem", "StateReport", "check_state"]

AnyStore = TypeVar("AnyStore", MetadataStore, ObjectStore)
_LEFT = frozenset({"lost+found"})


@attrs.frozen(kw_only=True)
class StateProblem:
    """Something that is not as it should be."""

    where: str
    what: str
    lost: bool = False
    """Data is gone: only a backup has it."""
    repaired: bool = False
    expected: bool = False
    """The end of a node leaves such things behind, and its next start removes them."""


@attrs.frozen(kw_only=True)
class StateReport:
    """What a check has found."""

    state_dir: str
    records: int
    """Keys and objects that were looked at."""
    bytes: int
    """Of values that were compared with their checksums."""
    problems: tuple[StateProblem, ...]
    unchecked: tuple[str, ...]
    """What could not be looked at, and why."""

    @property
    def open(self) -> tuple[StateProblem, ...]:
        """What is wrong still."""
        return tuple(each for each in self.problems if not (each.repaired or each.expected))

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing is any more."""
        return not self.open and not self.unchecked


async def check_state(
    settings: NodeSettings,
    plugins: Plugins,
    paths: StatePaths,
    *,
    repair: bool,
    remove_damaged: bool,
    tell: Telling,
) -> StateReport:
    """Compare everything with everything.

    :param repair: put right what can be without losing anything.
    :param remove_damaged: and remove what is damaged beyond repair.

    **Raises** :exc:`~spear_core.errors.NodeAlreadyRunningError`,
    :exc:`~spear_core.errors.ConfigError` when there is nothing to check.
    """
    require_state(paths)
    with lock_state(paths):
        async with open_services(
            settings, plugins, paths, node_id="fsck", checking=True
        ) as services:
            check = _StateCheck(services, paths, repair=repair, remove_damaged=remove_damaged)
            durable = tasks_are_durable(plugins, settings.spearlet)
            await check.run(tell, durable=durable)
    return StateReport(
        state_dir=str(paths.root),
        records=check.records,
        bytes=check.bytes,
        problems=tuple(check.problems),
        unchecked=tuple(check.unchecked),
    )


class _StateCheck:
    def __init__(
        self, services: Services, paths: StatePaths, *, repair: bool, remove_damaged: bool
    ) -> None:
        self._services = services
        self._paths = paths
        self._repair = repair
        self._remove_damaged = remove_damaged
        self.records = self.bytes = 0
        self.problems: list[StateProblem] = []
        self.unchecked: list[str] = []

    async def run(self, tell: Telling, *, durable: bool) -> None:
        """Look at everything, the parts first and then what one says of another."""
        self._look_at_names()
        tell("reading the metadata")
        chosen = self._services.chosen_metadata_store()
        metadata = await self._open("metadata", chosen, self._services.metadata_store)
        if await self._is_lost(metadata, chosen):
            metadata = None
        tell("reading objects")
        objects = await self._open(
            "objects", self._services.chosen_object_store(), self._services.object_store
        )
        try:
            await self._compare(metadata, objects, tell, durable=durable)
        except SpearError as error:  # a record that cannot be read was found before
            self.unchecked.append(f"what belongs to what: {error.message}")

    async def _compare(
        self,
        metadata: MetadataStore | None,
        objects: ObjectStore | None,
        tell: Telling,
        *,
        durable: bool,
    ) -> None:
        if metadata is not None:
            await self._look_at_node(metadata)
        else:
            self._look_at_id("")
            if self._paths.store.exists():
                self.unchecked.append("artifacts and tasks, for the metadata cannot be read")
                return
        tell("comparing artifacts with their code")
        findings, deployed = await check_artifacts(self._paths, metadata)
        await self._settle(findings)
        if metadata is None or not durable:
            return
        if objects is None:
            self.unchecked.append("inputs and outputs of tasks, for objects cannot be read")
            return
        tell("comparing tasks with their inputs and outputs")
        await self._settle(await check_tasks(metadata, objects, deployed=deployed))

    # Files ---------------------------------------------------------------------------------------

    def _look_at_names(self) -> None:
        for path in sorted(self._paths.root.iterdir()):
            known = path.name in self._paths.names | _LEFT or path.name.startswith(ASIDE)
            if not known and path.is_socket():
                what = "is the door of a node that was killed"
                self._found(f"the socket {path}", what, expected=True)
            elif not known:
                self._found(f"the file {path}", "is none of the node's; move it away")
        if self._paths.restoring.exists():
            self._found(
                f"the directory {self._paths.restoring}",
                "is left from a restore that has not come to its end; run `spear restore` again",
                lost=True,
            )

    def _look_at_id(self, known: str) -> None:
        """:param known: what the metadata store says."""
        path = self._paths.node_id
        try:
            found = path.read_text("ascii").strip()
        except FileNotFoundError:
            if not known:
                return  # made at the first start
            found = ""
        except (OSError, UnicodeDecodeError):
            found = ""
        if is_node_id(found) and known in ("", found):
            return
        what = f"says {found!r}, and the metadata {known!r}" if known else "is no node id"
        if known and self._repair:
            write_atomically(path, known.encode() + b"\n")
        self._found(f"the file {path}", what, repaired=bool(known) and self._repair)

    # Stores --------------------------------------------------------------------------------------

    async def _open(
        self, what: str, owned: Owned[Any], open_: Callable[[], Awaitable[AnyStore]]
    ) -> AnyStore | None:
        """A store, which was looked at; ``None``: there is none, or it cannot be opened."""
        if not lasts(owned.spec) or not (self._paths.plugins / owned.plugin_name).exists():
            return None  # to open one that nobody has used would make it
        try:
            store = await open_()
            await self._check_store(what, owned.plugin_name, store)
        except (StoreFullError, StoreInUseError) as error:  # says nothing of what is in it
            self.unchecked.append(f"{what}: {error.message}")
            return None
        except SpearError as error:
            self._found(f"the {what}", error.message, lost=True)
            return None
        return store

    async def _is_lost(self, metadata: MetadataStore | None, owned: Owned[Any]) -> bool:
        """Whether what the node has kept is not there at all."""
        try:
            if metadata is not None:
                await check_not_lost(metadata, self._paths, owned.spec.name)
            elif not (self._paths.plugins / owned.plugin_name).exists():
                check_never_used(self._paths, owned.spec.name)
        except StoreCorruptError as error:
            self._found("the metadata", error.message, lost=True)
            return True
        return False

    async def _check_store(self, what: str, plugin: str, store: object) -> None:
        if not isinstance(store, StoreMaintenance):
            self.unchecked.append(f"{what}: the plugin {plugin} has no check")
            return
        report = await store.check()
        damaged = any(problem.lost for problem in report.problems)
        if self._repair and report.problems and (self._remove_damaged or not damaged):
            report = await store.check(repair=True)
        self.records += report.records
        self.bytes += report.bytes
        for problem in report.problems:
            self._take(problem)

    def _take(self, problem: StoreProblem) -> None:
        self._found(problem.where, problem.what, lost=problem.lost, repaired=problem.repaired)

    async def _look_at_node(self, metadata: MetadataStore) -> None:
        found = await metadata.get(FORMAT_KEY)
        if found is not None and (not found.value.isdigit() or int(found.value) > FORMAT):
            self._found(
                f"metadata key {FORMAT_KEY!r}",
                f"says that a newer SPEAR has written the records ({found.value!r}, known here: "
                f"{FORMAT})",
                lost=not found.value.isdigit(),
            )
        item, known = await metadata.get(IDENTITY), ""
        if item is not None:
            try:
                known = str(msgspec.json.decode(item.value)["node_id"])
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                self._found(f"metadata key {IDENTITY!r}", "is no identity of a node", lost=True)
        self._look_at_id(known)

    # Findings ------------------------------------------------------------------------------------

    async def _settle(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            repaired = False
            what = finding.what
            if self._repair and finding.repair is not None:
                try:
                    await finding.repair()
                    repaired = True
                except SpearError as error:
                    what = f"{what}; it stays: {error.message}"
            self._found(
                finding.where,
                what,
                lost=finding.lost,
                repaired=repaired,
                expected=finding.expected,
            )

    def _found(
        self,
        where: str,
        what: str,
        *,
        lost: bool = False,
        repaired: bool = False,
        expected: bool = False,
    ) -> None:
        self.problems.append(
            StateProblem(where=where, what=what, lost=lost, repaired=repaired, expected=expected)
        )
