"""The commands that look at a cache and change it: what they say, where, and how they end."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atomcache import Cache
from atomcache._keys import digest
from atomcache._layout import META
from atomcache.cli import COMMANDS, _cat, main
from atomcache.cli._tables import (
    SAMPLE,
    cells,
    cut,
    moment,
    say,
    say_table,
    shown,
    size_text,
    time_text,
)

from . import terminal
from .crew import PATIENCE, leftovers

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MINE = [
    "ls",
    "show",
    "path",
    "cat",
    "rm",
    "prune",
    "reap",
    "clear",
    "verify",
    "stats",
    "watch",
    "completion",
]
UNWANTED = ("ATOMCACHE_DIR", "COLUMNS", "LINES", "_ARGCOMPLETE", "PYTHONUNBUFFERED")
EVIL = "evil\x1b[31m\nkey"
FIELDS = ["id", "kind", "size", "created", "used", "cost", "expires", "tags", "key"]

# -- helpers ---------------------------------------------------------------------------


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    return {**kept, "PYTHONPATH": HERE, "TERM": "xterm", **more}


def on_pipe(*args, status=0, stdin=subprocess.DEVNULL, **more):
    """Run the program with pipes; return what it said on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "atomcache", *map(str, args)],
        env=environment(**more),
        stdin=stdin,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout.decode(), done.stderr.decode(errors="backslashreplace")


class Terminal(terminal.Terminal):
    """The program in a pseudo-terminal of its own, which also gives it signals."""

    def __init__(self, *args, columns=120, **more) -> None:
        command = [sys.executable, "-m", "atomcache", *map(str, args)]
        super().__init__(command, columns=columns, env=environment(**more))

    def end(self, status=0):
        """Read to the end and return all that stood there."""
        return super().end(status).decode().replace("\r\n", "\n")


def on_terminal(*args, status=0, **more):
    with Terminal(*args, **more) as terminal:
        return terminal.end(status)


def entry_of(cache, key, kind=b"v"):
    return Path(cache._layout.entry(digest(kind, key)))


def flip(file, position=-1):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def write(target):
    target.write_bytes(b"\x89PDF\n")


def write_folder(target):
    target.mkdir()
    (target / "file").write_text("in it")


def build(line, cache, key="key", **options):
    def factory():
        line.tell("building")
        line.hear("go on")
        return "built"

    return cache.get_or_create(key, factory, **options)


@pytest.fixture(autouse=True)
def _no_cache_of_my_own(monkeypatch, tmp_path):
    monkeypatch.delenv("ATOMCACHE_DIR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def cli(cache, capsys):
    """Run a command on `cache` in this process; return what it said."""

    def run(name, *args, status=0):
        capsys.readouterr()
        got = main([name, "--cache", str(cache.directory), *map(str, args)])
        said = capsys.readouterr()
        assert got == status, said
        if status == 2:
            assert said.out == ""
            assert re.fullmatch(rf"atomcache {name}: .+\n", said.err), "more than one line"
        return said.err if status and not said.out else said.out

    return run


@pytest.fixture
def filled(cache):
    """Return a cache with entries of every kind."""
    cache.set("index", "<html>")
    cache.get_or_create(("page", 42), lambda: {"a": [1, 2.5, None]}, max_age="1h", tags=["x", "y"])
    cache.get_or_create(EVIL, lambda: (1, 2), tags=["red\x1b[31m"])
    cache.set("blob", b"\0\xff\n", codec="bytes")
    cache.set("text", "täxt", codec="text")
    cache.set("json", {"a": 1}, codec="json")
    cache.set("pickle", {1, 2}, codec="pickle")
    cache.get_or_create_path("report", write, name="r.pdf", tags=["x"])
    cache.get_or_create_path("tiles", write_folder, name="tiles")
    return cache


def keys(cache):
    return {entry.key for entry in cache.entries()}


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


# -- all commands ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MINE)
def test_help_reads_like_a_page_of_a_manual(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    parts = ["usage: ", "options:", "--help", "exit status:\n  0  ", "examples:\n  "]
    places = [said.index(part) for part in parts]
    assert places == sorted(places)
    assert COMMANDS[name][1:] in said
    assert ("--json" in said) == (name != "completion")
    assert max(map(len, said.splitlines())) <= 80
    examples = said[places[-1] :]
    assert f"atomcache {name}" in examples


@pytest.mark.parametrize("name", [*COMMANDS, None])
def test_help_is_folded_to_the_terminal(name, monkeypatch, capsys):
    args = [name, "--help"] if name else ["--help"]
    pages = {}
    for columns in (60, 80, 100, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(args) == 0
        page = capsys.readouterr().out
        body, _, examples = page.partition("\nexamples:\n")
        assert max(map(len, body.splitlines())) < columns
        assert max(map(len, body.splitlines())) < 100
        assert "\nexit status:\n" in body
        pages[columns] = "".join(body.split()), examples.partition("\n")[0]
    assert len({examples for _, examples in pages.values()}) == 1
    assert sorted(pages[60][0]) == sorted(pages[300][0]), "something is lost"


KEYED = ["show", "path", "cat", "rm"]


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("key", ["nix", EVIL + "!", "", "0123", "é" * 500, "\udc80"])
def test_an_unknown_key_is_one_clear_line_and_status_2(cli, filled, name, key):
    said = cli(name, key, status=2)
    assert "there is no entry for key" in said
    assert str(filled.directory) in said
    assert "\x1b" not in said
    assert len(keys(filled)) == 9


@pytest.mark.parametrize("name", [n for n in MINE if n not in ("completion", "watch")])
def test_looking_at_a_cache_that_is_not_there_does_not_make_it(cli, cache, name):
    args = {"prune": ["--max-bytes", "1MB"], "clear": ["-y"]}.get(name, [])
    if name in KEYED:
        cli(name, "key", status=2)
    else:
        cli(name, *args)
        cli(name, *args, "--json")
    assert not cache.directory.exists()


def test_watching_a_cache_that_is_not_there_does_not_make_it(cli, cache):
    assert cli("watch", "--once") == ""
    assert lines(cli("watch", "--once", "--json"))[0]["builds"] == []
    assert not cache.directory.exists()


@pytest.mark.parametrize(
    "args",
    [
        ["ls", "--sort", "colour"],
        ["ls", "--limit", "-1"],
        ["ls", "--limit", "9" * 5000],
        ["ls", "extra"],
        ["ls", "--nonsense"],
        ["show"],
        ["show", "index", "more"],
        ["show", "index", "--kind", "folder"],
        ["rm"],
        ["rm", "index", "--tag", "x"],
        ["rm", "--tag", "x", "--glob", "*"],
        ["rm", "--tag", ""],
        ["rm", "--glob", "*", "--kind", "value"],
        ["prune"],
        ["prune", "--max-bytes", "many"],
        ["prune", "--max-bytes", "0"],
        ["prune", "--max-bytes", "9" * 5000],
        ["prune", "--max-entries", "0"],
        ["prune", "--max-entries", "1.5"],
        ["prune", "--max-idle", "soon"],
        ["prune", "--max-idle", "-1"],
        ["prune", "--max-idle", "nan"],
        ["clear"],
        ["watch", "--interval", "often"],
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2_and_changes_nothing(cli, filled, args):
    cli(*args, status=2)
    assert len(keys(filled)) == 9


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["bogus"], "there is no command 'bogus'"),
        (["help", "bogus"], "there is no command 'bogus'"),
        (["--help", "bogus"], "there is no command 'bogus'"),
        (["help", "ls", "show"], "help takes one command, and not 'show' too"),
        (["--bogus"], "there is no option '--bogus' before a command"),
        (
            ["-C", "x", "ls"],
            "there is no option '-C' before a command. Options stand behind it, as in "
            "atomcache ls --cache DIR; see ",
        ),
        (["--version", "ls"], "--version stands alone"),
        ([""], "there is no command ''"),
        (["evil\x1b[31m"], "there is no command 'evil\\x1b[31m'"),
    ],
)
def test_a_mistake_before_any_command_is_one_clear_line_and_status_2(capsys, args, told):
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"atomcache: {told}")
    assert said.err.count("\n") == 1


def test_help_of_a_command_may_be_asked_for_in_front_of_it(capsys):
    pages = []
    for args in (["ls", "--help"], ["help", "ls"], ["--help", "ls"]):
        assert main(args) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0].startswith("usage: atomcache ls ")
    assert len(set(pages)) == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_an_empty_cache_option_is_not_taken_for_the_default(capsys, name):
    args = {
        "prune": ["--expired"],
        "clear": ["-y"],
        "watch": ["--once"],
        "run": ["true"],
        "rm": ["--tag", "x"],
        "show": ["key"],
        "path": ["key"],
        "cat": ["key"],
    }
    assert main([name, "--cache", "", *args.get(name, [])]) == 2
    said = capsys.readouterr()
    assert re.match(f"atomcache {name}: --cache needs ", said.err)
    assert said.err.count("\n") == 1
    assert not Cache.for_app("atomcache").directory.exists()


