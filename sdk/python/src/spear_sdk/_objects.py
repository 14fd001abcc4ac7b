"""``ctx.objects``: what functions share through their node."""

from __future__ import annotations

from spear_sdk import _object_steps as steps
from spear_sdk._errors import HostcallError
from spear_sdk._object_files import ObjectReader, ObjectWriter
from spear_sdk._object_steps import Check, Delete, Put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias, TypedDict, Unpack

    from spear_sdk._context import Context
    from spear_sdk._object_steps import Steps, T
    from spear_sdk._stored import ObjectStat, StoredObject

    _List: TypeAlias = list

    class PutOptions(TypedDict, total=False):
        """How an object is written."""

        expect: int | str | None
        """The version, or the sha256, that it must have now; 0: it must not exist."""
        content_type: str
        ttl: float | None
        """Seconds until it is collected, if nothing keeps it then."""
        hashed: bool
        """Whether the node computes its sha256, which takes longer than all the rest."""


__all__ = ["Check", "Delete", "ObjectReader", "ObjectWriter", "Objects", "Put"]


class Objects:
    """The objects of the node that this artifact may touch.

    A key that begins with ``/`` is written out whole (``/producer/frame``), any other is this
    artifact's own. Each method has a twin for async code whose name begins with ``a``.

    They raise HostcallError; of that ObjectNotFoundError, ObjectConflictError (with ``current``),
    ObjectForbiddenError and StoreFullError; and TaskCancelledError.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    # ---- values

    def put(self, key: str, data: object, **options: Unpack[PutOptions]) -> ObjectStat:
        """Write a new version.

        :param data: bytes or anything with a buffer: an array, a numpy array, a mapped file. A
            large one is copied once, into memory that the node and all readers share, or through
            a pipe to where the node keeps it.
        :param options: ``expect``, ``content_type``, ``ttl``, ``hashed``.

        Raises: TypeError for text, MemoryError.
        """
        return self._run(steps.put(key, data, passes_fds=self._passes_fds, **options))

    async def aput(self, key: str, data: object, **options: Unpack[PutOptions]) -> ObjectStat:
        """:meth:`put` for async code."""
        return await self._arun(steps.put(key, data, passes_fds=self._passes_fds, **options))

    def get(self, key: str, *, version: int | None = None) -> StoredObject:
        """The current version, or the one that is named, if that is still there.

        A large one is mapped, not copied; :class:`StoredObject` says what to do with it.
        """
        return self._run(steps.get(key, version=version))

    async def aget(self, key: str, *, version: int | None = None) -> StoredObject:
        """:meth:`get` for async code."""
        return await self._arun(steps.get(key, version=version))

    def create(
        self, key: str, *, size: int | None = None, **options: Unpack[PutOptions]
    ) -> ObjectWriter:
        """Write a new version piece by piece, for values that are larger than memory::

            with ctx.objects.create("report") as writer:
                writer.write(b"…")

        It is there when the block has ended; if it ends by an exception, nothing was written. For
        async code: ``async with`` and ``await writer.awrite(…)``.

        :param size: how many bytes it will be, exactly; what has no room is refused at once then.
        """
        return ObjectWriter(self, key, size, options)

    def open(self, key: str, *, version: int | None = None) -> ObjectReader:
        """Read a version piece by piece, for values that are larger than memory::

            with ctx.objects.open("report") as reader:
                for piece in reader:
                    …

        It stays the same version whatever is written meanwhile. For async code: ``async with``,
        ``async for`` and ``await reader.aread(…)``.
        """
        return ObjectReader(self, key, version)

    def transact(self, *operations: Put | Delete | Check) -> _List[ObjectStat | None]:
        """Do all of it, or nothing, and nothing else in between.

        Returns what each object is afterwards; None where there is none. The values together have
        at most 60 MiB.
        """
        return self._run(steps.transact(operations))

    async def atransact(self, *operations: Put | Delete | Check) -> _List[ObjectStat | None]:
        """:meth:`transact` for async code."""
        return await self._arun(steps.transact(operations))

    # ---- all but values

    def stat(self, key: str) -> ObjectStat:
        """What is known about the current version."""
        return self._run(steps.one("stat", key))  # type: ignore[no-any-return]

    async def astat(self, key: str) -> ObjectStat:
        """:meth:`stat` for async code."""
        return await self._arun(steps.one("stat", key))

    def list(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> _List[ObjectStat]:
        """The objects whose keys begin with ``prefix`` and come after ``after``, sorted."""
        return self._run(steps.listed(prefix, after, limit))

    async def alist(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> _List[ObjectStat]:
        """:meth:`list` for async code."""
        return await self._arun(steps.listed(prefix, after, limit))

    def delete(self, key: str, *, expect: int | str | None = None) -> None:
        """Remove an object, whatever its references and pin; who has it mapped keeps it."""
        self._run(steps.one("delete", key, expect=expect))

    async def adelete(self, key: str, *, expect: int | str | None = None) -> None:
        """:meth:`delete` for async code."""
        await self._arun(steps.one("delete", key, expect=expect))

    def add_ref(self, key: str) -> ObjectStat:
        """One reference more, in the name of this task: it ends with it."""
        return self._run(steps.one("add_ref", key))  # type: ignore[no-any-return]

    async def aadd_ref(self, key: str) -> ObjectStat:
        """:meth:`add_ref` for async code."""
        return await self._arun(steps.one("add_ref", key))

    def remove_ref(self, key: str) -> ObjectStat | None:
        """One reference of this task less; None when that collected the object."""
        return self._run(steps.one("remove_ref", key))  # type: ignore[no-any-return]

    async def aremove_ref(self, key: str) -> ObjectStat | None:
        """:meth:`remove_ref` for async code."""
        return await self._arun(steps.one("remove_ref", key))

    def pin(self, key: str) -> ObjectStat:
        """Keep it whatever its references, until it is unpinned or deleted."""
        return self._run(steps.one("pin", key))  # type: ignore[no-any-return]

    async def apin(self, key: str) -> ObjectStat:
        """:meth:`pin` for async code."""
        return await self._arun(steps.one("pin", key))

    def unpin(self, key: str) -> ObjectStat | None:
        """Undo :meth:`pin`; None when that collected the object."""
        return self._run(steps.one("unpin", key))  # type: ignore[no-any-return]

    async def aunpin(self, key: str) -> ObjectStat | None:
        """:meth:`unpin` for async code."""
        return await self._arun(steps.one("unpin", key))

    # ---- the way to the node

    @property
    def _passes_fds(self) -> bool:
        return self._context._host.passes_fds

    def _run(self, asking: Steps[T]) -> T:
        context = self._context
        tell: Any = asking.send
        answer: Any = None
        try:
            while True:
                name, payload, fd = tell(answer)
                context.raise_if_cancelled()
                try:
                    answer = context._host.exchange(context, name, payload, fd)
                    tell = asking.send
                except HostcallError as error:
                    tell, answer = asking.throw, error
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            asking.close()

    async def _arun(self, asking: Steps[T]) -> T:
        context = self._context
        tell: Any = asking.send
        answer: Any = None
        try:
            while True:
                name, payload, fd = tell(answer)
                context.raise_if_cancelled()
                try:
                    answer = await context._host.aexchange(context, name, payload, fd)
                    tell = asking.send
                except HostcallError as error:
                    tell, answer = asking.throw, error
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            asking.close()
