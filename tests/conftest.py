"""Fixtures that all tests share."""

import signal

import pytest

from atomcache import Cache

from .crew import Crew
from .pytest_suite import Suite


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run the long version of the simulation, crash, power-cut, soak and fuzzing tests",
    )


def pytest_configure():
    # A shell that starts a command in the background has it ignore Ctrl-C, as nohup does with a
    # hangup, and all that it starts in turn would too: programs under test have to end by it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # what it starts gets the default


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether the long version was asked for."""
    return pytestconfig.getoption("--thorough")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def crew():
    with Crew() as crew:
        yield crew


@pytest.fixture
def suite(pytester, monkeypatch):
    """Return a `Suite`, for modules that load the plugin pytester."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "user"))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    return Suite(pytester)
