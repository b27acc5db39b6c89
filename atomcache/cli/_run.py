"""``atomcache run``: run a command once for all who ask, and play it again afterwards.

What it is for: what a command writes to its two output streams and its exit status are a value
of the cache, as a recording; with ``--output``, what it makes at a path is a file or folder of
the cache.  What this takes is in `_run_options`, and what identifies a run in `_run_key`.  A
command that fails is, in the library's terms, a factory that raises: `CommandFailed` carries the
recording to all who wait for it, and nothing is stored.

Who calls it: `main`.  What may go wrong: as ``--help`` says.
"""

from __future__ import annotations

import os
import sys

from .._errors import (
    AtomcacheError,
    BuildTimeout,
    EntryNameError,
    MissingInputError,
    OptionError,
)
from ._asked import Misuse, duration, line_of, open_cache
from ._recording import Output, is_recording, write
from ._run_key import key_of
from ._run_options import OPTIONS as OPTIONS
from ._run_options import OUTPUT, Asked
from ._run_options import describe as describe
from ._run_options import parse as parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from .._cache import Cache
    from .._waiting import Waiting

TIMED_OUT = 124
FAILED_ITSELF = 125
"""Statuses of timeout(1) and of most commands that run another one."""

_BEHIND = "ATOMCACHE_RUN_BEHIND"
"""Set for a process that builds what another one has answered from a stale entry."""

_BUILDING = "ATOMCACHE_RUN_BUILDING"
"""Set for a command: tokens of the runs that it is part of, for which it must not wait."""

_REBUILD = "import sys; sys.path[:] = {!r}; from atomcache.cli import main; sys.exit(main())"
"""For such a process; it is to find the modules of this one, and none in the current folder."""

_LARGEST_FAILURE = 400_000
"""Bytes of a failed command's output that those who wait get to see: claims hold a megabyte, and
it stands there in hexadecimal digits."""


class CommandFailed(Exception):
    """A command ended with another status than 0, and is not to be stored.

    Parameters
    ----------
    status
        Its exit status.
    recording
        What it wrote; `None` if that is too much to be handed to those who wait.
    """

    def __init__(self, status: int, recording: bytes | None) -> None:
        super().__init__(status, recording)

    def __str__(self) -> str:
        return f"the command ended with status {self.args[0]}"


def run(options: Asked) -> int:
    """Run the command, or replay it."""
    _fill_streams()
    try:
        task = Task(options)
        status = task.run()
    except BuildTimeout as error:
        return _say(error, TIMED_OUT)
    except (EntryNameError, MissingInputError, OptionError) as error:
        raise Misuse(line_of(error)) from None
    except Misuse:
        raise
    except (AtomcacheError, OSError) as error:
        return _say(error, FAILED_ITSELF)
    except KeyboardInterrupt as error:
        return _end_by(getattr(error, "number", 2))
    trouble = task.output.error
    if trouble is None or isinstance(trouble, BrokenPipeError):  # who reads has seen enough
        return status
    return _say(Misuse(f"the output can't be written: {trouble.strerror}"), FAILED_ITSELF)


def _refuse(options: Asked) -> None:
    """Raise for what can't be asked for together."""
    if not options.command:
        raise Misuse("there is no command to run; see atomcache run --help")
    if options.output is None:
        return
    if not any(OUTPUT in word for word in options.command):
        raise Misuse(f"with --output the command has to name {OUTPUT}, where it is to write")
    if options.keep_failures:
        raise Misuse(
            "--keep-failures goes without --output: of a command that failed there is no file or "
            "folder to keep"
        )
    if options.on_store_error == "bypass":
        raise Misuse(
            "--on-store-error bypass goes without --output: what is not stored has no path"
        )


