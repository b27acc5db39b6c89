"""``atomcache watch`` shows builds in progress of all processes, live and for programs."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from atomcache import Cache, current_build
from atomcache._claim import claim_path
from atomcache._keys import digest
from atomcache.cli import main

from .crew import PATIENCE, Hang, sleepers, until
from .terminal import screen
from .test_cli import Terminal, environment, on_pipe, on_terminal, shown

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

LINE = [
    "time",
    "state",
    "by",
    "kind",
    "seconds",
    "waiting",
    "done",
    "total",
    "note",
    "tags",
    "key",
]


# -- helpers ---------------------------------------------------------------------------


def claim_of(cache, key="key"):
    return claim_path(cache._layout.entry(digest(b"v", key)))


def build(line, cache, key="key", tags=()):
    """Build, and report whatever progress the test says."""

    def factory():
        line.tell("building")
        while True:
            word = line.hear()
            if word == "go on":
                return "built"
            current_build()._next_report = 0.0  # each one counts, however soon it comes
            current_build().progress(*word)
            line.tell("reported")

    return cache.get_or_create(key, factory, tags=tags, max_age=None)


def ask(line, cache, key="key"):
    line.tell("asking")
    return cache.get_or_create(key, lambda: "mine", timeout=PATIENCE)


def start(crew, cache, *args):
    builder = crew.start(build, cache, *args)
    builder.hear("building")
    return builder


def report(builder, *progress):
    builder.tell(progress)
    builder.hear("reported")


def finish(builder):
    builder.tell("go on")
    assert builder.result() == "built"


def wait_for(crew, cache, number=1):
    members = [crew.start(ask, cache) for _ in range(number)]
    until(lambda: sleepers(claim_of(cache)) == number, "that all are asleep")
    return members


class Stream:
    """``atomcache watch`` on a pipe."""

    def __init__(self, *args) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atomcache", "watch", "--interval", "0.05", *map(str, args)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def line(self):
        import select

        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise Hang("watch says nothing")
        # One line at a time, so that none is left in a buffer that select does not know of.
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(self.process.stdout.fileno(), 1)
        return said.decode()[:-1]

    def until(self, wanted):
        while True:
            said = self.line()
            if wanted(said):
                return said

    def end(self, how=signal.SIGINT):
        self.process.send_signal(how)
        assert self.process.wait(PATIENCE) == 0
        assert self.process.stderr.read() == b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()


def fields(line):
    return dict(zip(LINE, line.split("\t"), strict=True))


def once(cache):
    said, _ = on_pipe("watch", "--once", "--json", "-C", cache.directory)
    return json.loads(said)["builds"]


# -- once ------------------------------------------------------------------------------


def test_once_tells_all_that_is_known_of_a_build_and_who_waits(cache, crew):
    builder = start(crew, cache, "key", ("x", "y"))
    report(builder, 3, 10, "reading a.csv")
    wait_for(crew, cache, 2)
    [told] = once(cache)
    assert told.pop("started") > 1e9
    host = told.pop("host")
    assert told == {
        "key": "key",
        "kind": "value",
        "pid": builder.pid,
        "waiting": 2,
        "done": 3.0,
        "total": 10.0,
        "note": "reading a.csv",
        "tags": ["x", "y"],
        "function": "",
        "last_build_seconds": None,
    }
    said, _ = on_pipe("watch", "--once", "-C", cache.directory)
    line = fields(said[:-1])
    assert (
        line.items()
        >= {
            "state": "building",
            "by": f"{builder.pid}@{host}",
            "kind": "value",
            "waiting": "2",
            "done": "3",
            "total": "10",
            "note": "reading a.csv",
            "tags": "x,y",
            "key": "key",
        }.items()
    )
    assert float(line["seconds"]) >= 0
    said = on_terminal("watch", "--once", "-C", cache.directory, columns=160)
    title, row = said.splitlines()
    assert " ".join(title.split()) == "KIND BY SINCE LAST TIME WAITING PROGRESS NOTE TAGS KEY"
    assert re.search(rf"value +{builder.pid}@.* 2 +3/10 +reading a\.csv +x,y +key$", row)
    finish(builder)
    assert once(cache) == []
    assert on_pipe("watch", "--once", "-C", cache.directory)[0] == ""
    assert "nothing is being built" in on_terminal("watch", "--once", "-C", cache.directory)


def test_how_long_it_took_last_time_is_told_of_a_key_of_any_kind(cache, crew):
    for key in ("key", ("page", 1)):
        cache.get_or_create(key, lambda: "old", max_age=0)
        [took] = [entry.build_seconds for entry in cache.entries()]
        builder = crew.start(rebuild, cache, key)
        builder.hear("building")
        [told] = once(cache)
        assert told["last_build_seconds"] == took
        finish(builder)
        cache.clear()


def rebuild(line, cache, key):
    def factory():
        line.tell("building")
        line.hear("go on")
        return "built"

    return cache.refresh(key, factory)


def test_several_builds_are_told_the_oldest_first(cache, crew):
    builders = [start(crew, cache, key) for key in "cab"]
    assert [told["key"] for told in once(cache)] == ["c", "a", "b"]
    for builder in builders:
        finish(builder)


def test_nothing_that_a_builder_says_is_obeyed_by_a_terminal(cache, crew):
    evil = "evil\x1b[31m\nkey"
    builder = start(crew, cache, evil, ("red\x1b[31m",))
    report(builder, 1, 2, "note\x1b[2J[bold]\n\x9b")
    for args in ([], ["--json"]):
        said, _ = on_pipe("watch", "--once", "-C", cache.directory, *args)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
        assert len(said.splitlines()) == 1
    said = on_terminal("watch", "--once", "-C", cache.directory, columns=200)
    assert "\x1b" not in said
    assert shown("note\x1b[2J[bold]\n\x9b") in said
    with Terminal("watch", "-C", cache.directory, columns=200) as terminal:
        terminal.until(rb"note\\x1b\[2J\[bold\]")
        terminal.type(b"\x03")
        said = terminal.end()
    assert "\x1b[31m" not in said
    assert "\x1b[2J" not in said
    finish(builder)


@pytest.mark.parametrize(
    "progress", [(float("nan"), 2.0), (1.0, float("inf")), (5.0, 0.0), (-1.0, 3.0), (9, 3), (7,)]
)
def test_progress_of_any_numbers_can_be_shown(cache, crew, progress):
    builder = start(crew, cache)
    report(builder, *progress, *([] if len(progress) == 2 else [None]), "note")
    [told] = once(cache)
    assert told["note"] == "note"
    with Terminal("watch", "-C", cache.directory) as terminal:
        terminal.until(rb"note")
        terminal.type(b"\x03")
        terminal.end()
    finish(builder)


# -- live, on a terminal ---------------------------------------------------------------


def test_the_table_follows_a_build_from_its_beginning_to_its_end(cache, crew):
    pytest.importorskip("rich")
    with Terminal("watch", "--interval", "0.05", "-C", cache.directory) as terminal:
        terminal.until(rb"nothing is being built")
        builder = start(crew, cache, "key", ("x",))
        terminal.until(rb"1 build, 0 waiting")
        terminal.until(rb"key \[x\]")
        terminal.until(rb" %d@" % builder.pid)
        report(builder, 3, 10, "first half")
        terminal.until(rb"3/10 first half")
        members = wait_for(crew, cache, 2)
        terminal.until(rb"1 build, 2 waiting")
        report(builder, 10, 10, "second half")
        terminal.until(rb"10/10 second half")
        terminal.seen = b""
        finish(builder)
        assert [member.result() for member in members] == ["built"] * 2
        terminal.until(rb"nothing is being built")
        terminal.type(b"\x03")
        terminal.end(0)
        assert b"\x1b[?25h" in terminal.seen  # the cursor is back


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_ctrl_c_leaves_the_table_once(cache, crew, columns):
    pytest.importorskip("rich")
    builder = start(crew, cache)
    report(builder, 3, 10, "a note that is longer than the column that it stands in can show")
    with Terminal("watch", "-C", cache.directory, columns=columns) as terminal:
        terminal.until(rb"3/10")
        terminal.type(b"\x03")
        terminal.end(0)
    left = screen(terminal.seen, columns)
    assert sum("1 build, 0 waiting" in line for line in left) == 1
    assert sum("PROGRESS" in line for line in left) == 1
    assert max(map(len, left)) <= columns
    finish(builder)


def test_an_empty_watch_is_left_once(cache):
    pytest.importorskip("rich")
    with Terminal("watch", "-C", cache.directory, columns=60) as terminal:
        terminal.until(rb"nothing is being built")
        terminal.type(b"\x03")
        terminal.end(0)
    left = screen(terminal.seen, 60)
    assert sum("nothing is being built" in line for line in left) == 1


def test_all_bars_have_one_length(cache, crew):
    pytest.importorskip("rich")
    builders = [start(crew, cache, key) for key in "abc"]
    for builder, note in zip(
        builders, ("", "x", "a very long note of what is done " * 3), strict=True
    ):
        report(builder, 3, 10, note)
    with Terminal("watch", "-C", cache.directory, columns=100) as terminal:
        terminal.until(rb"(?s)3 builds.*3/10.*3/10.*3/10")
        terminal.type(b"\x03")
        terminal.end(0)
    bars = re.findall("[━╌]{5,}(?= 3/10)", "\n".join(screen(terminal.seen, 100)))
    assert bars == ["━━━╌╌╌╌╌╌╌"] * 3
    for builder in builders:
        finish(builder)


def test_a_termination_gives_the_terminal_its_cursor_back(cache):
    pytest.importorskip("rich")
    with Terminal("watch", "-C", cache.directory) as terminal:
        terminal.until(rb"nothing is being built")
        assert b"\x1b[?25l" in terminal.seen
        assert b"\x1b[?25h" not in terminal.seen
        terminal.process.terminate()
        terminal.end(128 + signal.SIGTERM)
        assert b"\x1b[?25h" in terminal.seen


def test_without_rich_the_live_table_is_one_clear_line_and_the_rest_works(
    cache, capsys, monkeypatch
):
    for name in ("rich", "rich.console", "rich.live"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("atomcache.cli._watch.on_terminal", lambda: True)
    assert main(["watch", "-C", str(cache.directory)]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "pip install 'atomcache[cli]'" in said.err
    assert main(["watch", "--once", "-C", str(cache.directory)]) == 0
    assert "nothing is being built" in capsys.readouterr().out


# -- on a pipe -------------------------------------------------------------------------


def test_a_pipe_gets_a_line_for_each_change(cache, crew):
    with Stream("-C", cache.directory) as stream:
        builder = start(crew, cache)
        line = fields(stream.line())
        assert (line["state"], line["key"], line["done"]) == ("building", "key", "-")
        report(builder, 1, 2, "half")
        line = fields(stream.line())
        assert (line["done"], line["total"], line["note"]) == ("1", "2", "half")
        [member] = wait_for(crew, cache)
        assert fields(stream.line())["waiting"] == "1"
        finish(builder)
        assert member.result() == "built"
        last = stream.until(lambda said: fields(said)["state"] == "over")
        assert fields(last)["key"] == "key"
        stream.end()


def test_json_gets_a_line_for_each_change_with_all_builds(cache, crew):
    with Stream("--json", "-C", cache.directory) as stream:
        first = json.loads(stream.line())
        assert first["builds"] == []
        one = start(crew, cache, "one")
        assert [told["key"] for told in json.loads(stream.line())["builds"]] == ["one"]
        other = start(crew, cache, "other")
        [_, told] = json.loads(stream.line())["builds"]
        assert (told["key"], told["pid"]) == ("other", other.pid)
        report(one, 1, 4)
        last = json.loads(stream.line())
        assert [told["done"] for told in last["builds"]] == [1.0, None]
        assert last["time"] >= first["time"]
        finish(one)
        finish(other)
        stream.until(lambda said: json.loads(said)["builds"] == [])
        stream.end()


def test_a_build_whose_owner_is_killed_is_over(cache, crew):
    builder = start(crew, cache)
    with Stream("-C", cache.directory) as stream:
        assert fields(stream.line())["state"] == "building"
        builder.kill()
        assert fields(stream.line())["state"] == "over"
        stream.end()


def test_a_reader_that_goes_away_ends_it_though_nothing_changes(cache):
    with Stream("--json", "-C", cache.directory) as stream:
        stream.line()
        stream.process.stdout.close()
        assert stream.process.wait(PATIENCE) == 1
        assert stream.process.stderr.read() == b""


def test_watching_disturbs_no_build_and_leaves_nothing(tmp_path, crew):
    cache = Cache(tmp_path / "cache")
    with Stream("-C", cache.directory) as stream:
        builder = start(crew, cache)
        stream.line()
        before = sorted(os.listdir(os.path.dirname(claim_of(cache))))
        assert once(cache)
        assert sorted(os.listdir(os.path.dirname(claim_of(cache)))) == before
        finish(builder)
        stream.until(lambda said: fields(said)["state"] == "over")
        stream.end()
    assert cache.get("key") == "built"
