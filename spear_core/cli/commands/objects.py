"""``spear objects``."""

from __future__ import annotations

import mimetypes
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from spear_core.api import OCTETS, NodeApi, ObjectHolder, ObjectPage, ObjectStat
from spear_core.cli._client import ask, talk
from spear_core.cli._exit_codes import OK, exit_code
from spear_core.cli._interrupt import Interrupt
from spear_core.cli._listing import Column, age, duration, plain, print_json, show, size
from spear_core.cli._object_files import Put, copy_to_stdout, get_into_file
from spear_core.cli._options import DURATION, Options, common_options, json_option, pass_options
from spear_core.cli._tasks import leave
from spear_core.cli._terminal import OutputFailedError, error, note, one_line, write_line
from spear_core.errors import NodeUnreachableError, ObjectNotFoundError

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS: tuple[Column[ObjectStat], ...] = (
    Column("KEY", lambda o: o.key),
    Column("SIZE", lambda o: size(o.size), right=True),
    Column("VERSION", lambda o: str(o.version), right=True),
    Column("AGE", lambda o: age(o.updated_at), right=True),
    Column("REFS", lambda o: str(o.refs), right=True),
    Column("PINNED", lambda o: "*" if o.pinned else ""),
    Column("TYPE", lambda o: o.content_type),
)
_MOST_VERSIONS = 10**18 - 1
"""What a number on a command line may be: enough for ever, and every wire takes it."""

_HOLDER_COLUMNS: tuple[Column[ObjectHolder], ...] = (
    Column("HOLDER", lambda h: h.name or "-"),
    Column("REFS", lambda h: str(h.refs), right=True),
    Column("SILENT FOR AT MOST", lambda h: duration(h.ttl), right=True),
)


@click.group("objects")
def command() -> None:
    """Put objects on a node, get them, and see who keeps them.

    \b
    spear objects put camera/frame frame.png
    spear objects get camera/frame -o copy.png
    spear objects ls camera/
    spear invoke detector --input-object camera/frame
    """


def _expected(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    if value is None or re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return value and value.lower()
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(
            "write a version (0: there must be none) or a sha256 in 64 hex digits", ctx, param
        )
    return int(value)


def _expect_option(function: F) -> F:
    return click.option(
        "--expect",
        metavar="VERSION",
        callback=_expected,
        help="Only if this is the current version, or its sha256; 0: only if there is none.",
    )(function)


def _print_stat(stat: ObjectStat, *, as_json: bool) -> None:
    if as_json:
        print_json(stat)
    else:
        write_line(one_line(f"{stat.key} is version {stat.version}"))


@command.command("put")
@click.argument("key")
@click.argument(
    "file", metavar="FILE", type=click.Path(allow_dash=True, exists=True, dir_okay=False)
)
@_expect_option
@click.option("--ttl", type=DURATION, metavar="TIME", help="Collect it after this: 30s, 2h.")
@click.option("--content-type", metavar="TYPE", help="What it is. Default: by the file's suffix.")
@click.option(
    "--no-hash", is_flag=True, help="Compute no sha256: quicker, and nobody can check it."
)
@json_option
@common_options(node=True)
@pass_options
def put(
    options: Options,
    /,
    key: str,
    file: str,
    expect: int | str | None,
    ttl: float | None,
    content_type: str | None,
    no_hash: bool,
    as_json: bool,
) -> None:
    """Write a file (`-`: stdin) as the next version of an object, however large.

    Others see it when it is whole; Ctrl-C leaves the object as it was.

    \b
    spear objects put camera/frame frame.png
    tar c results | spear objects put backup/results.tar - --expect 0
    """

    async def work(api: NodeApi, interrupt: Interrupt) -> ObjectStat | None:
        put = Put(api, key, file)
        with interrupt.scope:
            await put.run(
                expect=expect,
                ttl=ttl,
                content_type=content_type or mimetypes.guess_type(file)[0] or OCTETS,
                hashed=not no_hash,
            )
        if interrupt.happened and put.stat is not None:
            note(f"interrupted too late: {key} is version {put.stat.version} already")
        elif interrupt.happened:
            note("interrupted; nothing was written")
        return put.stat

    stat = talk(options, work)
    assert stat is not None
    _print_stat(stat, as_json=as_json)


@command.command("get")
@click.argument("key")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Default: stdout (`-`).",
)
@click.option(
    "--version",
    type=click.IntRange(min=1, max=_MOST_VERSIONS),
    metavar="N",
    help="Default: the current.",
)
@click.option(
    "--resume", is_flag=True, help="Go on where an earlier `get -o FILE --resume` was cut off."
)
@common_options(node=True)
@pass_options
def get(
    options: Options, /, key: str, output: Path | None, version: int | None, resume: bool
) -> None:
    """Read an object, however large.

    With -o the file is there only when it is whole, and its checksum has been compared. An older
    version can be had as long as somebody holds it.

    \b
    spear objects get camera/frame -o frame.png
    spear objects get backup/results.tar | tar x
    """
    if output == Path("-"):
        output = None
    if resume and output is None:
        raise click.UsageError("--resume needs --output: what would it go on with?")

    async def work(api: NodeApi, interrupt: Interrupt) -> None:
        with interrupt.scope:
            if output is None:
                await copy_to_stdout(api, key, version)
            else:
                with _saying_what_is_kept(resume=resume):
                    await get_into_file(api, key, output, version=version, resume=resume)
        if interrupt.happened and output is not None:
            kept = "; --resume goes on from here" if resume else "; nothing was written"
            note(f"interrupted{kept}")

    talk(options, work)


