"""What `atomcache.pytest` promises to who shares fixtures, tested by running pytest.

Each test here writes a small test suite and runs it in processes of its own.  Its tests meet
each other through files in the folder they run in: `say` adds a line to a common log, and
`wait_for` waits until somebody said something.  Tests under ``@A`` are written into one file
and those under ``@B`` into another; with `TWO` each file is run by a worker of its own, in order.
"""

import os
import re
import signal
import stat
import subprocess
import sys

import pytest

import atomcache.pytest
from atomcache import OptionError
from atomcache._test_summary import summary
from atomcache._workers import Workers

from .crew import PATIENCE, until

pytest_plugins = ["pytester"]

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


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "user"))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    return Suite(pytester)


# -- built once, ended once ----------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_a_fixture_is_built_once_and_ended_after_its_last_use(suite, workers):
    suite.write(
        f"""
@pytest.mark.parametrize("n", range({workers or 3}))
def test_use(database, n):
    meet({max(workers, 1)})
    assert greet(database) == b"hello"
    say("used", n)
""",
        SERVER,
    )
    result = suite.run(*([f"-n{workers}"] if workers else ["-p", "no:xdist"]))
    result.assert_outcomes(passed=workers or 3)
    assert suite.count("built") == suite.count("ended") == 1
    assert suite.count("dropped") == max(workers, 1)
    assert suite.said()[-1] == "ended"
    by = r" by gw\d" if workers else ""
    others = (workers - 1) * r" gw\d"
    to = rf", given to{others}, \d+\.\d\d s saved" if workers > 1 else ""
    result.stdout.re_match_lines([rf"server: built{by} in \d+\.\d\d s{to}$"])


@pytest.mark.parametrize("how", ["load", "loadscope", "loadgroup", "worksteal", "each"])
def test_a_fixture_is_built_once_however_tests_are_distributed(suite, how):
    suite.write(
        """
@A
@pytest.mark.xdist_group("one")
class TestOne:
    def test_use(self, database):
        assert greet(database) == b"hello"

@B
@pytest.mark.xdist_group("two")
class TestTwo:
    def test_use(self, database):
        assert greet(database) == b"hello"
""",
        SERVER,
    )
    result = suite.run("-n2", f"--dist={how}")
    result.assert_outcomes(passed=4 if how == "each" else 2)
    assert suite.count("built") == suite.count("ended") == 1
    assert suite.said()[-1] == "ended"


def test_who_asks_after_the_builder_has_finished_gets_a_living_server(suite):
    suite.write(
        """
@A
def test_build(database):
    assert greet(database) == b"hello"

@B
def test_something_else():
    wait_for("dropped")  # at the end of the other worker

@B
def test_ask_late(database):
    assert greet(database) == b"hello"
    say("asked late")
""",
        SERVER,
    )
    suite.run(*TWO).assert_outcomes(passed=3)
    assert suite.count("built") == suite.count("ended") == 1
    assert suite.said().index("asked late") < suite.said().index("ended")


def test_a_fixture_is_not_ended_while_a_worker_that_is_over_still_uses_it(suite):
    suite.write(
        """
@A
def test_build(server): ...

@B
def test_use(request):
    wait_for("built")
    request.getfixturevalue("user")
    request.getfixturevalue("other")
""",
        SERVER
        + """
from atomcache._sharing import Sharing
look = Sharing._users

def look_and_say(sharing, path):
    found = look(sharing, path)
    if found:
        say("seen or ended")
    return found

Sharing._users = look_and_say

@pytest.fixture(scope="session")
def user(server):
    yield
    wait_for("seen or ended")  # this worker is over: it has ended what it built
    assert greet(server) == b"hello"
    say("used to the end")

@atomcache.pytest.shared
def other():
    yield
    say("other ended")
""",
    )
    conftest = suite.pytester.path / "conftest.py"
    text = conftest.read_text()
    conftest.write_text(text.replace('say("ended")', 'say("ended"); say("seen or ended")'))
    suite.run(*TWO).assert_outcomes(passed=2)
    said = suite.said()
    assert said.index("other ended") < said.index("used to the end") < said.index("ended")


