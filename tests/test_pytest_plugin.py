"""What `atomcache.pytest` promises to who shares fixtures: built once, ended once, by whom."""

import pytest

from .pytest_suite import SERVER, TWO

pytest_plugins = ["pytester"]


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
@pytest.mark.parametrize("store", [SMALL, Sqlite], indirect=True)
def test_in_another_order(store, request):
    assert store == ("Small" if request.node.callspec.params["store"] is SMALL else "Sqlite")

@both
def test_one(store): ...
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


def test_a_parameter_is_the_same_in_all_workers_however_it_is_written(suite):
    suite.write(
        """
@A
@pytest.mark.parametrize("table", [{"a": 1, "b": 2}], indirect=True)
def test_one(table): ...

@B
@pytest.mark.parametrize("table", [{"b": 2, "a": 1}], indirect=True)
def test_other(table): ...
""",
        """
@atomcache.pytest.shared
def table(request):
    say("built")
    return request.param
""",
    )
    suite.run(*TWO).assert_outcomes(passed=2)
    assert suite.said() == ["built"]


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
