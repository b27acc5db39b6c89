"""A report as PDF, made again only when its data or its template has changed.

The report depends on two files, and says so::

    @cache.builder(name="report.pdf", inputs=lambda data, template: [data, template])
    def report(target: Path, data: Path, template: Path) -> None: ...

    path = report(data, template)

There is nothing to compare and nothing to clean up by hand: any number of processes may
ask, one of them makes it, and nobody ever opens half a PDF.

Run it::

    python examples/report.py              # in a folder of its own
    python examples/report.py FOLDER       # FOLDER/sales.csv and FOLDER/letter.txt

With FOLDER, edit one of the two files (they are written if they are not there) and run it
again.  Without, the example does that itself; one sees that going back to what the data was
finds the report that was made of it.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from atomcache import Cache

if TYPE_CHECKING:
    from atomcache import Memoized

SALES = "month,sold\nJanuary,120\nFebruary,95\nMarch,143\n"
LETTER = "Dear reader,\n\nthis quarter we sold $total. The best month was $best.\n"


def reports(cache: Cache) -> Memoized[[Path, Path], Path]:
    """Return the function that gives reports, from the cache or new."""

    @cache.builder(
        name="report.pdf",
        inputs=lambda data, template: [data, template],
        version="source",  # a change of this code makes a new one, too
    )
    def report(target: Path, data: Path, template: Path) -> None:
        from fpdf import FPDF  # here, because who finds the report does not need it

        with data.open(newline="") as file:
            sold = {row["month"]: int(row["sold"]) for row in csv.DictReader(file)}
        letter = Template(template.read_text(encoding="utf-8"))
        pdf = FPDF()
        pdf.add_page()
        pdf.set_font("Helvetica", size=12)
        text = letter.substitute(total=sum(sold.values()), best=max(sold, key=sold.__getitem__))
        pdf.multi_cell(0, 6, text)
        pdf.ln(5)
        with pdf.table(width=80, align="LEFT", col_widths=(3, 1)) as table:
            table.row(("Month", "Sold"))
            for month, number in sold.items():
                table.row((month, str(number)))
        pdf.output(str(target))
        print(f"  process {os.getpid()} made it", flush=True)

    return report


def ask(what: str, cache: Cache, data: Path, template: Path) -> Path:
    """Ask for the report, and say what happened."""
    print(what, flush=True)
    report = reports(cache)
    began = time.perf_counter()
    path = report(data, template)
    print(f"  got it after {(time.perf_counter() - began) * 1000:.1f} ms", flush=True)
    return path


def write_if_missing(file: Path, text: str) -> Path:
    """Write an example of an input, to have one."""
    if not file.exists():
        file.write_text(text, encoding="utf-8")
    return file


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="data, template and cache")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cache = Cache(folder / "cache")
        data = write_if_missing(folder / "sales.csv", SALES)
        template = write_if_missing(folder / "letter.txt", LETTER)

        path = ask("The report", cache, data, template)
        if not options.folder:
            ask("The same again", cache, data, template)
            data.write_text(SALES + "April,201\n")
            ask("With more data", cache, data, template)
            template.write_text(LETTER + "\nYours sincerely\n")
            ask("With a new ending", cache, data, template)
            data.write_text(SALES)
            template.write_text(LETTER)
            ask("All as it was", cache, data, template)
        print(f"{path} has {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
