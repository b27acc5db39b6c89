"""A command that runs: its output is passed on and taken down, signals reach it.

Who calls it: `atomcache run`, where it comes to build.  What may go wrong: `Interrupted`, when
this process was told to end; what can't be started is taken down as the status that shells give
it, 127 for what is not found and 126 for what can't be run.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from ._recording import ERR, OUT, Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._recording import Output

NOT_FOUND = 127
CANNOT_RUN = 126
_SIGNALED = 128

_CHUNK = 65_536
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
    command: Sequence[str], given: bytes | None, output: Output
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

    Returns
    -------
    int, bool, Recorder
        Its exit status as shells give it, whether it ran at all, and what it wrote.
    """
    recorder = Recorder()
    with _Signals() as signals:
        try:
            child = _start(command, given)
        except OSError as error:
            text = f"atomcache run: can't run {command[0]!r}: {error.strerror or error}\n"
            told = text.encode("utf-8", "backslashreplace")
            recorder.add(ERR, told)
            output.write(ERR, told)
            missing = isinstance(error, FileNotFoundError)
            return (NOT_FOUND if missing else CANNOT_RUN), False, recorder
        signals.send_to(child)
        with child, selectors.DefaultSelector() as selector:
            assert child.stdout is not None
            assert child.stderr is not None
            selector.register(child.stdout, selectors.EVENT_READ, OUT)
            selector.register(child.stderr, selectors.EVENT_READ, ERR)
            while selector.get_map():
                ready = selector.select(_LOOK_AT_CHILD)
                for pipe, _ in ready:
                    data = os.read(pipe.fd, _CHUNK)
                    if data:
                        recorder.add(pipe.data, data)
                        output.write(pipe.data, data)
                    else:
                        selector.unregister(pipe.fileobj)
                if not ready and signals.received and child.poll() is not None:
                    break  # what it has started itself may have its pipes open for ever
        status = child.returncode
    if signals.received:
        raise Interrupted(signals.received[0])
    return (status if status >= 0 else _SIGNALED - status), True, recorder


def _start(command: Sequence[str], given: bytes | None) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    if given is None:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, **pipes)
    import tempfile

    with tempfile.TemporaryFile() as file:  # a pipe would have to be fed while output is read
        file.write(given)
        file.seek(0)
        return subprocess.Popen(command, stdin=file, **pipes)


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
