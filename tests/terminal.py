"""A real terminal for the tests: a program runs in it, what it shows is read, keys are typed.

A `Terminal` gives its program a session and a controlling terminal of its own, so Ctrl-C
there is what it is elsewhere: a signal from the kernel to all in the foreground.  Every wait
in here is bounded, and whoever is left in the session is killed when the block ends.
"""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from .crew import PATIENCE, Hang

CTRL_C = b"\x03"

_LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program in a pseudo-terminal.

    Parameters
    ----------
    command
        The path of the program, and its arguments.
    columns
        How wide the terminal is.
    **options
        For `subprocess.Popen`, such as ``env`` and ``cwd``.
    """

    def __init__(self, command, *, columns=160, **options) -> None:
        import termios

        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, columns))
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", _LAUNCH, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            **options,
        )
        os.close(slave)

    def read(self):
        """Read what there is; `False` at the end."""
        if not select.select([self.master], [], [], PATIENCE)[0]:
            raise Hang(f"nothing more on the terminal after {self.seen[-2000:]!r}")
        try:
            piece = os.read(self.master, 65_536)
        except OSError:  # Linux's way to say that nobody has the other side open
            piece = b""
        self.seen += piece
        return bool(piece)

    def until(self, pattern):
        """Read until something stands there; return all that does."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.seen):
            if not self.read() or time.monotonic() > deadline:
                raise Hang(f"{pattern!r} never stood in {self.seen[-2000:]!r}")
        return self.seen

    def type(self, keys):
        os.write(self.master, keys)

    def end(self, status=0):
        """Read to the end, and return all that stood there."""
        deadline = time.monotonic() + PATIENCE
        while self.read():
            if time.monotonic() > deadline:
                raise Hang(f"the program goes on after {self.seen[-2000:]!r}")
        assert self.process.wait(PATIENCE) == status, self.seen
        assert b"Traceback" not in self.seen, self.seen
        return self.seen

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end_session(self.process)
        os.close(self.master)


def end_session(process):
    """Kill a process that leads a session, with all that it has started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


def screen(seen, columns=1000):
    """Return the lines that stand on a terminal after all that was written to it."""
    lines, row, column = [""], 0, 0
    text = seen.decode("utf-8", "replace")
    for number, letter, char in re.findall(
        r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b])", text, re.DOTALL
    ):
        if letter == "A":
            row = max(0, row - int(number or 1))
        elif letter == "K" and number in ("2", ""):
            lines[row] = "" if number == "2" else lines[row][:column]
        elif char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif char:
            if column == columns:
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + char + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]
