"""Run every benchmark of this folder and show their figures; `--json` for one JSON document.

`run.py wasm_engine node_start` runs only these. A missed target is marked and makes the exit status
1 only with `--strict`: on a shared machine a figure says less than its ratio to its floor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _report import Row, meets

FOLDER = Path(__file__).parent
APART = {"run", "soak", "against_ray", "objects_against_ray"}


def run(script: Path, *, as_json: bool) -> Any:
    """One benchmark, in a process of its own."""
    command = [sys.executable, str(script), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=FOLDER)
    result = json.loads(done.stdout)
    if not as_json:
        show(result)
    return result


def show(result: Any) -> None:
    print(f"\n{result['title']}  (Python {result['python']})")
    for row in result["rows"]:
        floor = "" if row["floor"] is None else f"{row['floor']:,.2f}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        target = "" if row["target"] is None else f"{row['target']}{verdict(row)}"
        value = f"{row['value']:,.2f}"
        print(f"  {row['name']:<52}{value:>12} {row['unit']:<7}{floor:>10}{ratio:>8}  {target}")


def verdict(row: Row) -> str:
    return "" if row["target"] is None or meets(row["value"], row["target"]) else "  MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which to run; default: all but soak and Ray")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true", help="fail when a target is missed")
    options = parser.parse_args()
    scripts = {path.stem: path for path in sorted(FOLDER.glob("[a-z]*.py"))}
    names = options.names or [name for name in scripts if name not in APART]
    results = [run(scripts[name], as_json=options.json) for name in names]
    missed = [row["name"] for result in results for row in result["rows"] if verdict(row)]
    if options.json:
        json.dump(results, sys.stdout, indent=1)
        print()
    elif missed:
        print(f"\n{len(missed)} targets missed: {', '.join(missed)}")
    if missed and options.strict:
        sys.exit(1)


if __name__ == "__main__":
    main()
