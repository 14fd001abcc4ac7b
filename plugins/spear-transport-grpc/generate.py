"""Make the Python modules of ``proto/`` and ``docs/api.md``; ``--check`` only says what differs.

The code is made by the oldest protoc that we support the output of, in an environment of its own
(by ``uv``), so that every protobuf from then on can load it, and so that everybody gets the same
bytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTO = HERE / "proto"
PACKAGE = "spear_transport_grpc._protos"
TARGET = HERE / "src" / Path(*PACKAGE.split("."))
API_PAGE = HERE.parent.parent / "docs" / "api.md"
TOOLS = ("grpcio-tools==1.62.3", "setuptools<80")


def protoc(out: Path) -> None:
    """Run it over every file of ``proto/``."""
    files = [str(path.relative_to(PROTO)) for path in sorted(PROTO.rglob("*.proto"))]
    needs = [option for tool in TOOLS for option in ("--with", tool)]
    subprocess.run(
        [
            *("uv", "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable),
            *(*needs, "python", "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{PROTO}"),
            *(f"--python_out={out}", f"--pyi_out={out}"),
            *(f"--descriptor_set_out={out}/all.binpb", "--include_source_info", *files),
        ],
        check=True,
    )


def relocated(text: str) -> str:
    """A module with its imports inside our package and its descriptors in our own pool."""
    names = "|".join(sorted({path.name for path in PROTO.iterdir()}))
    text = re.sub(
        rf"^from ((?:{names})(?!\.protobuf)[\w.]*) import", rf"from {PACKAGE}.\1 import", text,
        flags=re.MULTILINE,
    )  # fmt: skip
    text = text.replace("_descriptor_pool.Default()", "_pool.POOL")
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool\n",
        f"from {PACKAGE} import _pool\n",
    )
    text = re.sub(r"(DESCRIPTOR, ')", rf"\1{PACKAGE}.", text)
    text = re.sub(r"_Mapping\b(?!\[|,)", "_Mapping[str, _Any]", text)
    return text.replace("from typing import ClassVar", "from typing import Any as _Any, ClassVar")


def modules(out: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of the package that is generated, and its content."""
    folders = set()
    for path in sorted([*out.rglob("*_pb2.py"), *out.rglob("*_pb2.pyi")]):
        where = path.relative_to(out)
        folders.update(parent for parent in where.parents if parent != Path())
        yield TARGET / where, relocated(path.read_text()).encode()
    for folder in sorted(folders):
        yield TARGET / folder / "__init__.py", b'"""Generated."""\n'


def main(arguments: Sequence[str]) -> int:
    check = "--check" in arguments
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        protoc(out)
        wanted = dict(modules(out))
        sys.path.insert(0, str(HERE))
        from api_page import page

        wanted[API_PAGE] = page(PROTO, (out / "all.binpb").read_bytes()).encode()
    stale = [
        p for p in TARGET.rglob("*_pb2.py*") if p not in wanted and "__pycache__" not in p.parts
    ]
    different = [p for p, data in wanted.items() if not p.is_file() or p.read_bytes() != data]
    for path in [*stale, *different]:
        print(f"{path.relative_to(HERE.parent.parent)} {'differs' if check else 'is written'}")
        if not check:
            if path in stale:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted[path])
    return int(check and bool(stale or different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