def test_who_asks_while_a_fixture_is_being_ended_gets_another_one(suite):
    suite.write(
        """
@A
def test_build(count): ...

@B
def test_again(request):
    wait_for("built 1")
    if said("ending 1"):  # the second time
        say("asking again")
    assert request.getfixturevalue("count") == (2 if said("asking again") else 1)
    request.getfixturevalue("other")
""",
        """
import atomcache._sharing
wait = atomcache._sharing.wait

def say_and_wait(look, *more):
    if said("asking again"):
        say("waits or has it")
    return wait(look, *more)

atomcache._sharing.wait = say_and_wait

@atomcache.pytest.shared
def count():
    number = 2 if said("built 1") else 1
    say("built", number)
    yield number
    say("ending", number)
    if number == 1:
        wait_for("waits or has it")

@atomcache.pytest.shared
def other():
    yield  # its end makes this worker one that is over

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if item.name != "test_again":
        return None
    from _pytest.runner import runtestprotocol
    runtestprotocol(item, nextitem=None, log=False)
    wait_for("ending 1")
    item._initrequest()
    reports = runtestprotocol(item, nextitem=None, log=False)
    say("waits or has it")
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
""",
    )
    suite.run(*TWO).assert_outcomes(passed=2)
    assert [suite.count(f"built {n}") for n in (1, 2)] == [1, 1]
    assert [suite.count(f"ending {n}") for n in (1, 2)] == [1, 1]


def test_two_workers_that_each_built_what_the_other_uses_both_end_it(suite):
    suite.write(
        """
@A
def test_one(request):
    request.getfixturevalue("left")
    say("left is there")
    wait_for("right is there")
    assert request.getfixturevalue("right") == "R"

@B
def test_other(request):
    request.getfixturevalue("right")
    say("right is there")
    wait_for("left is there")
    assert request.getfixturevalue("left") == "L"
""",
        """
@atomcache.pytest.shared
def left():
    say("left")
    yield "L"
    say("left ended")

@atomcache.pytest.shared
def right():
    say("right")
    yield "R"
    say("right ended")
""",
    )
    suite.run(*TWO).assert_outcomes(passed=2)
    for word in ("left", "right", "left ended", "right ended"):
        assert suite.count(word) == 1


def test_each_parameter_is_built_once_and_ended_when_all_workers_are_done(suite):
    suite.write(
        """
@A
@pytest.mark.parametrize("n", range(2))
def test_here(kind, mode, n):
    assert kind == ["sql", "xml"][len(kind) - 3] or kind in ("sql", "xml")
    say("used")

@B
@pytest.mark.parametrize("n", range(2))
def test_there(kind, mode, n):
    assert (mode.name, mode.kind) == (mode.name, kind)
    say("used")
""",
        """
@atomcache.pytest.shared(params=["sql", "xml"])
def kind(request):
    say("built", request.param)
    yield request.param
    say("ended", request.param)

class Mode:
    def __init__(self, name):
        self.name, self.kind = name, None

MODES = [Mode("fast"), Mode("slow")]  # not plain data

@pytest.fixture(params=MODES, ids=lambda mode: mode.name, scope="session")
def mode_of(request):
    return request.param

@atomcache.pytest.shared(codec="pickle")
def mode(mode_of, kind):
    say("built", mode_of.name, kind)
    mode_of.kind = kind
    return mode_of
""",
    )
    suite.run(*TWO).assert_outcomes(passed=16)
    said = suite.said()
    built = [line for line in said if line.startswith("built")]
    assert sorted(built) == sorted(
        ["built sql", "built xml"]
        + [f"built {mode} {kind}" for mode in ("fast", "slow") for kind in ("sql", "xml")]
    )
    assert sorted(said[-2:]) == ["ended sql", "ended xml"]


def test_each_indirect_parameter_is_built_once_whatever_it_is(suite):
    suite.write(
        """
from kinds import SMALL, Sqlite, connect

both = pytest.mark.parametrize("store", [Sqlite, connect, SMALL, lambda: 0], indirect=True)

@A
@both
def test_one(store): ...

@both
def test_two(store): ...

@B
@both
def test_one(store): ...

@pytest.mark.parametrize("store", [SMALL, Sqlite], indirect=True)
def test_in_another_order(store, request):
    assert store == ("Small" if request.node.callspec.params["store"] is SMALL else "Sqlite")
""",
        """
@atomcache.pytest.shared
def store(request):
    name = getattr(request.param, "__name__", type(request.param).__name__)
    say("built", name)
    return name
""",
    )
    suite.make(
        "kinds",
        """
class Sqlite: ...
class Small: ...
def connect(): ...
SMALL = Small()
""",
    )
    suite.run(*TWO).assert_outcomes(passed=14)
    # the lambda is written in two files, so that it is two
    assert sorted(suite.said()) == sorted(
        ["built Sqlite", "built connect", "built Small", *2 * ["built <lambda>"]]
    )


