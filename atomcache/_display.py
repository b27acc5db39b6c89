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
from typing import TYPE_CHECKING, Any

from ._patience import everywhere

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from ._waiting import Waiting

PATIENCE = 0.5
"""Seconds of a wait that are not worth a line: it would only flicker."""


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
        self._progress: Progress | None = None
        self._shown: dict[tuple[str, str], TaskID] = {}

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
            shown = self._shown.pop(name, None)
            if self._progress is not None and shown is not None:
                self._progress.remove_task(shown)
            if not self._shown:
                self._stop()
        elif waiting.waited >= PATIENCE:
            self._show(name, waiting)

    def _show(self, name: tuple[str, str], waiting: Waiting) -> None:
        if self._progress is None:
            self._progress = _new_progress(self._console)
            self._progress.start()
            # A process that is killed while it waits could not bring the cursor back.
            self._progress.console.show_cursor(True)
        state: dict[str, Any] = {
            "completed": waiting.done or 0.0,
            "total": waiting.total,
            "told": _tell(waiting),
            "note": printable(waiting.note),
        }
        if name in self._shown:
            self._progress.update(self._shown[name], refresh=True, **state)
        else:
            self._shown[name] = self._progress.add_task(printable(waiting.key), **state)

    def _leave_parent(self) -> None:
        """Draw anew in a forked child, where a lock of rich's may stay locked for ever."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._console = find_console()
            self._progress = None
            self._shown.clear()

    def _stop(self) -> None:
        progress, self._progress = self._progress, None
        self._shown.clear()
        if progress is not None:
            progress.stop()


def _new_progress(console: Console | None) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    def text(form: str, *, wide: bool = False) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", ratio=1 if wide else None)
        return TextColumn(form, markup=False, table_column=column)

    return Progress(
        text("waiting for {task.description}", wide=True),
        BarColumn(bar_width=20),
        text("{task.fields[told]}"),
        text("{task.fields[note]}"),
        console=console,
        auto_refresh=False,  # whoever looks at the claims has a thread already
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )


def _tell(waiting: Waiting) -> str:
    """Say who builds, for how long, and how long it took last time."""
    from time import time

    told = [f"process {waiting.pid} on {printable(waiting.host)}"]
    if waiting.total:
        told.append(f"{100 * (waiting.done or 0) / waiting.total:.0f} %")
    elif waiting.done is not None:
        told.append(f"{waiting.done:g} done")
    told.append(f"for {_length(time() - waiting.started)}")
    if waiting.took_before is not None:
        told.append(f"took {_length(waiting.took_before)} last time")
    return ", ".join(told)


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
