"""A small test suite that is run by pytest, for tests of the pytest plugin.

Its tests meet each other through files in the folder they run in: `say` adds a line to a
common log, and `wait_for` waits until somebody said something.  Tests under ``@A`` are written
into one file and those under ``@B`` into another; with `TWO` each file is run by a worker of
its own, in order.

Who calls it: the fixture `suite`, and tests that add to what is here.  What may go wrong: a
wait that lasts `PATIENCE` fails.
"""

import re

from .crew import PATIENCE

HELPERS = """
import os, pathlib, signal, socket, sys, time
import pytest
import atomcache.pytest

def say(*words):
    line = " ".join(map(str, words)) + "\\n"
    with open("log", "ab", buffering=0) as log:
        log.write(line.encode())

def said(*words):
    try:
        with open("log") as log:
            return " ".join(map(str, words)) in log.read().splitlines()
    except FileNotFoundError:
        return False

def wait_for(*words):
    deadline = time.monotonic() + PATIENCE
    while not said(*words):
        assert time.monotonic() < deadline, f"nobody said {words}"
        time.sleep(0.002)

def worker():
    return os.environ.get("PYTEST_XDIST_WORKER", "alone")

def die():
    if not said("dying"):  # xdist runs a test again that it saw crash, if it is told to
        say("dying")
        os.kill(os.getpid(), signal.SIGKILL)

class Server:
    def __init__(self):
        import threading
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()
    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"hello")
    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

def greet(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        return connection.recv(5)

def meet(number):
    say("here", worker())
    for each in range(number):
        wait_for("here", f"gw{each}" if number > 1 or worker() != "alone" else "alone")
"""

SERVER = """
@atomcache.pytest.shared(scope="session")
def server():
    say("built")
    server = Server()
    yield server.socket.getsockname()[1]
    server.close()
    say("ended")

@pytest.fixture(scope="session")
def database(server):
    yield server
    assert greet(server) == b"hello"  # what uses a server is ended before it
    say("dropped")
    say("dropped by", worker())
"""

TWO = ("-n2", "--dist=loadfile")


class Suite:
    """A test suite of its own, in a folder of its own."""

    def __init__(self, pytester):
        self.pytester = pytester
        self.log = pytester.path / "log"

    def write(self, tests, conftest=""):
        self.make("suite", HELPERS)
        self.make("conftest", f"from suite import *\n{conftest}")
        common, *parts = re.split(r"^@([AB])\n", tests, flags=re.MULTILINE)
        files = {"it": common} if not parts else {"a": common, "b": common}
        for name, part in zip(parts[::2], parts[1::2], strict=True):
            files[name.lower()] += part
        for name, text in files.items():
            self.make(f"test_{name}", f"from suite import *\n{text}")
        self.pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def make(self, module, text):
        self.pytester.makepyfile(**{module: text.replace("PATIENCE", str(PATIENCE))})

    def run(self, *arguments):
        command = ("-p", "no:cacheprovider", *arguments)
        return self.pytester.runpytest_subprocess(*command, timeout=2 * PATIENCE)

    def said(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def count(self, word):
        return self.said().count(word)
