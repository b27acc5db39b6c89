"""Errors of shared fixtures, and what is refused."""

import pytest

import atomcache.pytest
from atomcache import OptionError

from .pytest_suite import SERVER, TWO, Suite

pytest_plugins = ["pytester"]


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