@contextmanager
def _saying_what_is_kept(*, resume: bool) -> Iterator[None]:
    """Of a file that cannot be written to its end, for a reason that may pass."""
    try:
        yield
    except (NodeUnreachableError, OutputFailedError):
        if resume:
            note("what has come is kept; the same command goes on from there")
        else:
            note("nothing was kept; with --resume what has come would be")
        raise


@command.command("ls")
@click.argument("prefix", default="")
@click.option("--after", metavar="KEY", help="Begin after this key.")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many, by key.",
)
@json_option
@common_options(node=True)
@pass_options
def ls(options: Options, prefix: str, after: str | None, limit: int, as_json: bool) -> None:
    """List objects whose key begins with PREFIX.

    The node's own, such as results of tasks, are listed only when asked for.

    \b
    spear objects ls
    spear objects ls camera/ --json
    spear objects ls .spear/
    """

    async def pages(api: NodeApi) -> ObjectPage:
        found: list[ObjectStat] = []
        start = after
        while True:
            page = await api.objects.list(prefix, after=start, limit=min(_PAGE, limit - len(found)))
            found += page.objects
            start = page.next_key
            if start is None or len(found) >= limit:
                return ObjectPage(objects=tuple(found), next_key=start, revision=page.revision)

    page = ask(options, pages)
    nothing = f"there are no objects that begin with {prefix!r}" if prefix else "no objects yet"
    show(page.objects, _COLUMNS, as_json=as_json, nothing=nothing)
    if page.next_key is not None:
        last = one_line(shlex.quote(page.objects[-1].key))
        note(f"there are more: --after {last} goes on, --limit shows more")


_PAGE = 1000


@command.command("stat")
@click.argument("key")
@json_option
@common_options(node=True)
@pass_options
def stat(options: Options, key: str, as_json: bool) -> None:
    """Show everything about an object but its value."""
    found = ask(options, lambda api: api.objects.stat(key))
    if as_json:
        print_json(found)
        return
    facts: dict[str, str] = {
        **{name: str(value) for name, value in plain(found).items() if value not in (None, "")},
        "size": f"{found.size} ({size(found.size)})",
        "created_at": f"{age(found.created_at)} ago",
        "updated_at": f"{age(found.updated_at)} ago",
        "pinned": "yes" if found.pinned else "no",
    }
    if found.expires_at is not None:
        facts["expires_at"] = f"in {duration(max(0.0, -_seconds_since(found.expires_at)))}"
    for name, value in facts.items():
        write_line(one_line(f"{name:<14} {value}"))