def test_fixtures_of_classes_and_with_any_arguments_can_be_shared(suite):
    suite.write(
        """
class Common:
    @atomcache.pytest.shared
    @classmethod
    def of_class(cls, tmp_path_factory):
        say("class")
        yield cls.__name__
        say("ended")

    @atomcache.pytest.shared()
    @staticmethod
    def of_nothing(request):
        say("static")
        return request.fixturename

@atomcache.pytest.shared
def lenient(tmp_path_factory, *more, size=3, **options):
    say("lenient")
    return [size, more, options]

@pytest.mark.parametrize("n", range(2))
class TestIt(Common):
    def test_it(self, of_class, of_nothing, lenient, n):
        assert (of_class, of_nothing, lenient) == ("TestIt", "of_nothing", [3, (), {}])
        meet(2)
"""
    )
    suite.run("-n2").assert_outcomes(passed=2)
    said = [line for line in suite.said() if "here" not in line]
    assert sorted(said) == ["class", "ended", "lenient", "static"]


def test_workers_that_never_ask_are_not_kept_from_anything(suite):
    suite.write(
        """
@A
def test_ask(request):
    assert greet(request.getfixturevalue("database")) == b"hello"

@B
def test_else():
    wait_for("dropped")
    say("b is done")

@A
def test_deselected(database): ...
""",
        SERVER,
    )
    suite.run(*TWO, "-k", "test_ask or test_else").assert_outcomes(passed=2)
    assert suite.count("built") == 1
    assert suite.said()[-2:] == ["b is done", "ended"]


def test_what_is_returned_and_finalizers_of_the_request_are_shared_alike(suite):
    suite.write(
        """
@pytest.mark.parametrize("n", range(2))
class TestBoth:
    def test_use(self, plain, n):
        meet(2)
        assert plain == {"port": 7, "worker": plain["worker"]}
        say("used")
""",
        """
@atomcache.pytest.shared
def plain(request, tmp_path_factory):
    say("built")
    request.addfinalizer(lambda: say("ended"))
    return {"port": 7, "worker": worker()}
""",
    )
    suite.run("-n2").assert_outcomes(passed=2)
    assert [line for line in suite.said() if "here" not in line] == [
        "built",
        *2 * ["used"],
        "ended",
    ]


@pytest.mark.parametrize("how", ["argument", "getfixturevalue"])
def test_what_a_returned_value_stands_on_lives_as_long_as_it_is_used(suite, how):
    suite.write(
        """
@A
def test_build(page):
    say("built here")

@B
def test_something_else():
    wait_for("built here")
    wait_for("waiting or ended")  # the builder has run its last test

@B
def test_use(page):
    assert greet(page) == b"hello"
""",
        f"""
import atomcache._sharing
await_others = atomcache._sharing.Sharing._await_others

def say_and_wait(*arguments):
    say("waiting or ended")
    await_others(*arguments)

atomcache._sharing.Sharing._await_others = say_and_wait

@pytest.fixture(scope="session")
def site():
    server = Server()
    yield server.socket.getsockname()[1]
    server.close()
    say("waiting or ended")

@atomcache.pytest.shared
def page({"site" if how == "argument" else "request"}):
    say("built")
    return {"site" if how == "argument" else "request.getfixturevalue('site')"}
""",
    )
    suite.run(*TWO).assert_outcomes(passed=3)
    assert suite.count("built") == 1


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


# -- errors --------------------------------------------------------------------------------


