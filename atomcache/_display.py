"""What this process waits for, shown in the terminal or notebook.

What it is for: `show_waiting` draws a line for each build of somebody else's that this process
waits for: which, who builds it, since when, how long it took last time, and a bar where the
builder reports its progress.  The lines vanish when the waits are over.

Who calls it: scripts and notebooks, and the command line.  What may go wrong: `ImportError`
if there is a terminal but no rich.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ._patience import everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.text import Text

    from ._waiting import Waiting

PATIENCE = 0.5
"""Seconds of a wait that are not worth a line: it would only flicker."""

_WAITING = "waiting for "
_SHORTEST_KEY = 16
_SHORTEST_NOTE = 12

_MARGIN = 2
"""Columns left free, for the ``^C`` that the terminal writes: a line that it breaks stays."""

_NO_NUMBER = 1e300
"""Numbers beyond which arithmetic ends; a builder may report any."""


def show_waiting() -> Display:
    """Show in the terminal, or in a notebook, what this process waits for, from now on.

    Call it once, at the start of a script, or use it as a context manager.  It writes to the
    standard error stream, shows waits of more than half a second of all caches, and does nothing
    where that stream is no terminal.

    Returns
    -------
    Display
        With a method ``end``; leaving its ``with`` block ends it too.

    Raises
    ------
    ImportError
        If there is a terminal and rich is not installed.

    Examples
    --------
    >>> import atomcache
    >>> with atomcache.show_waiting():
    ...     atomcache.Cache("/tmp/never-made").get("answer", 42)
    42
    """
    return _showing()


def _showing() -> Display:
    display = Display(find_console())
    display.begin()
    return display


def find_console() -> Console | None:
    """Return where to draw; `None` if nobody would see it."""
    notebook = "ipykernel" in sys.modules
    if not notebook and not (sys.stderr is not None and sys.stderr.isatty()):
        return None
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError(
            "atomcache.show_waiting needs rich: pip install 'atomcache[cli]'"
        ) from error
    console = Console(stderr=not notebook)
    return console if console.is_terminal or console.is_jupyter else None


class Display:
    """Shows what this process waits for; made by `show_waiting`."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._pid = os.getpid()
        self._live: Live | None = None
        self._shown: dict[tuple[str, str], Waiting] = {}

    def begin(self) -> None:
        """Show what every cache of this process waits for."""
        if self._console is not None:
            everywhere.append(self.see)

    def end(self) -> None:
        """Show nothing any more."""
        if self.see in everywhere:
            from ._waiting import forget

            forget(self.see)
        self._leave_parent()
        self._stop()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def see(self, waiting: Waiting) -> None:
        """Show a wait, or that it is over."""
        if self._console is None:
            return
        self._leave_parent()
        name = waiting.kind, waiting.key
        if waiting.over:
            self._shown.pop(name, None)
            if not self._shown:
                self._stop()
        elif waiting.waited >= PATIENCE:
            self._shown[name] = waiting
            self._start()
        if self._live is not None:
            self._live.refresh()

    def _start(self) -> None:
        if self._live is not None:
            return
        from rich.live import Live

        self._live = Live(
            self,
            console=self._console,
            auto_refresh=False,  # whoever looks at the claims has a thread already
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        # A process that is killed while it waits could not bring the cursor back.
        self._live.console.show_cursor(True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for waiting in list(self._shown.values()):
            yield _line(waiting, options)

    def _leave_parent(self) -> None:
        """Draw anew in a forked child, where a lock of rich's may stay locked for ever."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._console = find_console()
            self._live = None
            self._shown.clear()

    def _stop(self) -> None:
        live, self._live = self._live, None
        self._shown.clear()
        if live is not None:
            live.stop()


def _line(waiting: Waiting, options: ConsoleOptions) -> Text:
    """Say as much of a wait as fits, the least important left out first, the key never."""
    from rich.text import Text

    room = options.max_width - _MARGIN
    key = Text(printable(waiting.key))
    least = len(_WAITING) + min(key.cell_len, _SHORTEST_KEY)
    for parts in _choices(waiting, options.ascii_only):
        rest = Text("  ").join([Text(), *(part for part in parts if part)])
        if least + rest.cell_len <= room:
            break
    key.truncate(max(1, room - len(_WAITING) - rest.cell_len), overflow="ellipsis")
    line = Text.assemble(_WAITING, key, rest, no_wrap=True, overflow="ellipsis")
    line.truncate(max(1, room), overflow="ellipsis")
    return line


def _choices(waiting: Waiting, plain: bool) -> Iterator[list[Text]]:
    """Yield what can be said beside the key, from all of it to nothing."""
    from rich.text import Text

    note = Text(printable(waiting.note))
    short = note.copy()
    short.truncate(_SHORTEST_NOTE, overflow="ellipsis")
    who = f"process {waiting.pid}"
    where = f"{who} on {printable(waiting.host)}"
    part = part_of(waiting.done, waiting.total)
    long_bar, bar = (bar_of(part, width, plain=plain) for width in (20, 10))
    last = "" if waiting.took_before is None else f"took {_length(waiting.took_before)} last time"
    far = _far(waiting, part)
    yield [long_bar, _told(where, far, last), note]
    yield [long_bar, _told(where, far, last), short]
    yield [bar, _told(where, far, last), short]
    yield [bar, _told(where, far), short]
    yield [bar, _told(who, far), short]
    yield [bar, _told(who, far)]
    yield [bar, _told(far)]
    yield [_told(far)]
    yield []


def _told(*parts: str) -> Text:
    from rich.text import Text

    return Text(", ".join(part for part in parts if part))


def _far(waiting: Waiting, part: float | None) -> str:
    """Say how far it is, and for how long it has been built."""
    from time import time

    since = f"for {_length(time() - waiting.started)}"
    if part is not None:
        return f"{100 * part:.0f} %, {since}"
    return since if waiting.done is None else f"{waiting.done:g} done, {since}"


def part_of(done: float | None, total: float | None) -> float | None:
    """Return how much of a build is done, from 0 to 1; `None` where the numbers do not say."""
    if done is None or total is None or not 0 < total < _NO_NUMBER or not abs(done) < _NO_NUMBER:
        return None
    return min(1.0, max(0.0, done / total))


def bar_of(part: float | None, width: int, *, plain: bool = False) -> Text:
    """Return a bar of some width; an empty text where it is not known how much is done."""
    from rich.text import Text

    if part is None:
        return Text()
    done = round(part * width)
    if plain:
        return Text("#" * done + "." * (width - done))
    return Text.assemble(("━" * done, "bar.complete"), ("╌" * (width - done), "bar.back"))


def _length(seconds: float) -> str:
    """Return a length of time for people."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """Return text that can't steer a terminal, whoever wrote it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
