"""``atomcache doctor``: try what a filesystem is good for.

What it is for: `_ground.examine` tries what the protocol needs; this says what it found, to
people on a terminal as it comes, and to programs.

Who calls it: the dispatcher.  What may go wrong: `Misuse` for a folder that is none.
"""

from __future__ import annotations

import sys

from .._ground import HOLDS, PATIENCE, PREFIX, UNKNOWN, examine
from ._arguments import Misuse, add_cache, add_json, duration, open_cache
from ._tables import on_terminal, say, say_json, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from .._ground import Report

_VERDICT = 15
_NAME = 26

_NARROWEST = 60

_STYLES = {HOLDS: "green", UNKNOWN: "cyan"}


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""\
Try what the filesystem under a folder is good for, as a place for a cache.

In a private folder inside DIR, several processes try what the protocol needs: exclusive
creation, locks between processes and after the holder was killed, rename, exchange of two
names, hard links, appending, removal of files that are open; and what else matters there: case
and length of names, the grain of times, memory mapping, the cost of forcing a file onto the
disk, owner and modes, room. For each it says whether it holds, what was measured and, where
that matters, what it means for you; at the end, what it all comes to. It takes a second or two,
and removes what it made (named {PREFIX}...), also when it is interrupted.

What other machines see of a shared folder can't be tried from one of them; it says so."""
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="the folder; by default that of the cache, or the nearest one above it that exists",
    )
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration,
        default=PATIENCE,
        help="for how long a trial may wait for the filesystem before that counts as hung "
        f"(default: {PATIENCE:g}s)",
    )
    add_cache(parser)
    add_json(parser)
    parser.epilog = """\
exit status:
  0  a cache works there, though perhaps more slowly, or with what the verdict says
  1  a promise of the library does not hold there, nothing can be written, or the filesystem
     does not answer
  2  a mistake on the command line, or no such folder

examples:
  atomcache doctor
      is the cache where it is in good hands?
  atomcache doctor /mnt/shared
      could it be there?
  atomcache doctor /scratch | grep '^does not hold'
      only what does not hold there; the lines below say what each means
  atomcache doctor --json . | jq -r .verdict
      the verdict alone; the object has directory, asked, filesystem, findings (name, verdict,
      detail and meaning of each), verdict, ok, and left
  atomcache doctor "$dir" >/dev/null || dir=$(mktemp -d)
      use another folder if that one is no good
"""


def run(options: argparse.Namespace) -> int:
    """Try a folder."""
    if not options.timeout:
        raise Misuse("--timeout must be more than 0")
    given = options.directory
    if given == "":
        raise Misuse("DIR is empty; see atomcache doctor --help")
    page = None if options.json else _Page()
    try:
        report = examine(
            open_cache(options).directory if given is None else given,
            exact=given is not None,
            patience=options.timeout,
            tell=None if page is None else page.tell,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise Misuse(f"there is no folder {shown(given)!r}") from None
    if page is None:
        say_json(_facts(report))
    else:
        page.conclude(report)
    if report.left is not None:
        sys.stdout.flush()
        when = "" if report.answered else ", if it does not go when the filesystem answers again"
        sys.stderr.write(f"atomcache doctor: remove {shown(report.left)}{when}\n")
    return 0 if report.ok else 1


def _facts(report: Report) -> dict[str, object]:
    """Return what JSON says."""
    stands = report.filesystem
    return {
        "asked": report.asked,
        "directory": report.directory,
        "filesystem": None
        if stands is None
        else {
            "kind": stands.kind,
            "mounted": stands.mounted,
            "source": stands.source,
            "shared": stands.shared,
        },
        "findings": [
            {
                "name": each.name,
                "verdict": each.verdict,
                "detail": each.detail,
                "meaning": each.meaning,
            }
            for each in report.findings
        ],
        "verdict": report.verdict,
        "ok": report.ok,
        "left": report.left,
    }


class _Page:
    """Says what was found, as it is found: on a terminal in colours and folded to its width."""

    def __init__(self) -> None:
        self._width: int | None = None
        self._console: Console | None = None
        if on_terminal():
            import shutil

            self._width = max(_NARROWEST, shutil.get_terminal_size().columns)
            try:
                from rich.console import Console
            except ImportError:
                return
            self._console = Console(highlight=False)

    def tell(self, report: Report) -> None:
        """Say what was found last."""
        if len(report.findings) == 1:
            there = report.directory == report.asked
            asked = "" if there else f"{shown(report.asked)} is not there yet. "
            say(f"{asked}Trying {shown(report.directory)}\n")
        finding = report.findings[-1]
        columns = f"{finding.verdict:{_VERDICT}}{finding.name:{_NAME}}"
        first, *rest = self._folded(columns + shown(finding.detail), _VERDICT + _NAME)
        style = "red" if finding.grave else _STYLES.get(finding.verdict, "yellow")
        self._say(first, style, len(finding.verdict))
        if finding.meaning:
            rest += self._folded(" " * _VERDICT + shown(finding.meaning), _VERDICT)
        for line in rest:
            say(line)
        sys.stdout.flush()

    def conclude(self, report: Report) -> None:
        """Say what it all comes to."""
        say("")
        for line in self._folded(report.verdict, 0):
            self._say(line, "bold", len(line))

    def _say(self, line: str, style: str, length: int) -> None:
        """Print a line whose beginning has a style."""
        if self._console is None:
            say(line)
            return
        from rich.text import Text

        text = Text(line)
        text.stylize(style, 0, length)
        self._console.print(text, soft_wrap=True)

    def _folded(self, text: str, indent: int) -> list[str]:
        if self._width is None:
            return [text]
        from textwrap import wrap

        return wrap(
            text,
            self._width - 1,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