def test_every_worker_reports_the_one_error_also_those_that_ask_later(suite):
    suite.write(
        """
def ask(request, name):
    try:
        request.getfixturevalue(name)
    except BaseException as error:
        cause = type(error.__cause__).__name__
        say("got", type(error).__name__, error, error.args)
        say("caused by", cause)
        raise
    finally:
        say("asked for", name)

@A
@pytest.mark.parametrize("name", ["broken", "refused", "absent", "hopeless"])
def test_first(request, name):
    ask(request, name)

@B
@pytest.mark.parametrize("name", ["broken", "refused", "absent", "hopeless"])
def test_later(request, name):
    wait_for("asked for", name)
    ask(request, name)
""",
        """
class NoLuck(ValueError):
    pass

@atomcache.pytest.shared
def broken():
    say("tried broken")
    raise NoLuck("no luck", 13)

@atomcache.pytest.shared
def refused():
    say("tried refused")
    pytest.fail("there is no licence")
    yield

@atomcache.pytest.shared
def absent():
    say("tried absent")
    pytest.skip("there is no database here")

@atomcache.pytest.shared
def hopeless():
    say("tried hopeless")
    pytest.xfail("known to fail")
""",
    )
    result = suite.run(*TWO, "-rsx")
    result.assert_outcomes(failed=4, skipped=2, xfailed=2)
    for name in ("broken", "refused", "absent", "hopeless"):
        assert suite.count(f"tried {name}") == 1
    for kind, error in [
        ("NoLuck", "('no luck', 13) ('no luck', 13)"),
        ("Failed", "there is no licence ('there is no licence',)"),
        ("Skipped", "there is no database here ('there is no database here',)"),
        ("XFailed", "known to fail ('known to fail',)"),
    ]:
        assert suite.count(f"got {kind} {error}") == 2
    assert suite.count("caused by RemoteTraceback") == 1
    result.stdout.no_fnmatch_line("*in _build*")
    result.stdout.no_fnmatch_line("*value = make()*")
    text = result.stdout.str()
    assert text.count("E   ") >= 4
    assert text.count("NoLuck: ('no luck', 13)") >= 2
    assert "RemoteTraceback" in text
    assert text.count("Failed: there is no licence") >= 2
    assert text.count("there is no database here") >= 2
    assert text.count("known to fail") >= 2


def test_a_fixture_that_exits_or_is_cancelled_is_tried_once_as_well(suite):
    suite.write(
        """
@A
@pytest.mark.parametrize("name", ["leaving", "cancelled"])
def test_first(request, name):
    request.getfixturevalue(name)

@B
@pytest.mark.parametrize("name", ["leaving", "cancelled"])
def test_second(request, name):
    request.getfixturevalue(name)
""",
        """
import asyncio

@atomcache.pytest.shared
def leaving():
    say("tried")
    sys.exit("no licence")

@atomcache.pytest.shared
def cancelled():
    say("tried")
    raise asyncio.CancelledError
    yield
""",
    )
    result = suite.run(*TWO)
    result.assert_outcomes(failed=4)
    assert suite.said() == ["tried", "tried"]
    text = result.stdout.str()
    assert text.count("BuildFailedError: the fixture raised SystemExit: no licence") >= 2
    assert text.count("BuildFailedError: the fixture raised CancelledError") >= 2


def test_a_value_that_can_not_travel_is_an_error_everywhere_and_is_ended(suite):
    suite.write(
        """
@A
def test_one(stuck): ...

@B
def test_other(stuck): ...
""",
        """
@atomcache.pytest.shared
def stuck():
    say("built")
    yield open("log")
    say("ended")
""",
    )
    result = suite.run(*TWO)
    result.assert_outcomes(errors=2)
    assert suite.said() == ["built", "ended"]
    result.stdout.fnmatch_lines(["*CodecError*", "*travels to other processes*"])


def test_a_value_that_can_not_be_read_back_is_one_error_everywhere(suite):
    suite.write(
        """
@A
def test_one(thing): ...

@B
def test_other(thing): ...
""",
        """
class Thing:
    def __reduce__(self):
        return int, ("never",)

@atomcache.pytest.shared(codec="pickle")
def thing():
    say("built")
    yield Thing()
    say("ended")
""",
    )
    result = suite.run(*TWO)
    result.assert_outcomes(errors=2)
    assert suite.said() == ["built", "ended"]
    text = result.stdout.str()
    assert text.count("CodecError: the value of the shared fixture 'thing' was stored, but") >= 2
    assert text.count("invalid literal for int()") >= 2


