"""Shared fixtures when a run ends early or a worker dies."""

import signal
import subprocess
import sys

import pytest

from atomcache._workers import Workers

from .crew import PATIENCE, until
from .pytest_suite import SERVER, TWO

pytest_plugins = ["pytester"]


# -- runs that end early -------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_a_run_that_stops_early_still_ends_what_it_built(suite, option):
    suite.write(
        """
@A
def test_build(database):
    say("built here")
    wait_for("failing")

@A
def test_never(database): ...

@B
def test_fail(database):
    wait_for("built here")
    say("failing")
    assert False

@B
def test_never_either(database): ...
""",
        SERVER,
    )
    result = suite.run(*TWO, option)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.parseoutcomes()["failed"] == 1
    assert suite.count("built") == suite.count("ended") == 1
    assert suite.said()[-1] == "ended"


def test_an_interrupted_run_ends_what_it_built(suite):
    suite.write(
        """
@A
def test_build(database): ...

@B
def test_hang(database):
    wait_for("dropped")
    say("now")
    wait_for("never")
""",
        SERVER,
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TWO]
    with open(suite.pytester.path / "output", "w") as output:
        run = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # may be ignored here
        )
        try:
            until(lambda: suite.count("now"), "the builder is done")
            run.send_signal(signal.SIGINT)
            run.wait(PATIENCE)
        finally:
            run.kill()
    assert suite.said()[-1] == "ended", (suite.pytester.path / "output").read_text()


# -- workers that die ----------------------------------------------------------------------


def test_a_worker_that_is_replaced_while_the_builder_waits_gets_the_same_server(suite):
    suite.write(
        """
@A
def test_build(database): ...

@B
def test_die():
    wait_for("dropped")  # from now on the builder only waits for this worker
    die()

@B
def test_in_the_replacement(database):
    assert greet(database) == b"hello"
    say("used")
""",
        SERVER,
    )
    result = suite.run(*TWO)
    assert result.parseoutcomes()["failed"] == suite.count("dying") == 1
    assert suite.count("built") == suite.count("ended") == 1
    assert suite.count("used") == 1
    assert suite.said()[-1] == "ended"


def test_a_worker_that_is_not_replaced_is_not_waited_for(suite):
    suite.write(
        """
@A
def test_build(database): ...

@B
def test_die(request):
    wait_for("built")
    request.getfixturevalue("server")
    wait_for("dropped")
    die()
""",
        SERVER,
    )
    result = suite.run(*TWO, "--max-worker-restart=0")
    assert result.parseoutcomes()["failed"] == 1
    assert suite.count("built") == suite.count("ended") == 1


def test_when_nobody_is_replaced_any_more_a_dead_worker_is_not_waited_for(tmp_path):
    first = Workers(str(tmp_path), None)
    for name in ("gw0", "gw1", "gw2"):
        first.expect(name)
    ours, theirs = (Workers(str(tmp_path), name) for name in ("gw0", "gw1"))
    assert ours.others_at_work().keys() == {"gw1", "gw2"}  # one of them is still to start
    first.end()
    assert ours.others_at_work().keys() == {"gw1"}
    theirs.end()  # as the kernel does when it dies
    assert not ours.others_at_work()
    ours.end()


def test_when_the_builder_is_killed_the_next_to_ask_builds_anew(suite):
    suite.write(
        """
@A
def test_build(server):
    say("built by a")
    wait_for("used by b")
    die()
    assert greet(server) == b"hello"

@A
def test_in_the_replacement(server):
    assert greet(server) == b"hello"
    say("used by the replacement")

@B
def test_use(request):
    wait_for("built by a")
    assert greet(request.getfixturevalue("server")) == b"hello"
    say("used by b")
    wait_for("used by the replacement")
""",
        SERVER,
    )
    result = suite.run(*TWO)
    assert result.parseoutcomes()["failed"] == suite.count("dying") == 1
    assert suite.count("built") == 2
    assert suite.count("ended") == 1
    assert suite.said()[-1] == "ended"


def test_when_a_worker_is_killed_as_it_builds_another_takes_over(suite):
    suite.write(
        """
@A
def test_one(fragile):
    assert fragile == "at last"

@B
def test_other(fragile):
    assert fragile == "at last"
""",
        """
@atomcache.pytest.shared
def fragile():
    say("begun")
    die()
    yield "at last"
    say("ended")
""",
    )
    result = suite.run(*TWO)
    assert result.parseoutcomes()["failed"] == 1
    assert suite.count("begun") == 2
    assert suite.count("ended") == 1
