"""``atomcache watch``: builds in progress, of all processes, live.

On a terminal it is a table that rich draws anew four times a second; rich is loaded there only.
On a pipe it is a line for each change.

Who calls it: the dispatcher.  What may go wrong: `AtomcacheError` where rich is needed and not
installed; `StorageError` for a folder that can't be read.
"""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from time import monotonic, sleep, time

from .._display import bar_of, part_of
from .._errors import AtomcacheError
from ._arguments import add_cache, add_json, duration
from ._find import look, status, trouble
from ._tables import (
    moment,
    number_of,
    on_terminal,
    say,
    say_json,
    say_table,
    shown,
    time_text,
    write_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from typing import Any

    from rich.console import Console, RenderableType

    from .._cache import Cache
    from .._listing import BuildInfo

    Identity = tuple[str, int, float, str, str]

_LIVE_PAUSE = 0.25
_PIPE_PAUSE = 1.0
_SHORTEST_PAUSE = 0.05

_REST = 3.0
"""How many times as long to rest as a look took: a cache of a million entries has folders that
take long to list, and watching must not keep a disk busy."""

_BAR = 10

_WIDE = 76
"""Columns from which on the table tells also by whom, and how long it took last time."""

_MARGIN = 2
"""Columns left free, for the ``^C`` that the terminal writes: it would break the last line."""

_TITLES = ("KIND", "BY", "SINCE", "LAST TIME", "WAITING", "PROGRESS", "NOTE", "TAGS", "KEY")
_RIGHT = frozenset(["SINCE", "LAST TIME", "WAITING"])
_SPARE = ("KIND", "LAST TIME", "TAGS", "WAITING", "NOTE", "BY", "PROGRESS")


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Show builds in progress."}

For each build it tells the process and machine that it runs on, for how long, how long it took
last time if there is an old entry, how many processes of this machine wait for it, and how far
it is, if its factory calls current_build().progress. Ctrl-C ends it.

On a pipe it prints a line when something has changed, with tabs between the time, "building"
or "over", process@machine, kind, seconds since it began, number of waiting processes, done,
total, note, tags, and key; "-" stands for what is not known. With --json each line is an object
with time and builds, all that there are."""
    parser.add_argument("--once", action="store_true", help="print what there is now, and end")
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=duration,
        help="pause between two looks; 0.25 s on a terminal, 1 s on a pipe, and more where "
        "looking takes long",
    )
    add_cache(parser)
    add_json(parser)
    ended = "ended by Ctrl-C, or --once"
    parser.epilog = f"""{status("rich is needed and not installed", done=ended)}
examples:
  atomcache watch
  atomcache watch --once
  atomcache watch --json | jq '.builds | length'
"""


def run(options: argparse.Namespace) -> int:
    """Show builds in progress."""
    sight = _Sight(look(options))
    if options.once:
        _say_once(sight, options)
        return 0
    try:
        if options.json or not on_terminal():
            _tell(sight, options)
        else:
            _show(sight, options)
    except KeyboardInterrupt:
        pass
    return 0


class _Sight:
    """What is being built in a cache, and how long it took before."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._last: dict[Identity, float | None] = {}
        self._looked_for = 0.0

    def builds(self) -> list[BuildInfo]:
        """Return what is being built, the oldest first."""
        began = monotonic()
        with trouble(self.cache):
            found = sorted(self.cache.builds(), key=lambda build: build.started)
        self._looked_for = monotonic() - began
        return found

    def rest(self, pause: float) -> None:
        """Wait until the next look."""
        sleep(max(pause, _SHORTEST_PAUSE, _REST * self._looked_for))

    def last_time(self, build: BuildInfo) -> float | None:
        """Return how long it took to build the entry that is there still, if there is one."""
        which = _identity(build)
        if which not in self._last:
            if len(self._last) > 10_000:
                self._last.clear()
            self._last[which] = self._find(which)
        return self._last[which]

    def _find(self, which: Identity) -> float | None:
        from .._claim import living_record
        from .._layout import CLAIM, is_claim
        from .._listing import _inspect, _paths

        door = self.cache._door
        with trouble(self.cache):
            for path in _paths(self.cache._layout, is_claim):
                record = living_record(door, path)
                if record is None or _identity(record) != which:
                    continue
                try:
                    return _inspect(door, path[: -len(CLAIM)]).build_seconds
                except Exception:  # there is none, or it is damaged: its time is not known
                    return None
        return None


def _identity(build: Any) -> Identity:
    return build.host, build.pid, build.started, build.kind, build.key


def _facts(build: BuildInfo, sight: _Sight) -> dict[str, object]:
    last = sight.last_time(build)
    return {
        "key": build.key,
        "kind": build.kind,
        "pid": build.pid,
        "host": build.host,
        "started": _finite(build.started),
        "waiting": build.waiting,
        "done": _finite(build.done),
        "total": _finite(build.total),
        "note": build.note,
        "tags": list(build.tags),
        "function": build.function,
        "last_build_seconds": _finite(last),
    }


def _finite(number: float | None) -> float | None:
    """Return a number that JSON and arithmetic can take; a factory may report any."""
    return number if number is not None and abs(number) < 1e300 else None


def _number(number: float | None) -> str:
    finite = _finite(number)
    return "-" if finite is None else f"{finite:.10g}"


# -- once, and on a pipe ----------------------------------------------------------------


def _say_once(sight: _Sight, options: argparse.Namespace) -> None:
    found = sight.builds()
    if options.json:
        say_json({"time": time(), "builds": [_facts(build, sight) for build in found]})
    elif not on_terminal():
        for build in found:
            say(_line("building", build))
    elif not found:
        say(f"nothing is being built in {shown(sight.cache._layout.directory)}")
    else:
        now = time()
        say_table(_TITLES, [_row(build, sight, now) for build in found], _RIGHT, _SPARE)


def _tell(sight: _Sight, options: argparse.Namespace) -> None:
    """Print what has changed since the last look, until somebody ends it."""
    pause = _PIPE_PAUSE if options.interval is None else options.interval
    before: dict[Identity, BuildInfo] | None = None
    while True:
        now = {_identity(build): build for build in sight.builds()}
        if options.json and now != before:
            facts = [_facts(build, sight) for build in now.values()]
            say_json({"time": time(), "builds": facts})
        elif not options.json:
            for which, build in now.items():
                if before is None or before.get(which) != build:
                    say(_line("building", build))
            for which, build in (before or {}).items():
                if which not in now:
                    say(_line("over", build))
        before = now
        write_bytes([])
        _check_reader()
        sight.rest(pause)


def _check_reader() -> None:
    """Raise if whoever reads this went away: without a change nothing else would tell."""
    import select

    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
            raise BrokenPipeError


def _line(state: str, build: BuildInfo) -> str:
    now = time()
    return "\t".join(
        [
            moment(now, utc=True),
            state,
            f"{build.pid}@{shown(build.host)}",
            shown(build.kind),
            f"{max(0.0, now - build.started):.1f}",
            "-" if build.waiting is None else str(build.waiting),
            _number(build.done),
            _number(build.total),
            shown(build.note) or "-",
            ",".join(map(shown, build.tags)) or "-",
            shown(build.key),
        ]
    )


def _row(build: BuildInfo, sight: _Sight, now: float) -> list[str]:
    last = sight.last_time(build)
    return [
        shown(build.kind),
        f"{build.pid}@{shown(build.host)}",
        time_text(now - build.started),
        "" if last is None else time_text(last),
        "?" if build.waiting is None else str(build.waiting),
        _progress(build),
        shown(build.note),
        ",".join(map(shown, build.tags)),
        shown(build.key),
    ]


def _progress(build: BuildInfo) -> str:
    if build.done is None:
        return ""
    if build.total is None:
        return _number(build.done)
    return f"{_number(build.done)}/{_number(build.total)}"


# -- live -------------------------------------------------------------------------------


def _show(sight: _Sight, options: argparse.Namespace) -> None:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise AtomcacheError(
            "a live table needs rich: pip install 'atomcache[cli]'. "
            "Without it there are --once, and output to a pipe"
        ) from None
    pause = _LIVE_PAUSE if options.interval is None else options.interval
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live, _Signals() as signals:
        while True:
            picture = _picture(sight, sight.builds(), console)
            with signals.later():
                live.update(picture, refresh=True)
            sight.rest(pause)


class _Signals:
    """Ends what is drawn by Ctrl-C or a termination, but not in the midst of drawing.

    What was half drawn would be drawn again at the end, below itself.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._drawing = False

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._drawing = True  # what is drawn last is not interrupted

    @contextmanager
    def later(self) -> Iterator[None]:
        """Have a signal that comes meanwhile wait."""
        self._drawing = True
        yield
        self._drawing = False
        self._end()

    def _receive(self, number: int, _: object) -> None:
        self._number = number
        if not self._drawing:
            self._end()

    def _end(self) -> None:
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(128 + self._number)  # so that the terminal gets its cursor back


def _picture(sight: _Sight, found: Sequence[BuildInfo], console: Console) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    place = shown(sight.cache._layout.directory)
    width = max(1, console.width - _MARGIN)
    if not found:
        nothing = Text(f"nothing is being built in {place}", style="dim")
        nothing.truncate(width, overflow="ellipsis")
        return nothing
    waiting = sum(build.waiting or 0 for build in found)
    table = Table(
        title=Text(f"{number_of(len(found), 'build')}, {waiting} waiting, in {place}"),
        title_justify="left",
        width=width,
    )
    wide = width >= _WIDE
    table.add_column("KEY", ratio=2, no_wrap=True, overflow="ellipsis", min_width=12)
    if wide:
        table.add_column("BY", ratio=1, no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("SINCE", justify="right", no_wrap=True)
    if wide:
        table.add_column("LAST", justify="right", no_wrap=True)
    table.add_column("WAIT", justify="right", no_wrap=True)
    table.add_column("PROGRESS", ratio=2, no_wrap=True, overflow="ellipsis", min_width=14)
    now = time()
    for build in found:
        row = dict(zip(_TITLES, _row(build, sight, now), strict=True))
        tags = f" [{row['TAGS']}]" if row["TAGS"] else ""
        told = Text(f"{row['PROGRESS']} {row['NOTE']}".strip())
        part = part_of(_finite(build.done), _finite(build.total))
        if part is not None:
            plain = not console.encoding.startswith("utf")
            told = Text(" ").join([bar_of(part, _BAR, plain=plain), told])
        by, last = ([Text(row["BY"])], [row["LAST TIME"]]) if wide else ([], [])
        table.add_row(Text(row["KEY"] + tags), *by, row["SINCE"], *last, row["WAITING"], told)
    return table
