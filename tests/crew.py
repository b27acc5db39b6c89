"""Real processes for the tests: started quickly, talked to over pipes, never left over.

A test function that is to run in another process takes a `Line` as its first parameter,
over which it tells the test where it is and waits for the word to go on.  Every wait in
here is bounded, and a crew kills whoever is left when its block ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection, wait

PATIENCE = 60.0
"""Seconds after which a wait that should have ended long ago counts as a hang."""

context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
context.set_forkserver_preload(["atomcache", "atomcache._listing", "pytest", "tests.crew"])


class Hang(AssertionError):
    """Something that had to happen did not."""


class Line:
    """One end of a connection between a test and a process of its crew."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def tell(self, word):
        self.connection.send(("word", word))

    def hear(self, *expected):
        if not self.connection.poll(PATIENCE):
            raise Hang(f"nobody said {expected}")
        kind, word = self.connection.recv()
        assert kind == "word", word
        assert not expected or word in expected, word
        return word


class Member(Line):
    """A process of a crew, seen from the test."""

    def __init__(self, function, args) -> None:
        ours, theirs = context.Pipe()
        super().__init__(ours)
        self.process = context.Process(target=_run, args=(theirs, function, args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self):
        return self.process.pid

    def hear(self, *expected):
        """Return the next word; raise what the process raised instead, if it did."""
        if not self.connection.poll(PATIENCE):
            raise Hang(f"process {self.pid} did not say {expected}")
        kind, word = self.connection.recv()
        if kind == "raised":
            raise AssertionError(f"process raised:\n{word[1]}") from word[0]
        assert kind == "word", (kind, word)
        assert not expected or word in expected, word
        return word

    def result(self):
        """Return what the function returned, or raise what it raised."""
        while True:
            if not self.connection.poll(PATIENCE):
                raise Hang(f"process {self.pid} did not end")
            kind, word = self.connection.recv()
            if kind == "returned":
                return word
            if kind == "raised":
                raise word[0]

    def kill(self, *, reap=True):
        """End the process as the kernel does, without a chance to clean up."""
        os.kill(self.pid, signal.SIGKILL)
        if reap:
            self.process.join(PATIENCE)


class Crew:
    """Several processes; who is left at the end of the block is killed."""

    def __init__(self) -> None:
        self.members = []

    def start(self, function, *args):
        member = Member(function, args)
        self.members.append(member)
        return member

    def results(self):
        return [member.result() for member in self.members]

    def first_to_speak(self, members=None):
        """Return the first process that has something to say."""
        by_line = {member.connection: member for member in members or self.members}
        ready = wait(list(by_line), PATIENCE)
        if not ready:
            raise Hang("nobody says anything")
        return by_line[ready[0]]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for member in self.members:
            if member.process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGCONT)
                member.process.kill()
        for member in self.members:
            member.process.join(PATIENCE)
            member.connection.close()


def _run(connection, function, args):
    line = Line(connection)
    try:
        result = function(line, *args)
    except BaseException as error:
        text = traceback.format_exc()
        try:
            connection.send(("raised", (error, text)))
        except Exception:
            connection.send(("raised", (RuntimeError(text), text)))
    else:
        connection.send(("returned", result))


def until(condition, what="the condition"):
    """Look until `condition()` is true, and return what it gave."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Hang(f"{what} never came true")
        time.sleep(0.002)  # a pause between looks, not a guess at how long it takes


def sleepers(path):
    """Return how many processes the kernel has asleep on the lock of a file."""
    try:
        inode = os.stat(path).st_ino
    except FileNotFoundError:
        return 0
    with open("/proc/locks") as table:
        return sum(f":{inode} " in line and "->" in line for line in table)


def leftovers(directory):
    """Return claims and scratch in a cache folder."""
    return [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(directory)
        for name in folders + files
        if ".temp" in name
    ]