def test_a_worker_that_can_not_read_a_value_says_so_and_builds_no_other(suite):
    suite.write(
        """
@A
def test_one(thing):
    say("read here")

@B
def test_other(request):
    wait_for("read here")
    request.getfixturevalue("thing")
""",
        """
class Mine:
    name = "mine"
    def encode(self, value):
        self.mine = True
        return value.encode()
    def decode(self, payload):
        if not hasattr(self, "mine"):
            raise ValueError("not in this worker")
        return payload.decode()

@atomcache.pytest.shared(codec=Mine())
def thing():
    say("built")
    yield "text"
    say("ended")
""",
    )
    result = suite.run(*TWO)
    result.assert_outcomes(passed=1, failed=1)
    assert (suite.count("built"), suite.count("ended")) == (1, 1)
    result.stdout.fnmatch_lines(["*CodecError*'thing'*can't read it here*"])


def test_classes_that_are_allowed_travel_as_data(suite):
    suite.write(
        """
@A
def test_one(point):
    assert repr(point) == "Point(x=1, y=2)"

@B
def test_other(point):
    assert repr(point) == "Point(x=1, y=2)"
""",
        """
import dataclasses

@dataclasses.dataclass
class Point:
    x: int
    y: int

@atomcache.pytest.shared(allow=[Point])
def point():
    say("built")
    return Point(1, 2)
""",
    )
    suite.run(*TWO).assert_outcomes(passed=2)
    assert suite.said() == ["built"]


@pytest.mark.parametrize(
    "options", [{"codec": "pickel"}, {"codec": object()}, {"allow": [3]}, {"allow": int}]
)
def test_what_can_be_no_codec_is_refused_before_anything_is_built(options):
    with pytest.raises(OptionError):
        atomcache.pytest.shared(**options)


def test_a_generator_that_yields_never_or_twice_is_an_error(suite):
    suite.write(
        """
def test_never(never): ...
def test_twice(twice): ...
""",
        """
@atomcache.pytest.shared
def never():
    if said("impossible"):
        yield

@atomcache.pytest.shared
def twice():
    yield 1
    yield 2
""",
    )
    result = suite.run("-p", "no:xdist")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*'never' did not yield*", "*'twice' has more than one 'yield'*"])


def test_who_waits_too_long_for_a_build_is_told_so(suite):
    suite.write(
        """
@A
def test_build(slow): ...

@B
def test_wait(request):
    from atomcache import BuildTimeout
    wait_for("building")
    with pytest.raises(BuildTimeout, match="slow"):
        request.getfixturevalue("slow")
    say("gave up")
""",
        """
@atomcache.pytest.shared(timeout=0.01)
def slow():
    say("building")
    wait_for("gave up")
""",
    )
    suite.run(*TWO).assert_outcomes(passed=2)


def test_a_builder_does_not_wait_for_ever_for_a_worker_that_hangs(suite):
    suite.write(
        """
@A
def test_build(server): ...

@B
def test_hang(request):
    wait_for("built")
    request.getfixturevalue("server")
    wait_for("ended")
""",
        SERVER
        + """
import atomcache._workers
atomcache._workers.SILENCE = 0.2
""",
    )
    result = suite.run(*TWO, "-W", "default::pytest.PytestWarning")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.re_match_lines([r".*'server' is ended though gw\d may still use it.*"])


def test_the_time_limit_of_faulthandler_is_lifted_while_the_builder_waits(suite):
    suite.write(
        """
@A
def test_build(server): ...

@B
def test_other():
    wait_for("lifted", {"gw0": "gw1", "gw1": "gw0"}[worker()])
""",
        SERVER
        + """
import faulthandler
cancel = faulthandler.cancel_dump_traceback_later

def say_and_cancel():
    say("lifted", worker())
    cancel()

faulthandler.cancel_dump_traceback_later = say_and_cancel
""",
    )
    suite.run(*TWO, "-o", "faulthandler_timeout=1000").assert_outcomes(passed=2)


