"""What `examples/report.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "report.py"
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


def report(output: str) -> Path:
    found = re.search(r"^(.+report\.pdf) has \d+ bytes$", output, re.MULTILINE)
    assert found is not None, output
    return Path(found[1])


def words(pdf: Path) -> str:
    """Return what stands on the first page: the strings in its stream of drawing commands."""
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    stream = content.partition(b"stream\n")[2].partition(b"\nendstream")[0]
    return " ".join(re.findall(r"\((.*?)\) Tj", zlib.decompress(stream).decode("latin-1")))


def write(folder: Path, data: str, template: str) -> None:
    (folder / "sales.csv").write_text(f"month,sold\n{data}")
    (folder / "letter.txt").write_text(template)


def test_programs_started_together_make_one_report(tmp_path: Path) -> None:
    write(tmp_path, "May,20\nJune,22\n", "We sold $total, most in $best.")
    examples = [start(tmp_path) for _ in range(6)]
    outputs = [finish(example) for example in examples]
    assert "".join(outputs).count("made it") == 1
    [path] = {report(output) for output in outputs}
    assert words(path) == "We sold 42, most in June. Month Sold May 20 June 22"


def test_changed_data_and_a_changed_template_make_a_new_report(tmp_path: Path) -> None:
    write(tmp_path, "May,20\n", "We sold $total.")
    first = report(finish(start(tmp_path)))
    write(tmp_path, "May,21\n", "We sold $total.")
    second = report(finish(start(tmp_path)))
    write(tmp_path, "May,21\n", "Sold: $total.")
    third = report(finish(start(tmp_path)))
    assert words(first) == "We sold 20. Month Sold May 20"
    assert words(second) == "We sold 21. Month Sold May 21"
    assert words(third) == "Sold: 21. Month Sold May 21"


def test_without_a_folder_the_example_changes_the_inputs_itself() -> None:
    output = finish(start())
    asked = re.split(r"^(?=\S)", output, flags=re.MULTILINE)[1:-1]
    assert ["made it" in each for each in asked] == [True, False, True, True, False]


def test_what_counts_is_what_the_files_hold_not_when_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, "May,20\n", "We sold $total.")
    first = finish(start(tmp_path))
    write(tmp_path, "May,21\n", "We sold $total.")
    finish(start(tmp_path))
    write(tmp_path, "May,20\n", "We sold $total.")
    os.utime(tmp_path / "letter.txt", (1, 1))
    again = finish(start(tmp_path))
    assert "made it" not in again
    assert report(again) == report(first)