def _seconds_since(moment: float) -> float:
    import time

    return time.time() - moment


@command.command("rm")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_expect_option
@common_options(node=True)
@pass_options
def rm(options: Options, keys: Sequence[str], expect: int | str | None) -> None:
    """Delete objects, whatever their references and pins.

    Who is reading one reads on to its end. One that is not there does not keep the others.
    """
    if expect is not None and len(keys) > 1:
        raise click.UsageError("--expect is for one object at a time")

    async def delete(api: NodeApi) -> int:
        code = OK
        for key in keys:
            try:
                await api.objects.delete(key, expect=expect)
            except ObjectNotFoundError as exc:
                error(exc.message)
                code = exit_code(exc.code)
                continue
            write_line(one_line(f"deleted {key}"))
        return code

    leave(ask(options, delete))


@command.command("pin")
@click.argument("key")
@common_options(node=True)
@pass_options
def pin(options: Options, key: str) -> None:
    """Keep an object whatever its references."""
    ask(options, lambda api: api.objects.pin(key))
    write_line(one_line(f"{key} is pinned"))


@command.command("unpin")
@click.argument("key")
@common_options(node=True)
@pass_options
def unpin(options: Options, key: str) -> None:
    """Undo `pin`; an object without references is collected then."""
    left = ask(options, lambda api: api.objects.unpin(key))
    what = "is not pinned any more" if left is not None else "had no references, and is collected"
    write_line(one_line(f"{key} {what}"))


@command.command("holders")
@click.argument("key")
@json_option
@common_options(node=True)
@pass_options
def holders(options: Options, key: str, as_json: bool) -> None:
    """Show who keeps an object alive by references.

    A task that runs is task/TASK. Somebody with a time in the last column is let go when he has
    not been heard of for so long.
    """
    found = ask(options, lambda api: api.objects.holders(key))
    show(found, _HOLDER_COLUMNS, as_json=as_json, nothing="nobody refers to it")


def _holder_option(function: F) -> F:
    return click.option(
        "--holder", default="", metavar="NAME", help="In whose name. Default: nobody's."
    )(function)


@command.command("ref")
@click.argument("key")
@_holder_option
@common_options(node=True)
@pass_options
def ref(options: Options, key: str, holder: str) -> None:
    """Take a reference to an object.

    From its first reference on, an object lives for as long as it has one, or is pinned.
    """
    found = ask(options, lambda api: api.objects.add_ref(key, holder=holder))
    write_line(one_line(f"{key} has {found.refs} reference{'' if found.refs == 1 else 's'}"))


@command.command("unref")
@click.argument("key")
@_holder_option
@common_options(node=True)
@pass_options
def unref(options: Options, key: str, holder: str) -> None:
    """Give a reference back; with the last one the object is collected, unless it is pinned."""
    left = ask(options, lambda api: api.objects.remove_ref(key, holder=holder))
    if left is None:
        write_line(one_line(f"{key} had no other reference, and is collected"))
    else:
        write_line(one_line(f"{key} has {left.refs} reference{'' if left.refs == 1 else 's'}"))


@command.command("df")
@json_option
@common_options(node=True)
@pass_options
def df(options: Options, as_json: bool) -> None:
    """Show how much is in the node's store, and how much may be."""
    found = ask(options, lambda api: api.objects.usage())
    if as_json:
        print_json(found)
        return
    share = found.bytes / found.limit_bytes if found.limit_bytes else 0.0
    count = f"{found.objects} object{'' if found.objects == 1 else 's'}"
    write_line(f"{count}, {size(found.bytes)} of {size(found.limit_bytes)} ({share:.0%})")