def test_a_builder_that_waits_long_says_for_whom(suite):
    suite.write(
        """
@A
def test_build(server): ...

@B
def test_other():
    wait_for("told")
""",
        SERVER
        + """
import atomcache._test_run, atomcache._workers
atomcache._workers.NOTICE = 0.0
say_who = atomcache._test_run.Run._say_who

def say_who_and_on(*arguments):
    say_who(*arguments)
    say("told")

atomcache._test_run.Run._say_who = say_who_and_on
""",
    )
    result = suite.run(*TWO)
    result.assert_outcomes(passed=2)
    result.stderr.re_match_lines([r"atomcache: gw\d waits for gw\d to end 'server'"])


def test_a_temporary_folder_that_others_can_write_is_named_by_its_option(suite):
    suite.write(
        "def test_it(thing): ...",
        "@atomcache.pytest.shared(codec='pickle')\ndef thing(): return 1",
    )
    open_to_all = suite.pytester.mkdir("open")
    open_to_all.chmod(0o777)
    result = suite.run("-n1", f"--basetemp={open_to_all}/base")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*UnsafeDirectoryError*", "*Choose one with --basetemp in which*"]
    )


@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "sesion", None])
def test_only_what_lives_as_long_as_a_session_can_be_shared(scope):
    with pytest.raises(OptionError, match="shared_cache"):
        atomcache.pytest.shared(scope=scope)


def test_only_functions_can_be_shared_fixtures():
    async def later(): ...

    async def several():
        yield

    @pytest.fixture
    def fixture(): ...

    for function, complaint in [
        (later, "coroutine"),
        (several, "coroutine"),
        (fixture, "takes the place of pytest.fixture"),
        (Suite, "only a function"),
    ]:
        with pytest.raises(OptionError, match=complaint):
            atomcache.pytest.shared(function)
    with pytest.raises(OptionError, match="timeout"):
        atomcache.pytest.shared(timeout=-1)


def test_a_shared_fixture_says_so_if_the_plugin_is_switched_off(suite):
    suite.write("def test_it(one): ...", "@atomcache.pytest.shared\ndef one(): ...")
    result = suite.run("-p", "no:atomcache", "-p", "no:xdist")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*plugin of atomcache is switched off*"])


# -- caches --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_shared_cache_is_the_same_for_all_and_gone_with_the_run(suite, workers):
    suite.write(
        f"""
@pytest.fixture(scope="session")
def dataset(shared_cache):
    def make(target):
        say("made")
        target.write_text("data")
    say("folder", shared_cache.directory)
    return shared_cache.get_or_create_path("dataset", make, name="dataset")

@pytest.mark.parametrize("n", range(2))
def test_use(dataset, shared_cache, n):
    meet({max(workers, 1)})
    assert dataset.read_text() == "data"
    parent = shared_cache.directory.parent
    say("mode", oct(parent.stat().st_mode & 0o777))
"""
    )
    result = suite.run(*([f"-n{workers}"] if workers else ["-p", "no:xdist"]))
    result.assert_outcomes(passed=2)
    assert suite.count("made") == 1
    folders = {line.partition(" ")[2] for line in suite.said() if line.startswith("folder")}
    assert len(folders) == 1
    assert not os.path.exists(folders.pop())
    assert suite.count("mode 0o700") == 2
    by = r" by gw\d in .* s, given to gw\d" if workers else ".*"
    result.stdout.re_match_lines([rf"dataset, in shared_cache: built{by}"])


def test_the_persistent_cache_outlives_a_run_until_its_inputs_change_or_it_is_cleared(suite):
    suite.write(
        """
@pytest.mark.parametrize("n", range(2))
def test_use(persistent_cache, n):
    def make():
        say("made")
        return pathlib.Path("input").read_text()
    value = persistent_cache.get_or_create("table", make, inputs=["input"])
    assert value == pathlib.Path("input").read_text()
"""
    )
    source = suite.pytester.path / "input"
    source.write_text("one")
    made = []
    for arguments, text in [
        ((), "one"),
        ((), "one"),
        ((), "two"),
        (("--atomcache-clear",), "two"),
        (("-n2", "--atomcache-clear"), "two"),
    ]:
        source.write_text(text)
        suite.run(*arguments).assert_outcomes(passed=2)
        made.append(suite.count("made"))
    assert made == [1, 1, 2, 3, 4]
    [folder] = (suite.pytester.path / "user" / "atomcache-pytest").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_persistent_cache_that_can_not_be_cleared_is_an_error_of_usage(suite):
    suite.write("def test_it(): ...")
    suite.pytester.mkdir("user").joinpath("atomcache-pytest").write_text("no folder")
    result = suite.run("--atomcache-clear", "-p", "no:xdist")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --atomcache-clear can't empty*"])