@pytest.mark.parametrize("none", ["0", "0MB", "0.0 KB", "00"])
def test_a_limit_of_no_bytes_says_what_removes_all(cli, none):
    said = cli("prune", "--max-bytes", none, status=2)
    assert "at least 1 byte must stay; atomcache clear removes all" in said


@pytest.mark.parametrize("name", ["cat", "verify"])
def test_help_says_what_carries_checksums(capsys, name):
    assert main([name, "--help"]) == 0
    assert "Only values carry checksums" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("args", [["completion"], ["completion", "tcsh"]])
def test_a_shell_that_there_is_not_is_a_mistake(capsys, args):
    assert main(args) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ["ls"],
        ["stats"],
        ["verify"],
        ["show", "key"],
        ["rm", "--tag", "x"],
        ["rm", "--glob", "x"],
        ["prune", "--max-entries", "1"],
        ["reap"],
        ["clear", "-y"],
        ["watch", "--once"],
    ],
)
def test_a_folder_that_cannot_be_read_is_one_clear_line_and_status_1(cli, cache, args):
    cache.directory.mkdir()
    (cache.directory / "v1").mkdir()
    (cache.directory / "v1" / "ab").symlink_to("ab")  # a loop, which not even root can read
    said = cli(*args, status=1)
    assert said.count("\n") == 1
    assert str(cache.directory) in said
    assert "bypass" not in said, "nothing is built"


def test_a_cache_that_is_a_file_is_one_clear_line_and_status_1(cli, cache):
    cache.directory.write_text("")
    for name in ("ls", "stats", "verify"):
        assert str(cache.directory) in cli(name, status=1)


def test_a_cache_of_another_layout_is_an_error_and_not_taken_for_an_empty_one(cli, cache):
    (cache.directory / "v2").mkdir(parents=True)
    assert "layout v2" in cli("ls", status=1)


