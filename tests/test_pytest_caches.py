"""The caches of a test run, and the summary at its end."""

import os
import stat
import sys

import pytest

from atomcache._test_summary import summary

from .crew import PATIENCE
from .pytest_suite import SERVER, TWO

pytest_plugins = ["pytester"]


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
        event("used", "", 0.0, identity="kept", name="entries of persistent_cache"),
        event("used", "gw0", 0.5, identity="kept", name="entries of persistent_cache"),
        event("used", "gw1", 0.0, identity="kept", name="entries of persistent_cache"),
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
