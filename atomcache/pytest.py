"""The pytest plugin: expensive fixtures, built once for all workers of a test run.

What it is for: `shared` makes a fixture that is built by one worker and used by all,
`shared_cache` and `persistent_cache` are caches for what ordinary fixtures make.  The plugin
registers itself when atomcache is installed.  Without pytest-xdist there is one process, and
a shared fixture is an ordinary one.

Here is what pytest looks for, hooks and fixtures.  The decorator is in `_shared_fixture`, how
the processes of a run share a fixture is told in `_sharing`.

Who calls it: pytest, and test suites.  What may go wrong: `OptionError` for a fixture that
can't be shared, `CodecError` for a value that can't be given to other processes.
"""

from __future__ import annotations

import pytest

from ._errors import AtomcacheError
from ._shared_fixture import shared
from ._test_run import RUN, Run, run_of
from ._test_summary import summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ._cache import Cache

__all__ = ["shared"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the plugin."""
    parser.getgroup("atomcache").addoption(
        "--atomcache-clear",
        action="store_true",
        help="empty the cache of the fixture persistent_cache before the tests run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, or join it."""
    config.stash[RUN] = Run(config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Empty the persistent cache, before there are workers that use it."""
    if session.config.getoption("--atomcache-clear") and not hasattr(
        session.config, "workerinput"
    ):
        try:
            run_of(session.config).persistent_cache().clear()
        except (AtomcacheError, OSError) as error:
            raise pytest.UsageError(
                f"--atomcache-clear can't empty the persistent cache: {error}"
            ) from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of the run; xdist is about to start it."""
    run_of(node.config).expect(node)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Note that a worker died."""
    if error is not None:
        run_of(node.config).lost(node)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Remember the test that is being torn down."""
    run_of(item.config).item = item


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Show that this worker gets on."""
    try:
        return (yield)
    finally:
        run = run_of(item.config)
        if run.workers is not None:
            run.workers.beat()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Tell the others that this process is over."""
    run = run_of(session.config)
    run.count_hits()
    if not hasattr(session.config, "workerinput"):
        run.finish()  # before xdist ends workers that still run
        run.read_journal()  # before pytest removes its temporary folder, if it is told to
    try:
        return (yield)
    finally:
        run.finish()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what was built and what that saved."""
    lines = list(summary(run_of(terminalreporter.config).events()))
    if lines:
        terminalreporter.section("atomcache")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    run = config.stash.get(RUN, None)
    if run is not None:
        run.close()


@pytest.fixture(scope="session")
def shared_cache(request: pytest.FixtureRequest) -> Cache:
    """Return a `Cache` that lives for one test run and is the same in every worker."""
    return run_of(request.config).shared_cache()


@pytest.fixture(scope="session")
def persistent_cache(request: pytest.FixtureRequest) -> Cache:
    """Return a `Cache` that is kept between runs; ``--atomcache-clear`` empties it."""
    return run_of(request.config).persistent_cache()