def test_the_cache_is_that_of_the_option_of_the_environment_or_the_default(
    capsys, tmp_path, monkeypatch
):
    places = [Cache.for_app("atomcache"), Cache(tmp_path / "env"), Cache(tmp_path / "given")]
    for number, cache in enumerate(places):
        cache.set(str(number), number)

    def listed(*args):
        assert main(["ls", "--json", *args]) == 0
        return [entry["key"] for entry in lines(capsys.readouterr().out)]

    assert listed() == ["0"]
    monkeypatch.setenv("ATOMCACHE_DIR", str(tmp_path / "env"))
    assert listed() == ["1"]
    assert listed("-C", str(tmp_path / "given")) == ["2"]
    monkeypatch.setenv("ATOMCACHE_DIR", "")
    assert listed() == ["0"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere platformdirs is asked")
@pytest.mark.parametrize("home", [None, "", "/", "//", "/home/x", "/home/x//", "home", "~", " /h"])
@pytest.mark.parametrize(
    "given", [None, "", " ", "/", "/c", "/c/", "//c", "c", "./c", "~/c", " /c", "/c:/d", "/\udcff"]
)
def test_the_default_cache_is_where_platformdirs_would_have_it(monkeypatch, home, given):
    from platformdirs import user_cache_dir

    for name, value in (("HOME", home), ("XDG_CACHE_HOME", given)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    for app in ("atomcache", "a b"):
        expected = os.path.abspath(user_cache_dir(app, appauthor=False))
        assert Cache.for_app(app)._layout.directory == expected


def commands(cache):
    """Return each command, what it says on a terminal, and what on a pipe."""
    report = str(entry_of(cache, "report", b"p") / "r.pdf")
    return [
        (["ls", "--sort", "size", "-n", "3"], "ID +KIND", r"\t"),
        (["show", "index"], "key: +index\n", "key: +index\n"),
        (["path", "report"], re.escape(report), re.escape(report) + "\n$"),
        (["cat", "json"], '{"a":1}\n', '^{"a":1}\n$'),
        (["stats"], "entries: +9\n", "hit rate: +"),
        (["verify"], "verified 9 entries, ", "verified 9 entries, "),
        (["watch", "--once"], "nothing is being built", "^$"),
        (["reap"], "removed 0 things", "removed 0 things"),
        (["rm", "nix", "--dry-run"], "no entry for key", None),
        (["rm", "--tag", "y", "--dry-run"], "would remove 1 entry\n", "would remove 1 entry\n"),
        (["prune", "--max-bytes", "1GB"], "removed 0 entries", "removed 0 entries"),
        (["completion", "bash"], "complete ", "complete "),
    ]


def test_every_command_works_on_a_terminal_and_on_a_pipe(filled):
    place = str(filled.directory)
    for args, on_screen, piped in commands(filled):
        status = 2 if piped is None else 0
        assert re.search(on_screen, on_terminal(*args, status=status, ATOMCACHE_DIR=place)), args
        said, _ = on_pipe(*args, status=status, ATOMCACHE_DIR=place)
        assert piped is None or re.search(piped, said), args
    assert len(keys(filled)) == 9


@pytest.mark.parametrize("name", ["ls", "show", "path", "cat", "stats", "verify"])
def test_no_rich_and_no_argcomplete_is_loaded_where_it_is_not_needed(filled, name):
    key = ["index"] if name in KEYED else []
    program = (
        "import sys; from atomcache.cli import main; status = main(sys.argv[1:]); "
        "bad = {'rich', 'argcomplete'} & set(sys.modules); assert not bad, bad; sys.exit(status)"
    )
    subprocess.run(
        [sys.executable, "-c", program, name, "-C", str(filled.directory), *key],
        env=environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE,
    )


def test_a_reader_that_goes_away_is_no_traceback(cache):
    for number in range(3000):
        cache.set(str(number), None)
    with subprocess.Popen(
        [sys.executable, "-m", "atomcache", "ls", "-C", str(cache.directory)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


@pytest.mark.parametrize("args", [["ls"], ["path", "index"], ["cat", "index"], ["verify"]])
def test_a_closed_output_is_no_traceback(filled, args):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "atomcache", *args],
        env=environment(ATOMCACHE_DIR=str(filled.directory)),
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if args[0] in ("path", "cat") else 0)


# -- how things are said ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (99_950, "100 KB"),
        (999_499, "999 KB"),
        (999_500, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5.6e9, "5.6 GB"),
        (2.5e15, "2500.0 TB"),
    ],
)
def test_sizes_are_told_in_the_units_that_options_take(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 ms"),
        (0.0123, "12 ms"),
        (0.5, "0.5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90_000, "1d01h"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_times_are_told_in_two_units_at_most(seconds, text):
    assert time_text(seconds) == text


def test_any_moment_can_be_told():
    assert moment(0, utc=True) == "1970-01-01T00:00:00Z"
    for when in (1e300, float("inf"), float("nan"), -1e300):
        assert moment(when)
        assert moment(when, utc=True)


def test_what_a_terminal_would_obey_is_escaped():
    assert shown("plain ä 漢") == "plain ä 漢"
    assert shown("\x1b[31m\n\t\x9b\u202e\udc80") == r"\x1b[31m\n\t\x9b\u202e\udc80"


def test_wide_letters_take_two_columns():
    assert cells("a漢e\u0301") == 4
    assert cut("漢字漢字漢字", 8) == "漢字..."
    assert cut("short", 8) == "short"


def test_a_table_is_cut_to_the_terminal_and_streams(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    said = []

    def rows():
        for number in range(SAMPLE + 5):
            if number == SAMPLE + 1:
                said.append(capsys.readouterr().out)
            yield str(number), "x" * 100

    say_table(("N", "TEXT"), rows(), frozenset("N"))
    first = said[0].splitlines()
    assert len(first) == SAMPLE + 2
    assert first[0] == "  N  TEXT"
    assert first[1] == "  0  " + "x" * 32 + "..."
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_an_encoding_cannot_say_is_escaped(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        say("täxt 漢")
        monkeypatch.undo()
    assert (tmp_path / "out").read_text() == "t\\xe4xt \\u6f22\n"


# -- ls --------------------------------------------------------------------------------


def listed(text):
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in text.splitlines()]


def test_a_listing_on_a_pipe_tells_all_in_columns(cli, filled):
    rows = listed(cli("ls"))
    assert [row["key"] for row in rows] == sorted(shown(key) for key in keys(filled))
    page = next(row for row in rows if row["key"] == "('page', 42)")
    [entry] = [entry for entry in filled.entries() if entry.key == "('page', 42)"]
    assert page == {
        "id": entry.id,
        "kind": "value",
        "size": str(entry.size),
        "created": moment(entry.created, utc=True),
        "used": moment(entry.last_used, utc=True),
        "cost": f"{entry.build_seconds:.3f}",
        "expires": moment(entry.expires, utc=True),
        "tags": "x,y",
        "key": "('page', 42)",
    }
    assert "\x1b" not in cli("ls")


def test_a_listing_as_json_is_an_object_on_each_line(cli, filled):
    rows = {row["key"]: row for row in lines(cli("ls", "--json"))}
    assert rows.keys() == keys(filled)
    for entry in filled.entries():
        row = rows[entry.key]
        assert row.pop("path") == str(entry.path)
        assert row.pop("tags") == list(entry.tags)
        assert row == {name: getattr(entry, name) for name in row}
        assert len(row) == 10


def test_a_listing_on_a_terminal_is_cut_to_its_width_and_says_nothing_that_it_obeys(filled):
    filled.set("long" * 100, 1)
    said = on_terminal("ls", "-C", filled.directory, columns=100)
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 100
    assert re.search(r"longlong\w*\.\.\.\n", said)
    assert shown(repr(EVIL))[:12] in said
    assert said.startswith("ID ")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_listing_fits_a_narrow_terminal_and_shows_id_and_key(filled, columns):
    filled.set("a key that is long enough to be cut", 1)
    title, *rows = on_terminal("ls", "-C", filled.directory, columns=columns).splitlines()
    assert max(map(len, [title, *rows])) <= columns
    assert title.split()[0] == "ID"
    assert title.split()[-1] == "KEY"
    assert "SIZE" in title
    assert any(re.fullmatch(r"[0-9a-f]{12}  .*a key that is lon.*", row) for row in rows)


def test_a_key_that_is_stored_in_part_says_so(cli, cache):
    cache.set("x" * 2000, 1)
    [row] = listed(cli("ls"))
    assert row["key"].endswith("... (2002 characters)")


def test_an_empty_cache_lists_nothing(cli, cache):
    assert cli("ls") == cli("ls", "--json") == ""
    assert on_terminal("ls", "-C", cache.directory) == ""


@pytest.fixture
def sorts(cache):
    """Return a cache whose entries differ in all that can be sorted by."""
    for number, key in enumerate("abcd"):
        cache.set(key, b"x" * (number * 7 % 4 * 100), codec="bytes")
        content = bytearray(entry_of(cache, key).read_bytes())
        _change_times(content, created=1e9 + number * 5 % 4, took=float(number * 3 % 4))
        entry_of(cache, key).write_bytes(content)
        os.utime(entry_of(cache, key), (1e9 + (number ^ 1), 1e9))
    return cache


def _change_times(content, created, took):
    import struct

    from xxhash import xxh3_64_intdigest

    from atomcache import _header

    struct.pack_into("<d", content, 72, created)
    struct.pack_into("<d", content, 88, took)
    end = _header.head_size(content)
    struct.pack_into("<Q", content, 8, xxh3_64_intdigest(bytes(content[16:end])))


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ("size", lambda entry: -entry.size),
        ("age", lambda entry: entry.created),
        ("used", lambda entry: entry.last_used),
        ("cost", lambda entry: -entry.build_seconds),
    ],
)
def test_a_listing_can_be_sorted_the_largest_oldest_idlest_dearest_first(cli, sorts, order, value):
    expected = [entry.key for entry in sorted(sorts.entries(), key=value)]
    assert len({value(entry) for entry in sorts.entries()}) == 4

    def order_of(*args):
        return [row["key"] for row in listed(cli("ls", "--sort", order, *args))]

    assert order_of() == expected
    assert order_of("--reverse") == expected[::-1]
    assert order_of("-n", 2) == expected[:2]
    assert order_of("-r", "-n", 2) == expected[::-1][:2]
    assert order_of("-n", 0) == []


def test_a_listing_can_be_of_a_tag_or_a_pattern_only(cli, filled):
    assert [row["key"] for row in listed(cli("ls", "--tag", "x"))] == ["('page', 42)", "report"]
    assert [row["key"] for row in listed(cli("ls", "--glob", "t*"))] == ["text", "tiles"]
    assert cli("ls", "--tag", "x", "--glob", "t*") == ""
    assert len(listed(cli("ls", "--limit", 4))) == 4
    assert len(listed(cli("ls", "--limit", 10**30))) == 9
    assert len(listed(cli("ls", "--limit", 10**30, "--sort", "size"))) == 9


def test_a_long_listing_begins_before_all_is_read(cli, cache, monkeypatch):
    monkeypatch.setattr("atomcache.cli._ls.SORTED_ANYWAY", 3)
    for key in "edcbafgh":
        cache.set(key, 1)
    found = [entry.key for entry in cache.entries()]
    assert found != sorted(found)
    assert [row["key"] for row in listed(cli("ls"))] == found
    assert [row["key"] for row in listed(cli("ls", "-n", 5))] == found[:5]


def test_a_damaged_entry_is_not_listed(cli, filled):
    flip(entry_of(filled, "index"), 100)
    assert "index" not in {row["key"] for row in listed(cli("ls"))}


# -- which entry is meant --------------------------------------------------------------


def test_a_key_that_is_text_is_found_without_looking_at_all_entries(cli, filled, monkeypatch):
    def scan(layout):
        raise AssertionError("looked at every entry")

    monkeypatch.setattr("atomcache._listing.scan", scan)
    for key in ("index", "report", EVIL):
        assert json.loads(cli("show", key, "--json"))["key"] in (key, repr(key))


def test_an_entry_is_found_by_its_id_or_the_beginning_of_it(cli, filled):
    for entry in filled.entries():
        for key in (entry.id, entry.id[:12], entry.id[:8].upper()):
            assert json.loads(cli("show", key, "--json"))["id"] == entry.id
        cli("show", entry.id[:3], status=2)


def test_an_entry_is_found_by_its_key_as_a_listing_shows_it(cli, filled):
    for row in listed(cli("ls")):
        assert json.loads(cli("show", row["key"], "--json"))["id"] == row["id"]


def test_a_key_that_looks_like_an_id_is_a_key_first(cli, filled):
    [entry] = [entry for entry in filled.entries() if entry.key == "index"]
    filled.set(entry.id[:8], "another")
    assert cli("cat", entry.id[:8]) == "another"


def test_a_value_and_a_path_of_one_key_must_be_told_apart(cli, cache):
    cache.set("both", "value")
    cache.get_or_create_path("both", write, name="r.pdf")
    ids = {entry.kind: entry.id for entry in cache.entries()}
    for name in KEYED:
        said = cli(name, "both", status=2)
        assert all(each in said for each in ids.values())
        assert "2 entries" in said
    assert json.loads(cli("show", "both", "--kind", "path", "--json"))["id"] == ids["path"]
    assert cli("cat", "both", "--kind", "value") == "value"
    assert cli("path", ids["path"]).endswith("r.pdf\n")
    cli("show", ids["path"], "--kind", "value", status=2)
    assert cli("rm", "both", "--kind", "value") == "removed 1 entry\n"
    assert [entry.kind for entry in cache.entries()] == ["path"]


def test_two_entries_that_a_listing_shows_alike_must_be_told_apart(cli, cache):
    cache.set(("a", 1), 1)
    cache.set("('a', 1)", 2)  # a text: found first, and at once
    assert cli("cat", "('a', 1)") == "2\n"
    cache.remove("('a', 1)")
    cache.get_or_create_path(("a", 1), write, name="r.pdf")
    assert "2 entries" in cli("cat", "('a', 1)", status=2)


def test_runs_that_differ_by_their_inputs_only_can_be_told_apart(cli, cache, tmp_path):
    names = []
    for name, content in (("one", "1"), ("one", "2"), ("two", "2")):
        (tmp_path / name).write_text(content)
        on_pipe("run", "-C", cache.directory, "--input", tmp_path / name, "--", "true")
        names.append(name)
    shown = keys(cache)
    assert len(shown) == 3
    assert sum(f"--input={tmp_path / 'one'}" in key for key in shown) == 2
    for key in sorted(shown):
        assert cli("rm", key) == "removed 1 entry\n"


def test_runs_that_differ_by_what_they_read_can_be_told_apart(cache, tmp_path):
    for content in ("1", "2"):
        (tmp_path / "given").write_text(content)
        with open(tmp_path / "given") as given:
            on_pipe("run", "-C", cache.directory, "--stdin", "--", "true", stdin=given)
    assert len(keys(cache)) == 2


def test_no_listing_shows_the_value_of_a_variable(cli, cache):
    for value in ("hunter2", "hunter3", ""):
        args = ("run", "-C", cache.directory, "--env", "TOKEN", "--", "true")
        on_pipe(*args, TOKEN=value)
        on_pipe(*args, TOKEN=value)
    said = cli("ls") + cli("ls", "--json")
    assert "hunter" not in said
    assert len(keys(cache)) == 3
    assert all(re.search(r"--env=TOKEN=[0-9a-f]{20} ", key) for key in keys(cache))


def test_the_hint_names_only_what_tells_entries_apart(cli, cache):
    for number in (1, 2):
        cache.set(Twin(number), number)
    said = cli("rm", "twin", status=2)
    assert "Name one by its id\n" in said
    cache.get_or_create_path("both", write, name="r.pdf")
    cache.set("both", 1)
    assert cli("rm", "both", status=2).endswith("Name one by its id, or by --kind\n")


class Twin:
    """A key that is shown like others."""

    def __init__(self, number):
        self.number = number

    def __atomcache_key__(self):
        return self.number

    def __repr__(self):
        return "twin"


# -- show, path, cat -------------------------------------------------------------------


def test_show_tells_all_that_is_known(cli, cache, tmp_path):
    from atomcache import current_build

    prices = tmp_path / "prices.csv"
    prices.write_text("1")

    @cache.memoize(max_age="1h", tags=["x", "y"])
    def total(name):
        current_build().input(prices)
        return 42

    assert total("EUR") == 42
    [entry] = cache.entries()
    said = dict(line.split(":", 1) for line in cli("show", entry.id).splitlines())
    assert {name: text.strip() for name, text in said.items()}.items() >= {
        "key": shown(entry.key),
        "id": entry.id,
        "kind": "value",
        "path": str(entry.path),
        "codec": "data",
        "function": entry.function,
        "tags": "x, y",
        "input": str(prices),
    }.items()
    assert f"({entry.size} bytes)" in said["size"]
    assert re.search(r"\(in (1h00m|\d+m\d\ds)\)", said["expires"])
    assert {"created", "last used", "build time"} <= said.keys()
    told = json.loads(cli("show", entry.id, "--json"))
    assert told["inputs"] == [str(prices)]
    assert told["function"].endswith("total")
    assert cli("cat", entry.id) == "42\n"


def test_show_tells_that_an_entry_has_expired(cli, cache):
    cache.get_or_create("key", lambda: "old", max_age=0)
    assert " ago)\n" in re.search("expires: .*\n", cli("show", "key")).group()
    assert cli("cat", "key") == "old"
    assert "expired" in on_terminal("ls", "-C", cache.directory)


def test_path_prints_what_a_program_can_open(cli, filled):
    assert cli("path", "report") == f"{entry_of(filled, 'report', b'p') / 'r.pdf'}\n"
    assert cli("path", "index") == f"{entry_of(filled, 'index')}\n"
    assert json.loads(cli("path", "tiles", "--json"))["path"].endswith("/tiles")


def test_a_path_of_any_name_is_printed_as_it_is_on_a_pipe_and_escaped_on_a_terminal(cache):
    name = "two\nlines\x1b\udc80"
    path = cache.get_or_create_path("key", write, name=name)
    done = subprocess.run(
        [sys.executable, "-m", "atomcache", "path", "-C", str(cache.directory), "key"],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert done.stdout == os.fsencode(path) + b"\n"
    assert r"two\nlines\x1b\udc80" in on_terminal("path", "-C", cache.directory, "key", columns=99)


CATS = {
    "index": b"<html>",
    "blob": b"\0\xff\n",
    "text": "täxt".encode(),
    "json": b'{"a":1}\n',
    "('page', 42)": b'{\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}\n',
    EVIL: b"(1, 2)\n",
    "report": b"\x89PDF\n",
}


def test_cat_prints_what_is_stored_byte_by_byte(filled):
    for key, content in CATS.items():
        done = subprocess.run(
            [sys.executable, "-m", "atomcache", "cat", "-C", str(filled.directory), key],
            env=environment(),
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stdout) == (0, content), key


def test_cat_says_in_json_what_json_can_say(cli, filled):
    def value(key):
        told = json.loads(cli("cat", key, "--json"))
        del told["key"]
        assert len(told.pop("id")) == 40
        return told

    assert value("index") == {"value": "<html>"}
    assert value("json") == {"value": {"a": 1}}
    assert value("text") == {"value": "täxt"}
    assert value("('page', 42)") == {"value": {"a": [1, 2.5, None]}}
    assert value(EVIL) == {"repr": "(1, 2)"}
    assert value("blob") == {"base64": base64.b64encode(b"\0\xff\n").decode()}
    assert value("report") == {"base64": base64.b64encode(b"\x89PDF\n").decode()}


def test_cat_reads_arrays(cli, cache):
    np = pytest.importorskip("numpy")
    cache.set("small", np.arange(3))
    cache.set("mapped", {"array": np.arange(5000)})
    assert cli("cat", "small") == "array([0, 1, 2])\n"
    assert cli("cat", "mapped").startswith("{'array': array([")


def test_cat_prints_large_values_in_pieces(cli, cache, monkeypatch):
    content = bytes(range(256)) * 40
    monkeypatch.setattr(_cat, "_PIECE", 1000)
    cache.set("key", content, codec="bytes")
    cache.get_or_create_path("path", lambda target: target.write_bytes(content), name="f")
    for key in ("key", "path"):
        assert base64.b64decode(json.loads(cli("cat", key, "--json"))["base64"]) == content


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


def test_cat_executes_no_pickle(cli, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    cache.set("bomb", Bomb(), codec="pickle")
    assert "pickle" in cli("cat", "bomb", status=1)
    assert "pickle" in cli("cat", "bomb", "--json", status=1)
    assert not (tmp_path / "exploded").exists()
    done = subprocess.run(
        [sys.executable, "-m", "atomcache", "cat", "-C", str(cache.directory), "bomb", "--raw"],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert b"mkdir" in done.stdout
    assert not (tmp_path / "exploded").exists()


class Point:
    name = "point-1"

    def encode(self, value):
        return b"%d %d" % value

    def decode(self, payload):
        raise AssertionError("not known to the command")


def test_cat_does_not_guess_at_a_codec_of_a_programs_own(cli, cache):
    cache.set("point", (1, 2), codec=Point())
    assert "point-1" in cli("cat", "point", status=1)
    assert cli("cat", "point", "--raw") == "1 2"


class Invoice:
    def __init__(self):
        self.total = 1


def test_cat_says_what_only_its_own_program_can_read(cli, tmp_path, capsys):
    cache = Cache(tmp_path / "cache", allow=[Invoice])
    cache.set("invoice", Invoice())
    assert "can't be read here" in cli("cat", "invoice", status=1)


def test_cat_says_that_a_folder_is_a_folder_and_where(cli, filled):
    assert str(entry_of(filled, "tiles", b"p") / "tiles") in cli("cat", "tiles", status=1)


def test_cat_prints_nothing_that_is_damaged(cli, filled):
    for key in ("index", "blob", "text", "json", "pickle"):
        flip(entry_of(filled, key))
        for raw in ([], ["--raw"], ["--json"]):
            assert "damaged" in cli("cat", key, *raw, status=1)
    (entry_of(filled, "report", b"p") / "r.pdf").write_bytes(b"more than it was")
    assert "damaged" in cli("cat", "report", status=1)


@pytest.mark.parametrize("name", ["show", "path", "cat"])
def test_an_entry_with_a_damaged_head_is_told_of(cli, filled, name):
    flip(entry_of(filled, "index"), 100)
    flip(entry_of(filled, "report", b"p") / META, 100)
    for key in ("index", "report"):
        said = cli(name, key, status=1)
        assert "damaged" in said
        assert "atomcache verify" in said


@pytest.mark.parametrize("name", ["show", "path", "cat"])
def test_a_path_that_has_lost_its_meta_or_its_file_is_told_of(cli, filled, name):
    (entry_of(filled, "report", b"p") / META).unlink()
    assert "no meta" in cli(name, "report", status=1)
    (entry_of(filled, "tiles", b"p") / "tiles" / "file").unlink()
    (entry_of(filled, "tiles", b"p") / "tiles").rmdir()
    if name != "show":
        assert "gone" in cli(name, "tiles", status=1)


def test_a_name_that_leads_out_of_the_cache_is_not_followed(cli, cache, tmp_path):
    from atomcache._header import assemble

    secret = tmp_path / "secret"
    secret.write_text("secret")
    cache.get_or_create_path("key", write, name="file")
    name = digest(b"p", "key")
    parts = assemble(
        digest=name,
        codec=b"path",
        form=0,
        created=1.0,
        expires=float("inf"),
        took=0.0,
        meta=[("key", "key"), ("name", str(secret)), ("bytes", "6")],
        payload=b"",
    )
    (entry_of(cache, "key", b"p") / META).write_bytes(b"".join(parts))
    for command in ("cat", "path", "show"):
        assert "leads elsewhere" in cli(command, "key", status=1)
    cli("verify", status=1)
    assert secret.read_text() == "secret"
    assert keys(cache) == set()


WRITES = """
import os, sys
os.write(1, b"out\\n")
os.write(2, b"err\\xff\\n")
sys.exit(3)
"""


@pytest.fixture
def recorded(cache):
    """Return the id of a command that was recorded."""
    command = [sys.executable, "-c", WRITES]
    on_pipe("run", "--keep-failures", "-C", cache.directory, "--", *command, status=3)
    return next(entry.id for entry in cache.entries() if entry.key.startswith(("run ", "'run ")))


def test_cat_prints_the_streams_of_a_recorded_command(cli, cache, recorded):
    assert cli("cat", recorded) == "out\n"
    assert on_pipe("cat", "-C", cache.directory, recorded) == ("out\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "atomcache", "cat", "-C", cache.directory, recorded, "--stderr"],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, b"err\xff\n")
    raw = subprocess.run([*done.args[:-1], "--raw"], env=environment(), stdout=subprocess.PIPE)
    assert raw.stdout.startswith(b"atomcache run 1\n")


def test_cat_says_in_json_what_a_command_wrote_and_how_it_ended(cli, cache, recorded):
    told = json.loads(cli("cat", recorded, "--json"))
    del told["key"]
    assert told == {
        "id": recorded,
        "stdout": "out\n",
        "stderr_base64": base64.b64encode(b"err\xff\n").decode(),
        "status": 3,
    }


def test_show_tells_how_a_recorded_command_ended(cli, filled, cache, recorded):
    assert re.search(r"\nstatus: +3\n", cli("show", recorded))
    assert json.loads(cli("show", recorded, "--json"))["status"] == 3
    for key in ("blob", "index", "report"):
        assert "status" not in cli("show", key)
        assert json.loads(cli("show", key, "--json"))["status"] is None


def test_only_a_recorded_command_has_a_standard_error_stream(cli, filled, recorded):
    for key in ("index", "blob", "report", "tiles"):
        assert "recorded command" in cli("cat", "--stderr", key, status=2)
    for more in ("--json", "--raw"):
        cli("cat", "--stderr", recorded, more, status=2)


def test_bytes_that_only_begin_like_a_recording_are_printed_as_they_are(cli, cache):
    begun = b"atomcache run 1\n"
    for content in (b"atomcache", begun, begun + b"\1\0\0", begun + b"\1\x7f\0\0\0" + b"\0" * 5):
        cache.set("run of the mill", content, codec="bytes")
        assert cli("cat", "run of the mill") == content.decode()
        told = json.loads(cli("cat", "--json", "run of the mill"))
        assert base64.b64decode(told["base64"]) == content


# -- rm --------------------------------------------------------------------------------


def test_keys_are_removed_all_or_none(cli, filled):
    cli("rm", "index", "nix", "report", status=2)
    assert len(keys(filled)) == 9
    assert cli("rm", "index", "report", "index") == "removed 2 entries\n"
    assert not {"index", "report"} & keys(filled)
    assert json.loads(cli("rm", "tiles", "--json")) == {"removed": 1}
    assert cli("rm", EVIL) == "removed 1 entry\n"
    assert leftovers(filled.directory) == []


def test_what_is_damaged_can_be_removed(cli, filled):
    flip(entry_of(filled, "index"), 100)
    assert cli("rm", "index", "--dry-run").endswith("would remove 1 entry\n")
    assert cli("rm", "index") == "removed 1 entry\n"
    assert not entry_of(filled, "index").exists()


def test_all_with_a_tag_are_removed(cli, filled):
    assert cli("rm", "--tag", "x") == "removed 2 entries\n"
    assert cli("rm", "--tag", "x") == "removed 0 entries\n"
    assert len(keys(filled)) == 7


def test_all_keys_like_a_pattern_are_removed(cli, filled):
    assert cli("rm", "--glob", "t*") == "removed 2 entries\n"
    assert json.loads(cli("rm", "--glob", "t*", "--json")) == {"removed": 0}
    assert cli("rm", "--glob", "(*") == "removed 1 entry\n"
    assert len(keys(filled)) == 6


def test_a_dry_run_removes_nothing_and_tells_what_it_would(cli, filled):
    for args in (["index", EVIL], ["--tag", "x"], ["--glob", "t*"]):
        said = cli("rm", *args, "--dry-run")
        assert said.endswith("would remove 2 entries\n")
        assert "\x1b" not in said
        told = json.loads(cli("rm", *args, "--dry-run", "--json"))["would_remove"]
        assert len(told) == 2
        assert all(len(each["id"]) == 40 for each in told)
    cli("rm", "nix", "--dry-run", status=2)
    assert len(keys(filled)) == 9


@pytest.mark.parametrize("args", [["key"], ["--tag", "x"], ["--glob", "k*"]])
def test_a_build_under_way_cannot_bring_back_what_was_removed(cli, cache, crew, args):
    builder = (
        crew.start(
            build,
            cache,
            "key",
        )
        if args == ["key"]
        else crew.start(build_tagged, cache)
    )
    builder.hear("building")
    assert cli("rm", *args) == "removed 0 entries\n"
    builder.tell("go on")
    assert builder.result() == "built"
    assert "key" not in cache
    assert leftovers(cache.directory) == []


def build_tagged(line, cache):
    return build(line, cache, tags=["x"])


def test_a_pattern_leaves_other_builds_alone(cli, cache, crew):
    builder = crew.start(build, cache)
    builder.hear("building")
    cli("rm", "--glob", "other*")
    builder.tell("go on")
    assert builder.result() == "built"
    assert "key" in cache


# -- prune, reap, clear ----------------------------------------------------------------


def test_prune_removes_the_least_recently_used(cli, cache):
    for number in range(5):
        cache.set(str(number), b"x" * 1000, codec="bytes")
        os.utime(entry_of(cache, str(number)), (1e9 + number * 1e6, 1e9))
    assert re.fullmatch(
        r"removed 2 entries, 2\.\d KB; 3 entries, 3\.\d KB, left\n",
        cli("prune", "--max-entries", 3),
    )
    assert keys(cache) == {"2", "3", "4"}
    told = json.loads(cli("prune", "--max-bytes", "2.5KB", "--json"))
    assert (told["removed"], told["entries"], told["held"]) == (1, 2, 0)
    assert told["freed"] > 1000 < told["size"]
    cache.get_or_create_path("held", write, name="f")
    with cache.hold("held"):
        assert "removed 2 entries" in cli("prune", "--max-idle", "30d")
        meta = entry_of(cache, "held", b"p") / META
        os.utime(meta, (1e9, meta.stat().st_mtime))
        assert "1 entry is held" in cli("prune", "--max-idle", "12h")
    assert keys(cache) == {"held"}


def test_prune_removes_what_has_expired(cli, cache):
    cache.get_or_create("old", lambda: 1, max_age=0)
    cache.set("new", 1)
    assert "removed 1 entry, " in cli("prune", "--expired")
    assert keys(cache) == {"new"}
    assert json.loads(cli("prune", "--expired", "--json"))["removed"] == 0


def test_reap_removes_what_a_dead_builder_left(cli, cache, crew):
    builder = crew.start(build, cache)
    builder.hear("building")
    assert cli("reap") == "removed 0 things that dead builders left\n"
    builder.kill()
    assert leftovers(cache.directory)
    assert json.loads(cli("reap", "--json"))["reaped"] >= 1
    assert leftovers(cache.directory) == []


def test_clear_wants_yes_where_nobody_can_be_asked(filled):
    _, said = on_pipe("clear", "-C", filled.directory, status=2)
    assert said.count("\n") == 1
    assert "--yes" in said
    assert len(keys(filled)) == 9
    assert on_pipe("clear", "-y", "-C", filled.directory)[0] == "removed 9 entries\n"
    assert keys(filled) == set()
    out, _ = on_pipe("clear", "--yes", "--json", "-C", filled.directory)
    assert json.loads(out) == {"removed": 0}


@pytest.mark.parametrize(
    ("answer", "removed"),
    [(b"y\n", 9), (b"YES\n", 9), (b"\n", 0), (b"n\n", 0), (b"\x04", 0), (b"yesterday\n", 0)],
)
def test_clear_asks_on_a_terminal(filled, answer, removed):
    with Terminal("clear", "-C", filled.directory) as terminal:
        terminal.until(rb"remove all 9 entries of .*\? \[y/N\] ")
        assert len(keys(filled)) == 9
        terminal.type(answer)
        said = terminal.end(0 if removed else 1)
    assert ("removed 9 entries" if removed else "nothing was removed") in said
    assert len(keys(filled)) == 9 - removed


def test_an_interrupt_at_the_question_removes_nothing(filled):
    with Terminal("clear", "-C", filled.directory) as terminal:
        terminal.until(rb"\[y/N\] ")
        terminal.type(b"\x03")
        terminal.end(130)
    assert len(keys(filled)) == 9


def test_clear_with_yes_does_not_ask_on_a_terminal(filled):
    assert on_terminal("clear", "--yes", "-C", filled.directory) == "removed 9 entries\n"


# -- verify, stats ---------------------------------------------------------------------


def test_verify_reports_and_removes_what_is_damaged(cli, filled):
    flip(entry_of(filled, "index"))
    flip(entry_of(filled, EVIL))
    (entry_of(filled, "report", b"p") / "r.pdf").unlink()
    said = cli("verify", "--keep", status=1)
    assert len(said.splitlines()) == 4
    assert re.search("damaged: index: the checksum of its payload is wrong: /.*", said)
    assert "\x1b" not in said
    assert said.endswith(": 3 damaged, 0 removed\n")
    assert "verified 9 entries, " in said
    assert entry_of(filled, "index").exists()
    told = lines(cli("verify", "--json", status=1))
    assert {each["path"] for each in told[:-1]} == {
        str(entry_of(filled, "index")),
        str(entry_of(filled, EVIL)),
        str(entry_of(filled, "report", b"p")),
    }
    assert all(each["removed"] for each in told[:-1])
    assert (told[-1]["entries"], told[-1]["damaged"], told[-1]["removed"]) == (9, 3, 3)
    assert re.fullmatch(r"verified 6 entries, [\d.]+ K?B\n", cli("verify"))
    assert keys(filled) == {"text", "json", "blob", "pickle", "tiles", "('page', 42)"}
    assert leftovers(filled.directory) == []


def test_verify_leaves_to_a_builder_what_that_builds_anew(cli, filled, crew):
    flip(entry_of(filled, "index"))
    builder = crew.start(build, filled, "index")
    builder.hear("building")
    assert "not removed" in cli("verify", status=1)
    builder.tell("go on")
    assert builder.result() == "built"
    assert "damaged" not in cli("verify")


def count_hits(line, cache):
    for _ in range(3):
        cache.get_or_create("key", lambda: time.sleep(0.01))


def test_stats_tell_what_all_processes_counted(cli, cache, crew):
    member = crew.start(count_hits, cache)
    member.result()
    member.process.join(PATIENCE)
    cache.set("other", b"x" * 2000, codec="bytes")
    told = json.loads(cli("stats", "--json"))
    assert (told["entries"], told["hits"], told["misses"], told["builds"]) == (2, 2, 1, 1)
    assert told["hit_rate"] == pytest.approx(2 / 3)
    assert told["size"] == sum(entry.size for entry in cache.entries())
    assert told["seconds_saved"] >= 0.02
    said = cli("stats")
    assert re.search(r"entries: +2\n", said)
    assert re.search(r"hit rate: +66\.7%\n", said)
    assert re.search(r"time saved: +\d+ ms\n", said)
    assert re.search(r"hits: +2\n", said)


def test_stats_tell_of_builds_that_were_in_vain(cli, cache):
    assert cache.get_or_create("key", lambda: cache.set("key", "set") or "built") == "set"
    cache.stats()  # writes it down
    told = json.loads(cli("stats", "--json"))
    assert (told["builds"], told["duplicates"], told["fetched"]) == (0, 1, 0)
    assert re.search(r"duplicates: +1 ", cli("stats"))


def test_stats_of_nothing_have_no_hit_rate(cli):
    assert json.loads(cli("stats", "--json"))["hit_rate"] is None
    assert re.search("hit rate: +-\n", cli("stats"))


# -- completion ------------------------------------------------------------------------


REGISTERS = {
    "bash": r"^ *complete -o nospace -F _python_argcomplete atomcache$",
    "zsh": r"^#compdef atomcache$",
    "fish": r"^complete --command atomcache -f -a ",
}
"""How a script tells its shell whose lines it completes."""


@pytest.mark.parametrize("shell", REGISTERS)
def test_a_script_for_each_shell_is_printed(capsys, shell):
    pytest.importorskip("argcomplete")
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert re.search(REGISTERS[shell], said, re.MULTILINE)
    assert ("fish" in said) == (shell == "fish")
    assert "default" not in said, "where there is nothing to offer, files are none"


def completed(cache, typed, **more):
    """Return what a shell is told after a line was typed so far."""
    place = cache.directory.parent / "completions"
    done = subprocess.run(
        [sys.executable, "-m", "atomcache"],
        env=environment(
            ATOMCACHE_DIR=str(cache.directory),
            _ARGCOMPLETE="1",
            _ARGCOMPLETE_IFS="\n",
            _ARGCOMPLETE_STDOUT_FILENAME=str(place),
            COMP_LINE=typed,
            COMP_POINT=str(len(typed.encode())),
            **more,
        ),
        cwd=place.parent,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.stdout == b""
    assert done.stderr == b""
    return {each.strip().replace("\\", "") for each in place.read_text().split("\n")}


def test_commands_options_keys_and_tags_are_completed(filled):
    pytest.importorskip("argcomplete")
    assert completed(filled, "atomcache re") == {"reap"}
    assert completed(filled, "atomcache ") >= set(COMMANDS)
    assert "--max-bytes" in completed(filled, "atomcache prune --max")
    assert completed(filled, "atomcache ls --sort ") == {"size", "age", "used", "cost"}
    assert completed(filled, "atomcache cat t") == {"text", "tiles"}
    assert completed(filled, "atomcache rm index re") == {"report"}
    assert completed(filled, "atomcache rm --tag x") == {"x"}
    assert completed(filled, "atomcache show nix") == {""}
    name = entry_of(filled, "index").name
    assert completed(filled, f"atomcache show {name[:6]}") == {name}


def test_words_of_a_command_are_completed_as_shells_do(filled, tmp_path):
    pytest.importorskip("argcomplete")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, mode in (("own-me", 0o755), ("own-me-too", 0o755), ("own-not", 0o644)):
        (programs / name).touch(mode)
    path = f"{programs}:/nowhere:{os.environ['PATH']}"
    for line in ("atomcache run -- own-", "atomcache run own-", "atomcache run --cwd -- own-"):
        assert completed(filled, line, PATH=path) == {"own-me", "own-me-too"}, line
    (tmp_path / "notes.txt").touch()
    assert completed(filled, "atomcache run -- cat not", PATH=path) == {"notes.txt"}


def test_names_of_variables_are_completed(filled):
    pytest.importorskip("argcomplete")
    found = completed(filled, "atomcache run --env FLAV", FLAVOUR="x", FLAVOURS="y")
    assert found == {"FLAVOUR", "FLAVOURS"}
    assert completed(filled, "atomcache run --env COMP_") == {""}


@pytest.mark.parametrize(
    "line",
    [
        "atomcache run --max-age ",
        "atomcache run --stale-for ",
        "atomcache run --timeout ",
        "atomcache run --key ",
        "atomcache run --output ",
        "atomcache ls --glob ",
        "atomcache ls --limit ",
        "atomcache rm --glob ",
        "atomcache prune --max-idle ",
        "atomcache prune --max-bytes ",
        "atomcache watch --interval ",
        "atomcache doctor --timeout ",
    ],
)
def test_nothing_is_offered_for_what_somebody_thinks_of(filled, tmp_path, line):
    pytest.importorskip("argcomplete")
    (tmp_path / "a-file").touch()
    assert completed(filled, line) == {""}


def test_files_are_offered_where_files_are_meant(filled, tmp_path):
    pytest.importorskip("argcomplete")
    (tmp_path / "a-file").touch()
    assert completed(filled, "atomcache run --input a-") == {"a-file"}
    (tmp_path / "a-folder").mkdir()
    assert completed(filled, "atomcache doctor a-") == {"a-folder/"}


def test_keys_that_a_terminal_would_obey_are_completed_escaped(filled):
    pytest.importorskip("argcomplete")
    found = completed(filled, "atomcache cat ")
    assert any("evil" in each for each in found)
    assert not any("\x1b" in each for each in found)


def test_completing_makes_no_cache(cache):
    pytest.importorskip("argcomplete")
    cache.directory.parent.mkdir(exist_ok=True)
    assert completed(cache, "atomcache cat t") == {""}
    assert not cache.directory.exists()


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash")
def test_bash_completes_a_key(filled, tmp_path):
    pytest.importorskip("argcomplete")
    program = tmp_path / "bin" / "atomcache"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m atomcache "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "try.sh"
    script.write_text(
        f'export PATH="{program.parent}:$PATH" ATOMCACHE_DIR="{filled.directory}"\n'
        'eval "$(atomcache completion bash)"\n'
        'COMP_LINE="atomcache cat rep" COMP_POINT=17 COMP_TYPE=9 COMP_WORDBREAKS=" "\n'
        "_python_argcomplete atomcache\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["/bin/bash", "--norc", str(script)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["report"], done.stderr


def test_missing_libraries_are_one_clear_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    assert main(["completion", "bash"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'atomcache[cli]'" in said
