"""What `examples/table.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atomcache import Cache

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "table.py"
TIMEOUT = 60.0


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(example: subprocess.Popen[str]) -> str:
    try:
        output, errors = example.communicate(timeout=TIMEOUT)
    finally:
        example.kill()
    assert (example.returncode, errors) == (0, ""), output + errors
    return output


def parsed(output: str) -> list[int]:
    return [int(rows) for rows in re.findall(r"parsed (\d+) rows", output)]


def warmest(output: str) -> dict[str, float]:
    found = re.findall(r"^(\w+): at most (\S+) degrees$", output, re.MULTILINE)
    return {station: float(celsius) for station, celsius in found}


def write(file: Path, rows: int, warmer: int = 0) -> dict[str, float]:
    """Write measurements and return the highest of each station."""
    highest: dict[str, float] = {}
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(("time", "station", "celsius"))
        for number in range(rows):
            station, celsius = f"S{number % 3}", number * 37 % 401 / 8 + warmer
            table.writerow((f"2024-01-01 00:00:{number % 60:02}", station, celsius))
            highest[station] = max(celsius, highest.get(station, celsius))
    return highest


def test_one_worker_parses_and_all_have_the_table() -> None:
    first, second = finish(start("--rows=20000", "--workers=3")).split("All ask again")
    assert parsed(first) == [20_000]
    assert first.count("had the table") == 3
    assert parsed(second) == []
    assert second.count("had the table") == 3
    assert list(warmest(second)) == ["Bergen", "Lagos", "Lima", "Osaka"]


def test_a_file_of_ones_own_is_parsed_as_it_stands(tmp_path: Path) -> None:
    expected = write(tmp_path / "measured.csv", 5000)
    output = finish(start("--workers=1", "--cache", tmp_path / "cache", tmp_path / "measured.csv"))
    assert (parsed(output), warmest(output)) == ([5000], expected)


def test_a_changed_file_is_parsed_once_more(
    tmp_path: Path, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table = example.tables(Cache(tmp_path / "cache"))
    for warmer in (0, 10):
        expected = write(tmp_path / "measured.csv", 500, warmer)
        frames = [table(tmp_path / "measured.csv") for _ in range(3)]
        assert parsed(capsys.readouterr().out) == [500]
        for frame in frames:
            assert frame.groupby("station", observed=True)["celsius"].max().to_dict() == expected


@pytest.mark.skipif(
    not os.path.exists("/proc/self/maps"), reason="reads Linux's table of mapped files"
)
def test_columns_are_not_copied_into_the_process(tmp_path: Path, example: Any) -> None:
    write(tmp_path / "measured.csv", 20_000)
    table = example.tables(Cache(tmp_path / "cache"))
    table(tmp_path / "measured.csv")
    frame = table(tmp_path / "measured.csv")
    for column in ("time", "celsius"):
        address = frame[column].to_numpy().__array_interface__["data"][0]
        assert Path(mapped_at(address)).is_relative_to(tmp_path / "cache")


@pytest.fixture(scope="module")
def example() -> Any:
    """Return the example as a module, for what can be seen from inside only."""
    spec = importlib.util.spec_from_file_location("table", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mapped_at(address: int) -> str:
    """Return the file that this process has mapped at an address."""
    with open("/proc/self/maps") as table:
        for line in table:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= address < end:
                return "".join(line.split(maxsplit=5)[5:]).strip()
    return ""
