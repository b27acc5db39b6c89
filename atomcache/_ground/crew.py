"""The crew of an examination: the helpers, as seen by the process that started them.

What it is for: whatever touches the filesystem is done by helpers, processes that run this
package as a program.  Here they are started, told what to do, waited for and ended.  An answer is
waited for no longer than the patience that was given, so a filesystem that hangs leads to a
finding and not to a hang.

Who calls it: the examination and its trials.  What may go wrong: `NoAnswer` from a helper that
hangs or has ended, `OSError` as the filesystem gave it to a helper, and `RuntimeError` where a
task itself has a mistake.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

GRACE = 1.0
"""Seconds for which those are waited for that were killed, or hang."""

RACERS = 3
"""Helpers beside the one that keeps the folder."""

_PROGRAM = __name__.rpartition(".")[0]
"""What a helper runs: this package, as a program."""

_HOME = str(Path(os.path.abspath(__file__)).parents[2])
"""Where helpers find the library, wherever the caller has it from: a folder or an archive."""


class NoAnswer(Exception):
    """A helper did not answer in time, or ended."""


class Helper:
    """A process that does what it is told."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._line: str | None = None
        self.busy = False
        path = os.pathsep.join(filter(None, [_HOME, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One that hangs must not keep anything open that somebody else reads.
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            # Ctrl-C is for the caller, who then lets the helpers end in order.
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def start(self, task: str, *arguments: Any) -> None:
        """Give out a task; its answer has to be fetched before the next one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([task, *arguments]) + "\n")
            self._process.stdin.flush()
            self.busy = True
        except BrokenPipeError:
            raise NoAnswer("a process of the trial ended by itself") from None

    def answered(self, within: float) -> bool:
        """Tell whether there is an answer, or will be in time; raise if there can't be one."""
        if self._line is None:
            try:
                self._line = self._lines.get(timeout=within)
            except Empty:
                return False
        if not self._line:
            raise NoAnswer("a process of the trial ended by itself")
        return True

    def answer(self) -> Any:
        """Return the answer; raise the `OSError` that it is, or `NoAnswer`."""
        if not self.answered(self._patience):
            raise NoAnswer(f"no answer within {self._patience:g} s")
        line, self._line, self.busy = self._line, None, False
        answer, error, mistake = json.loads(line or "")
        if mistake is not None:
            raise RuntimeError(f"a trial has a mistake:\n{mistake}")
        if error is not None:
            raise OSError(*error)
        return answer

    def ask(self, task: str, *arguments: Any) -> Any:
        """Have a task done and return its answer."""
        self.start(task, *arguments)
        return self.answer()

    def kill(self) -> None:
        """End the process as the kernel does; not even that ends who hangs in the kernel."""
        self._process.kill()

    def end(self, within: float) -> bool:
        """Let the process end; `False` if it doesn't, or can't remove what it made."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            Thread(target=process.wait, daemon=True).start()  # to leave no zombie
            return False
        self._reader.join()
        process.stdout.close()
        return process.returncode == 0


class Crew:
    """The helpers of one examination: one that keeps the folder, and those who race."""

    def __init__(self, asked: str, patience: float) -> None:
        self.asked = asked
        self.patience = patience
        self.folder: str | None = None
        self.keeper = Helper(patience)
        self.others: list[Helper] = []
        try:
            for _ in range(RACERS):
                self.others.append(Helper(patience))
        except BaseException:
            self.end(GRACE)
            raise

    def path(self, name: str = "") -> str:
        """Return a path in the folder of the trials."""
        assert self.folder is not None
        return os.path.join(self.folder, name) if name else self.folder

    def all(self, task: str, *arguments: Any) -> list[Any]:
        """Have all racers do a task at the same time; return their answers."""
        for each in self.others:
            each.start(task, *arguments)
        answers, trouble = [], None
        for each in self.others:
            try:
                answers.append(each.answer())
            except OSError as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return answers

    def race(self, what: str) -> tuple[int, int]:
        """Race for something; return how often, and how often not exactly one has won."""
        found = self.all("race", what, self.path(f"race-{what}-"), monotonic() + 0.02)
        self.all("end_race")  # only now: who is late must find locks taken
        rounds = min(tried for tried, _ in found)
        won = [turn for _, turns in found for turn in turns]
        return rounds, sum(won.count(turn) != 1 for turn in range(rounds))

    def replace(self, helper: Helper) -> None:
        """Kill a racer, and have another one in its place."""
        helper.kill()
        helper.end(GRACE)
        self.others[self.others.index(helper)] = Helper(self.patience)

    def settle(self) -> None:
        """Have nobody at work any more, after a trial that broke off."""
        for each in self.others:
            if each.busy:
                self.replace(each)

    def end(self, within: float) -> str | None:
        """End all helpers; return the folder of the trials if it is not removed in time."""
        for each in self.others:
            each.kill()
        until = monotonic() + GRACE
        for each in self.others:
            each.end(max(0.0, until - monotonic()))
        # Who keeps the folder is never killed: if it hangs, it removes it when it can.
        return None if self.keeper.end(within) else self.folder
