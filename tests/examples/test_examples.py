"""Each example does on real input what its README says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_word_statistics(run: Run, examples: Path) -> None:
    text = examples / "data" / "speeches.txt"
    told = run(examples / "word-statistics" / "word_statistics.py", "--input-file", str(text))
    assert told.status == 0, told.err
    answer = json.loads(told.out)
    assert answer["words"] == 1294
    assert answer["longest"] == "representatives"
    assert answer["common"]["nation"] == 7
    assert "1294 words, 512 different" in told.err


def test_research_agent(run: Run, examples: Path) -> None:
    text = (examples / "data" / "speeches.txt").read_bytes()
    question = b"Question: Are all men created equal?\n"
    told = run(examples / "research-agent" / "research.py", stdin=question + text)
    assert told.status == 0, told.err
    answer = told.out.decode()
    assert "all men are created equal" in answer
    assert "(The Declaration of Independence (1776))" in answer
    assert "(The Gettysburg Address (1863))" in answer
    assert "looking for creat, equal in 3 documents" in told.err


def test_research_agent_without_a_question(run: Run, examples: Path) -> None:
    told = run(examples / "research-agent" / "research.py", "--input", "# A title")
    assert told.status == 1
    assert 'the first line must be "Question: …"' in told.err
    assert "Traceback" not in told.err


def test_weather_watch(run: Run, examples: Path) -> None:
    table = (examples / "data" / "seattle-weather.csv").read_bytes()
    told = run(examples / "weather-watch" / "watch.py", "--stream", stdin=table)
    assert told.status == 0, told.err
    days = list(csv.DictReader(table.decode().splitlines()))
    warmest = max(days, key=lambda day: float(day["temp_max"]))
    lines = told.out.decode().splitlines()
    warm = [line for line in lines if "warmest" in line]
    assert warm[-1].startswith(f"{warmest['date']}: {warmest['temp_max']} °C")
    assert 5 < len(lines) < 50
    assert f"{len(days)} days seen" in told.err


def test_city_report(run: Run, examples: Path) -> None:
    table = examples / "data" / "seattle-weather.csv"
    agent = f"{examples / 'city-report' / 'city_report.py'}:report"
    told = run(agent, "--input-file", str(table))
    assert told.status == 0, told.err
    answer = json.loads(told.out)
    days = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    assert answer["wettest"]["millimetres"] == max(float(d["precipitation"]) for d in days)
    assert answer["warmest"]["celsius"] == max(float(d["temp_max"]) for d in days)
    assert answer["kinds"]["snow"] == sum(d["weather"] == "snow" for d in days)
    assert "joined 3 answers" in told.err


def test_city_report_of_something_else(run: Run, examples: Path) -> None:
    agent = f"{examples / 'city-report' / 'city_report.py'}:report"
    told = run(agent, "--input", "a,b\n1,2\n")
    assert told.status == 1
    assert "no report: this is no weather table" in told.err
    assert "Traceback" not in told.err


@pytest.mark.slow
def test_timeline_agent(run: Run, examples: Path) -> None:
    text = examples / "timeline-agent" / "space.txt"
    told = run(examples / "timeline-agent", "--input-file", str(text))
    assert told.status == 0, told.err
    assert told.out.decode().splitlines() == [
        "- Explorer 1: 3 months after Sputnik",
        "- Vostok 1: 3 years after Explorer 1",
        "- Apollo 11: 8 years after Vostok 1",
    ]
    assert "info: 4 events" in told.err


def test_shell_pipeline(run: Run, examples: Path) -> None:
    table = examples / "data" / "zone1970.tab"
    told = run(examples / "shell-pipeline" / "zones-by-region.sh", "--input-file", str(table))
    assert told.status == 0, told.err
    rows = [r for r in table.read_text("utf-8").splitlines() if not r.startswith("#")]
    counted = Counter(row.split("\t")[2].split("/")[0] for row in rows)
    assert {n: int(c) for n, c in map(str.split, told.out.decode().splitlines())} == counted
    assert f"{len(rows)} zones" in told.err


def test_c_compiled_to_wasm(run: Run, examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    module = tmp_path / "weather.wasm"
    source = examples / "wasm-c" / "weather.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "--target=wasm32-wasi", "-O2"]
    subprocess.run([*compiler, str(source), "-o", str(module)], check=True, timeout=300)
    data = examples / "data" / "seattle-weather.csv"
    told = run(module, "--input-file", str(data))
    assert told.status == 0, told.err
    assert "1461 days read, 1 lines skipped" in told.err
    warmest: dict[int, float] = {}
    with data.open(newline="") as file:
        for row in csv.DictReader(file):
            month = int(row["date"].split("/")[1])
            warmest[month] = max(warmest.get(month, -99.0), float(row["temp_max"]))
    lines = told.out.decode().splitlines()[1:]
    assert [float(line.split()[3]) for line in lines] == [warmest[m] for m in range(1, 13)]


def test_c_compiled_to_wasm_with_no_data(run: Run, examples: Path, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    module = tmp_path / "weather.wasm"
    source = examples / "wasm-c" / "weather.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "--target=wasm32-wasi", "-O2"]
    subprocess.run([*compiler, str(source), "-o", str(module)], check=True, timeout=300)
    told = run(module, "--input", "no,csv\n")
    assert told.status == 1
    assert told.out == b""
    assert "0 days read, 1 lines skipped" in told.err


def test_wat(run: Run, examples: Path) -> None:
    data = examples / "data" / "seattle-weather.csv"
    told = run(examples / "wat" / "crc32.wat", "--input-file", str(data))
    assert told.status == 0, told.err
    assert told.out == b"%08x\n" % zlib.crc32(data.read_bytes())
    assert "crc32: input read" in told.err