# -- the summary ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", ["tmp_path_retention_policy=failed", "tmp_path_retention_count=0"]
)
def test_the_summary_is_there_though_pytest_removes_its_folder(suite, setting, monkeypatch):
    suite.write(
        """
@pytest.mark.parametrize("n", range(2))
def test_it(server, n): ...
""",
        SERVER,
    )
    temporary = suite.pytester.mkdir("temporary")
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(temporary))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n2", "-o", setting]
    result = suite.pytester.run(*command, timeout=2 * PATIENCE)  # without a --basetemp
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["server: built by gw*"])


def event(what, worker, seconds, identity="one", number=0, name="data", **more):
    told = {"what": what, "worker": worker, "seconds": seconds, "identity": identity}
    return {**told, "name": name, "id": f"{identity}.{number}", "place": "", "times": 1, **more}


def test_the_summary_adds_up_what_each_worker_was_spared():
    cached = {"identity": "cached", "name": "table, in shared_cache"}
    events = [
        event("built", "gw0", 2.0),
        event("used", "gw1", 2.0),
        event("used", "gw2", 2.0),
        event("built", "gw1", 1.0, **cached),
        event("used", "gw1", 0.0, **cached, times=2),
        event("used", "gw0", 0.0, **cached, times=3),
        event("used", "gw0", 0.5, identity="kept", name="entries of persistent_cache"),
    ]
    assert list(summary(events)) == [
        "data: built by gw0 in 2.00 s, given to gw1 gw2, 4.00 s saved",
        "table, in shared_cache: built by gw1 in 1.00 s, given to gw0, 5.00 s saved",
        "entries of persistent_cache, given to gw0, 0.50 s saved",
        "3.00 s of building saved 9.50 s in all workers together",
    ]


def test_the_summary_tells_fixtures_of_one_name_and_builds_of_one_fixture_apart():
    events = [
        event("built", "gw0", 2.0, place="a"),
        event("built", "gw1", 1.0, identity="two", place="b"),
        event("built", "gw3", 4.0, number=1, place="a"),
        event("used", "gw2", 4.0, number=1),
        event("used", "gw3", 1.0, identity="two"),
    ]
    assert list(summary(events)) == [
        "data (a): built by gw0 in 2.00 s",
        "data (b): built by gw1 in 1.00 s, given to gw3, 1.00 s saved",
        "data (a): built again by gw3 in 4.00 s, given to gw2, 4.00 s saved",
        "7.00 s of building saved 5.00 s in all workers together",
    ]


def test_fixtures_of_one_name_are_each_built_and_named_with_their_place(suite):
    suite.make(
        "plug",
        """
import atomcache.pytest

@atomcache.pytest.shared
def over():
    return "plugin"
""",
    )
    suite.write(
        """
class Common:
    @atomcache.pytest.shared
    @classmethod
    def inherited(cls):
        say("built", cls.__name__)
        yield cls.__name__

@A
@pytest.mark.parametrize("n", range(2))
class TestA(Common):
    def test_it(self, inherited, over, n):
        assert (inherited, over) == ("TestA", "plugin and conftest")

@B
@pytest.mark.parametrize("n", range(2))
class TestB(Common):
    def test_it(self, inherited, over, n):
        assert (inherited, over) == ("TestB", "plugin and conftest")

class TestAnother(Common):
    def test_it(self, inherited):
        assert inherited == "TestAnother"
""",
        """
@atomcache.pytest.shared
def over(over):
    say("built over")
    return over + " and conftest"
""",
    )
    result = suite.run(*TWO, "-p", "plug")
    result.assert_outcomes(passed=5)
    assert sorted(suite.said()) == [
        "built TestA",
        "built TestAnother",
        "built TestB",
        "built over",
    ]
    for place in ("a.py::TestA", "b.py::TestB", "b.py::TestAnother"):
        result.stdout.fnmatch_lines([f"inherited (test_{place}): built by gw*"])
