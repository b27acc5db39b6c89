"""A command that runs: its output is passed on and taken down, signals reach it.

It may tell how far it is, in lines that it writes to a descriptor of its own (see `_Progress`).

Who calls it: `atomcache run`, where it comes to build.  What may go wrong: `Interrupted`, when
this process was told to end; what can't be started is taken down as the status that shells give
it, 127 for what is not found and 126 for what can't be run.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from ._recording import ERR, OUT, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._recording import Output

    Report = Callable[[float, float | None, str], None]

NOT_FOUND = 127
CANNOT_RUN = 126
_SIGNALED = 128

PROGRESS = "ATOMCACHE_PROGRESS_FD"

_CHUNK = 65_536
_LOOK_AT_SCRIPT = 512
"""Bytes by which a program of another machine's is told from a script: it has zeros there."""

_LOOK_AT_CHILD = 0.2
"""Seconds after which to look whether a child that was told to end has done so."""

_PASSED_ON = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
]
_FROM_KEYS = [signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT)]


class Interrupted(KeyboardInterrupt):
    """The process was told to end, and the command with it.

    Like Ctrl-C in a factory, it is no failure of the build: whoever waits tries anew.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_command(
    command: Sequence[str],
    given: bytes | None,
    output: Output,
    report: Report,
    environment: dict[str, str],
) -> tuple[int, bool, Recorder]:
    """Run a command to its end.

    Parameters
    ----------
    command
        The program and its arguments.
    given
        What it reads on its standard input; `None` for nothing.
    output
        To which what it writes is passed on as it comes.
    report
        Called when it tells how far it is, as `Build.progress`.
    environment
        What is added to that of this process.

    Returns
    -------
    int, bool, Recorder
        Its exit status as shells give it, whether it ran at all, and what it wrote.
    """
    recorder = Recorder()

    def take(stream: int, data: bytes) -> None:
        recorder.add(stream, data)
        output.write(stream, data)

    with _Signals() as signals, _Progress(report) as progress:
        try:
            child = _start(command, given, {**environment, **progress.environment})
        except OSError as error:
            text = f"atomcache run: can't run {command[0]!r}: {error.strerror or error}\n"
            take(ERR, text.encode("utf-8", "backslashreplace"))
            missing = isinstance(error, FileNotFoundError)
            return (NOT_FOUND if missing else CANNOT_RUN), False, recorder
        progress.close_childs_end()
        signals.send_to(child)
        with child:
            _follow(child, take, progress, signals)
        status = child.returncode
    if signals.received:
        raise Interrupted(signals.received[0])
    return (status if status >= 0 else _SIGNALED - status), True, recorder


def _follow(
    child: subprocess.Popen[bytes],
    take: Callable[[int, bytes], None],
    progress: _Progress,
    signals: _Signals,
) -> None:
    """Take what a child writes, and hear how far it is, until both its streams have ended."""
    assert child.stdout is not None
    assert child.stderr is not None
    streams = {child.stdout.fileno(): OUT, child.stderr.fileno(): ERR}
    with selectors.DefaultSelector() as selector:
        for descriptor in [*streams, *progress.readable()]:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_LOOK_AT_CHILD)
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fd)
                    streams.pop(key.fd, None)
                elif key.fd in streams:
                    take(streams[key.fd], data)
                else:
                    progress.hear(data)
            # What it has started itself may have its pipes open for ever.
            enough = signals.received or not streams
            if enough and not ready and child.poll() is not None:
                break


def _start(
    command: Sequence[str], given: bytes | None, more: dict[str, str]
) -> subprocess.Popen[bytes]:
    if not command[0]:  # which the system would take for each folder of the path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if given is None:
        return _start_reading(command, subprocess.DEVNULL, more)
    import tempfile

    with tempfile.TemporaryFile() as file:  # a pipe would have to be fed while output is read
        file.write(given)
        file.seek(0)
        return _start_reading(command, file, more)


def _start_reading(
    command: Sequence[str], given: Any, more: dict[str, str]
) -> subprocess.Popen[bytes]:
    how: dict[str, Any] = {
        "stdin": given,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "bufsize": 0,
        "env": {**os.environ, **more},
        # What the caller hands on is for the command; what Python opens is not inheritable.
        "close_fds": os.name == "nt",
    }
    try:
        return subprocess.Popen(command, **how)
    except OSError as error:
        script = _script(command[0]) if error.errno == errno.ENOEXEC else None
        if script is None:
            raise
        return subprocess.Popen(["/bin/sh", script, *command[1:]], **how)


def _script(name: str) -> str | None:
    """Return the path of a script without ``#!``, which shells run by themselves."""
    from shutil import which

    path = which(name)
    if path is None:
        return None
    with open(path, "rb") as file:
        return None if b"\0" in file.read(_LOOK_AT_SCRIPT) else path


class _Progress:
    """How far a command is, as far as it tells: a pipe, whose other end it has.

    To the descriptor whose number is in the environment variable `PROGRESS` it may write lines
    such as ``3 10 linking``: how much is done, of how much, and a note, of which only the first
    is needed.  Lines of any other form are ignored.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._pipe: list[int] = []
        self._begun = b""
        self.environment: dict[str, str] = {}
        if hasattr(os, "set_inheritable") and os.name != "nt":
            self._pipe = list(os.pipe())
            os.set_inheritable(self._pipe[1], True)
            self.environment = {PROGRESS: str(self._pipe[1])}

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._pipe:
            os.close(descriptor)

    def close_childs_end(self) -> None:
        """Have only the child write."""
        if self._pipe:
            os.close(self._pipe.pop())

    def readable(self) -> list[int]:
        """Return what can be read, if there is anything."""
        return self._pipe[:1]

    def hear(self, data: bytes) -> None:
        """Understand what was read."""
        *lines, begun = (self._begun + data).split(b"\n")
        self._begun = begun[-_CHUNK:]
        for line in lines:
            told = _understood(line)
            if told is not None:
                self._report(*told)


def _understood(line: bytes) -> tuple[float, float | None, str] | None:
    """Return what a line says of how far a command is; `None` for rubbish."""
    from math import isfinite

    parts = line.decode("utf-8", "replace").split(None, 2)
    try:
        done, *total = map(float, parts[:2])
    except ValueError:
        return None
    if not all(map(isfinite, [done, *total])):
        return None
    return done, total[0] if total else None, parts[2].strip() if len(parts) > 2 else ""


class _Signals:
    """Passes signals on to a child for as long as the block runs."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _PASSED_ON:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def send_to(self, child: subprocess.Popen[bytes]) -> None:
        """Name the child, and pass on what came before it was there."""
        self._child = child
        for number in self.received:
            child.send_signal(number)

    def _receive(self, number: int, _frame: object) -> None:
        self.received.append(number)
        # The terminal sends keys' signals to the child as well; twice can mean "at once".
        by_key = number in _FROM_KEYS and len(self.received) == 1 and _in_foreground()
        if self._child is not None and not by_key:
            self._child.send_signal(number)


def _in_foreground() -> bool:
    """Tell whether this process and its children are who the terminal sends signals to."""
    if not hasattr(os, "tcgetpgrp"):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