class Task:
    """What one call of ``atomcache run`` has to do."""

    def __init__(self, options: Asked) -> None:
        self.options = options
        self.command = options.command
        _refuse(options)
        self.behind = os.environ.pop(_BEHIND, None) is not None  # the command must not see it
        self.given = sys.stdin.buffer.read() if options.stdin else None
        self.key = key_of(options, self.given)
        self.output = Output(1 if options.output is None else 2, 2)
        self.held = options.stale_on_error is not None
        self.ran: bytes | None = None
        self.cache = self._open()
        self.choices = self._choices()

    def run(self) -> int:
        """Do it, and return the exit status."""
        if self.options.warm and not self.behind:
            return self.warm()
        try:
            return self.value() if self.options.output is None else self.path()
        except CommandFailed as failed:
            return self.failed(failed)

    def value(self) -> int:
        """Have what the command writes, and play it unless it was seen already."""
        ask = self.cache.refresh if self.options.refresh else self.cache.get_or_create
        recording = ask(self.key, self._record, codec="bytes", **self.choices)
        if not is_recording(recording):
            raise Misuse(f"the entry of key {self.key!r} is no recording of a command")
        if self.behind:
            return 0
        seen = self.ran is not None and not self.held
        return (Output(None, None) if seen else self.output).play(recording)

    def path(self) -> int:
        """Have what the command makes, and print its path."""
        ask = self.cache.refresh_path if self.options.refresh else self.cache.get_or_create_path
        made = ask(self.key, self._make, name=self.options.output, **self.choices)
        if not self.behind:
            write(1, os.fsencode(made) + b"\n")
        return 0

    def warm(self) -> int:
        """Have it run in the background if there is nothing yet."""
        choices = {n: c for n, c in self.choices.items() if n in ("max_age", "inputs")}
        if self.options.output is not None:
            there = self.cache.get_path(self.key, **choices)
        else:
            there = self.cache.get(self.key, codec="bytes", **choices)
        if there is None or self.options.refresh:
            self._start_behind()
        return 0

    def failed(self, error: CommandFailed) -> int:
        """Show what a command wrote that failed, unless it was seen, and return its status."""
        status, recording = error.args
        seen = self.ran is not None and not self.held
        if not seen and not self.behind:
            recording = self.ran or recording
            if recording is None:
                text = f"{error} in another process, and wrote too much to be shown here"
                return _say(Misuse(text), status)
            self.output.play(recording)
        return int(status)

    # -- the factories ---------------------------------------------------------------

    def _record(self) -> bytes:
        return self._run(self.command)

    def _make(self, target: Path) -> None:
        recording = self._run([word.replace(OUTPUT, str(target)) for word in self.command])
        if self.held and not self.behind:
            self.output.play(recording)

    def _run(self, command: list[str]) -> bytes:
        from .._build import current_build
        from ._child import run_command

        output = Output(None, None) if self.behind or self.held else self.output
        build = current_build()
        handed = self.cache._protocol.circles.handed
        tokens = [*handed, *([] if build.claim is None else [build.claim.token])]
        status, started, recorder = run_command(
            command, self.given, output, build.progress, {_BUILDING: " ".join(tokens)}
        )
        recording = self.ran = recorder.finish(status)
        if status and not (self.options.keep_failures and started):
            raise CommandFailed(status, recording if len(recording) <= _LARGEST_FAILURE else None)
        return recording

    # -- inside ----------------------------------------------------------------------

    def _choices(self) -> dict[str, Any]:
        """Return what the library is asked for."""
        options = self.options
        names = ("max_age", "stale_for", "stale_on_error", "timeout", "on_store_error")
        chosen = {name: getattr(options, name) for name in names}
        if options.max_age is None and os.environ.get("ATOMCACHE_MAX_AGE"):
            try:
                chosen["max_age"] = duration(os.environ["ATOMCACHE_MAX_AGE"])
            except Misuse as error:
                raise Misuse(f"ATOMCACHE_MAX_AGE: {error}") from None
        chosen |= {"tags": options.tag or None, "inputs": options.input or None}
        return {name: choice for name, choice in chosen.items() if choice is not None}

    def _open(self) -> Cache:
        show = sys.stderr is not None and sys.stderr.isatty() and not self.behind
        cache = open_cache(self.options, on_wait=_Shown().see if show else None)
        cache._protocol.circles.handed = frozenset(os.environ.get(_BUILDING, "").split())
        if not self.behind:
            cache._protocol.start_behind = lambda build: self._start_behind()
        return cache

    def _start_behind(self) -> None:
        """Have a process of its own do what this one was asked for, and not wait for it."""
        import subprocess
        import tempfile

        environment = {**os.environ, _BEHIND: "1"}
        environment.pop(_BUILDING, None)  # nobody waits for that process
        with tempfile.TemporaryFile() as given:
            given.write(self.given or b"")
            given.seek(0)
            subprocess.Popen(
                [sys.executable, "-c", _REBUILD.format(sys.path), "run", *self.options.arguments],
                env=environment,
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


class _Shown:
    """Shows what is waited for; what draws it is loaded when there is something to show."""

    def __init__(self) -> None:
        self._display: Callable[[Waiting], None] | None = None

    def see(self, waiting: Waiting) -> None:
        if self._display is None:
            self._display = self._find()
        self._display(waiting)

    def _find(self) -> Callable[[Waiting], None]:
        try:
            from .._display import Display, find_console

            return Display(find_console()).see
        except ImportError:
            return lambda waiting: None


def _say(error: Exception, status: int) -> int:
    try:
        sys.stderr.write(f"atomcache run: {line_of(error)}\n")
    except OSError:  # nobody is there to be told, but whoever reads the status
        pass
    return status


def _fill_streams() -> None:
    """Open what is closed of the standard streams, lest a file of the cache gets its number.

    What the command writes would go into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _end_by(number: int) -> int:
    """End as a signal would have ended this process, so that shells stop their loops."""
    import signal

    if hasattr(os, "register_at_fork"):  # POSIX
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number
