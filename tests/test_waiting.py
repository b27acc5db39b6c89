"""Who waits is told what for, by `Cache(on_wait=...)` and, in a terminal, by `show_waiting`."""

import asyncio
import io
import logging
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from atomcache import BuildTimeout, Cache, OptionError, Waiting, _waiting, current_build
from atomcache._claim import claim_path
from atomcache._keys import digest

from .crew import PATIENCE, sleepers, until
from .terminal import CTRL_C, Terminal, screen

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# -- helpers ---------------------------------------------------------------------------


class Seen(list):
    """What a cache tells; `raising` is raised at each word but the last, if it is set."""

    raising = None

    def __call__(self, waiting):
        self.append(waiting)
        if self.raising is not None and not waiting.over:
            raise self.raising

    def series(self):
        """Return what was told of each wait."""
        series = [[]]
        for waiting in self:
            series[-1].append(waiting)
            if waiting.over:
                series.append([])
        assert not series.pop(), "the end of a wait was not told"
        return series


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def told(tmp_path, seen):
    """Return a cache that tells `seen` of its waits."""
    return Cache(tmp_path / "cache", on_wait=seen)


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as pool:
        yield pool


def build(line, cache, key="key", *, path=False):
    """Build, and report whatever progress the test says."""

    def factory(target=None):
        line.tell("building")
        while True:
            word = line.hear()
            if word == "go on":
                break
            if word == "fail":
                raise ValueError("no luck")
            current_build()._next_report = 0.0  # each one counts, however soon it comes
            current_build().progress(*word)
            line.tell("reported")
        if path:
            target.write_text("built")
        return "built"

    if path:
        return cache.refresh_path(key, factory, name="file").read_text()
    return cache.refresh(key, factory)


def start(crew, cache, key="key", **options):
    builder = crew.start(build_with, cache, key, options)
    builder.hear("building")
    return builder


def build_with(line, cache, key, options):
    return build(line, cache, key, **options)


def report(builder, *progress):
    builder.tell(progress)
    builder.hear("reported")


def finish(builder):
    builder.tell("go on")
    assert builder.result() == "built"


def ask(cache, key="key", **options):
    return cache.get_or_create(key, lambda: "mine", **options)


def all_wait(number):
    """Wait until so many callers of this process wait for one claim."""
    until(
        lambda: [wait.waiters for wait in list(_waiting._waits.values())] == [number],
        f"{number} wait",
    )


def until_quiet():
    """Wait until nothing in this process looks at claims any more."""
    until(lambda: all(t.name != "atomcache" for t in threading.enumerate()), "nobody looks")


# -- on_wait ---------------------------------------------------------------------------


def test_who_waits_is_told_who_builds_since_when_and_how_far(crew, pool, told, seen):
    before = time.time()
    builder = start(crew, told)
    after = time.time()
    asked = pool.submit(lambda: (ask(told), seen.append("returned")))
    until(lambda: seen, "it is told at once")
    for progress in ((1.0, 4.0, "one"), (3.0, 4.0, "two"), (5.0, None, "")):
        report(builder, *progress)
        until(lambda p=progress: (seen[-1].done, seen[-1].total, seen[-1].note) == p, "progress")
    finish(builder)
    assert asked.result(PATIENCE)[0] == "built"

    *waits, end, returned = seen
    assert returned == "returned", "the end is told before the call returns"
    assert end.over
    assert not any(waiting.over for waiting in waits)
    [entry] = told.entries()
    for waiting in (*waits, end):
        assert isinstance(waiting, Waiting)
        assert (waiting.key, waiting.kind) == (entry.key, "value")
        assert (waiting.pid, waiting.host) == (builder.pid, os.uname().nodename)
        assert before <= waiting.started <= after
        assert waiting.took_before is None
    assert waits[0].done is None
    lengths = [waiting.waited for waiting in (*waits, end)]
    assert lengths == sorted(lengths)
    assert lengths[0] > 0
    until_quiet()
    assert seen[-1] == "returned", "nothing is told afterwards"


@pytest.mark.parametrize("path", [False, True], ids=["value", "path"])
def test_who_waits_is_told_how_long_it_took_last_time(crew, pool, told, seen, path):
    first = start(crew, told, path=path)
    finish(first)
    [entry] = told.entries()
    assert entry.build_seconds > 0
    builder = start(crew, told, path=path)
    if path:  # of the same content, because it comes into the place of the builder's
        asked = pool.submit(
            told.refresh_path, "key", lambda target: target.write_text("built"), name="file"
        )
    else:
        asked = pool.submit(told.refresh, "key", lambda: "mine")
    until(lambda: seen, "it is told")
    finish(builder)
    asked.result(PATIENCE)
    [waits] = seen.series()
    assert {waiting.kind for waiting in waits} == {"path" if path else "value"}
    assert {waiting.took_before for waiting in waits} == {entry.build_seconds}


@pytest.mark.parametrize("size", [0, 10, 500])
def test_rubbish_in_the_place_of_the_old_entry_tells_no_time(cache, tmp_path, size):
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\xff" * size)
    entry = SimpleNamespace(path=str(rubbish), kind="value")
    assert _waiting._took_before(cache._door, entry) is None


def test_threads_that_wait_for_one_claim_are_told_of_once(crew, pool, told, seen):
    builder = start(crew, told)
    asked = [pool.submit(ask, told) for _ in range(5)]
    all_wait(5)
    report(builder, 1, 2)
    until(lambda: seen and seen[-1].done == 1.0, "it is told")
    finish(builder)
    assert [each.result(PATIENCE) for each in asked] == ["built"] * 5
    [waits] = seen.series()
    lengths = [waiting.waited for waiting in waits]
    assert lengths == sorted(set(lengths)), "several told of the same wait"


def test_a_thread_that_waits_for_another_thread_is_told_too(pool, told, seen):
    go_on = threading.Event()

    def factory():
        current_build().progress(1, 2, "here")
        assert go_on.wait(PATIENCE)
        return "built"

    leader = pool.submit(told.get_or_create, "key", factory)
    until(lambda: os.path.exists(claim_path(told._layout.entry(digest(b"v", "key")))), "a claim")
    follower = pool.submit(ask, told)
    until(lambda: seen and seen[-1].note == "here", "it is told")
    go_on.set()
    assert [leader.result(PATIENCE), follower.result(PATIENCE)] == ["built"] * 2
    [waits] = seen.series()
    assert {waiting.pid for waiting in waits} == {os.getpid()}


def test_tasks_that_wait_are_told_and_do_not_block_their_loop(crew, told, seen):
    builder = start(crew, told)

    async def main():
        asked = [asyncio.create_task(told.aget_or_create("key", dict)) for _ in range(3)]
        while not seen:
            await asyncio.sleep(0.002)
        finish(builder)
        return await asyncio.gather(*asked)

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == ["built"] * 3
    assert len(seen.series()) == 1


def test_a_task_that_leaves_takes_no_word_from_those_who_stay(crew, told, seen):
    builder = start(crew, told)

    async def main():
        leaves, stays = (asyncio.create_task(told.aget_or_create("key", dict)) for _ in range(2))
        while not seen:
            await asyncio.sleep(0.002)
        leaves.cancel()
        await asyncio.wait([leaves])
        number = len(seen)
        while len(seen) == number:
            await asyncio.sleep(0.002)
        finish(builder)
        return await stays

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == "built"
    until_quiet()
    assert len(seen.series()) == 1


def test_a_failing_builder_ends_the_wait(crew, pool, told, seen):
    builder = start(crew, told)
    asked = pool.submit(ask, told)
    until(lambda: seen, "it is told")
    builder.tell("fail")
    assert isinstance(asked.exception(PATIENCE), ValueError)
    assert len(seen.series()) == 1


def test_a_wait_that_takes_too_long_ends(crew, pool, told, seen):
    builder = start(crew, told)
    while not seen:  # it takes about a tenth of a second until it is told
        with pytest.raises(BuildTimeout):
            ask(told, timeout=0.3)
    assert all(len(waits) > 1 for waits in seen.series())
    finish(builder)


def test_whoever_takes_over_waits_no_more(crew, told, seen, pool):
    builder = start(crew, told)

    def factory():
        assert seen[-1].over
        return "mine"

    asked = pool.submit(told.get_or_create, "key", factory)
    until(lambda: seen, "it is told")
    builder.kill()
    assert asked.result(PATIENCE) == "mine"
    assert len(seen.series()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=["error", "exit"])
def test_a_callback_that_raises_harms_nobody(crew, pool, told, seen, caplog, error):
    seen.raising = error
    for key in ("one", "two"):
        builder = start(crew, told, key)
        number = len(seen)
        asked = pool.submit(ask, told, key)
        until(lambda n=number: len(seen) > n, "it is told")
        finish(builder)
        assert asked.result(PATIENCE) == "built"
        until_quiet()  # a wait that begins before its thread has ended is told by none
    assert len(seen.series()) == 2
    if isinstance(error, Exception):
        logged = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert all("on_wait failed" in record.message for record in logged)
        assert all(record.exc_info[1] is error for record in logged)
        assert logged


def test_a_look_that_is_late_tells_nothing_after_the_end(crew, pool, told, seen, monkeypatch):
    looking, go_on, looked = threading.Event(), threading.Event(), threading.Event()

    def look_late(door, path):
        record = look(door, path)
        looking.set()
        assert go_on.wait(PATIENCE)
        looked.set()
        return record

    look = _waiting.living_record
    monkeypatch.setattr(_waiting, "living_record", look_late)
    builder = start(crew, told)
    asked = pool.submit(ask, told)
    assert looking.wait(PATIENCE)
    finish(builder)
    assert asked.result(PATIENCE) == "built"
    go_on.set()
    assert looked.wait(PATIENCE)
    until_quiet()
    assert seen == []


def fork_while_waiting(line, directory):
    seen = Seen()
    cache = Cache(directory, on_wait=seen)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, cache)
        until(lambda: seen, "it is told")
        ours, theirs = os.pipe()
        with _waiting._telling, _waiting._changing:  # as if this thread had told at that moment
            child = Forked(lambda: wait_in_child(directory, theirs))
        with child:
            assert select.select([ours], [], [], PATIENCE)[0]
            line.tell("both wait")
            assert asked.result(PATIENCE) == "built"
            assert len(seen.series()) == 1
            return child.status()


class Forked:
    """A forked process that consists of another thread than this one, which may hold locks."""

    def __init__(self, run) -> None:
        with ThreadPoolExecutor() as pool:
            self.pid = pool.submit(self._fork, run).result()

    def _fork(self, run):
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(PATIENCE))  # ends it also if it hangs and its parent was killed
            try:
                os._exit(run())
            finally:
                os._exit(99)
        return pid

    def status(self):
        """Return how it ended."""
        pid, status = until(lambda: (got := os.waitpid(self.pid, os.WNOHANG))[0] and got, "an end")
        self.pid = 0
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def wait_in_child(directory, theirs):
    seen = Seen()

    def note(waiting):
        seen(waiting)
        os.write(theirs, b".")

    value = ask(Cache(directory, on_wait=note))
    return 0 if value == "built" and len(seen.series()) == 1 else 1


def test_a_process_may_fork_while_it_waits(crew, told):
    builder = start(crew, told)
    waiter = crew.start(fork_while_waiting, str(told.directory))
    waiter.hear("both wait")
    finish(builder)
    assert waiter.result() == 0


def test_a_pickled_cache_leaves_its_callback_behind(crew, pool, told, seen):
    copy = pickle.loads(pickle.dumps(told))
    builder = start(crew, told)
    asked = pool.submit(ask, copy)
    until(lambda: sleepers(claim_path(told._layout.entry(digest(b"v", "key")))) == 1, "it waits")
    assert not _waiting._waits
    finish(builder)
    assert asked.result(PATIENCE) == "built"
    assert seen == []


def test_what_cannot_be_called_is_refused(tmp_path):
    with pytest.raises(OptionError, match="on_wait must be callable"):
        Cache(tmp_path, on_wait="callback")


def run_python(program, *args, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
        env={**os.environ, "PYTHONPATH": HERE},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        **options,
    )


def test_nothing_is_told_or_loaded_where_nobody_waits(tmp_path):
    done = run_python(
        """
        import sys
        from atomcache import Cache, show_waiting

        def never(waiting):
            raise SystemExit("nobody waits")

        cache = Cache(sys.argv[1], on_wait=never)
        with show_waiting():
            for _ in range(2):
                assert cache.get_or_create("key", lambda: "built") == "built"
        print([name for name in ("atomcache._waiting", "rich") if name in sys.modules])
        """,
        tmp_path / "cache",
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# -- show_waiting ----------------------------------------------------------------------

ASK = """
import os, sys, threading
import atomcache

def ask(place, key="key", **options):
    return atomcache.Cache(place, **options).get_or_create(key, lambda: "mine")

"""


def program(text):
    return [sys.executable, "-c", ASK + textwrap.dedent(text)]


def environment():
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": HERE, "TERM": "xterm"}


def on_terminal(text, *args, columns=160):
    return Terminal([*program(text), *map(str, args)], env=environment(), columns=columns)


def lines(seen, columns=160):
    return [line for line in screen(seen, columns) if line]


def until_line(terminal, pattern, columns):
    """Read until a line like a pattern is all that the terminal shows; return it."""
    while True:
        found = lines(terminal.seen, columns)
        if len(found) == 1 and re.fullmatch(pattern, found[0]):
            return found[0]
        assert terminal.read(), found


SHOW = """
with atomcache.show_waiting():
    value = ask(*sys.argv[1:])
print(value)
"""


def test_a_terminal_shows_what_is_waited_for_until_it_is_there(crew, cache):
    builder = start(crew, cache)
    with on_terminal(SHOW, cache.directory) as terminal:
        terminal.until(rb"waiting for key.*process %d on .*, for \d+ s" % builder.pid)
        assert b"last time" not in terminal.seen
        report(builder, 21, 50, "linking")
        terminal.until(rb"42 %, for .* linking")
        report(builder, 7, None, "packing")
        terminal.until(rb"7 done, for .* packing")
        finish(builder)
        assert lines(terminal.end()) == ["built"]


LONG = "run --cwd=/home/somebody/project -- make all"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, r"waiting for run --cwd=/home.*…  ━+╌+  process \d+, 42 %, for \d+ s(  linking)?"),
        (60, r"waiting for run --cwd=/home.*…  ━+╌+  42 %, for \d+ s"),
    ],
)
def test_a_narrow_terminal_shows_the_key_and_how_far_it_is(crew, cache, columns, shown):
    builder = start(crew, cache, LONG)
    with on_terminal(SHOW, cache.directory, LONG, columns=columns) as terminal:
        terminal.until(rb"waiting for")
        until_line(terminal, r"waiting for run --cwd=/home[^━]+ for \d+ s", columns)
        report(builder, 21, 50, "linking")
        assert len(until_line(terminal, shown, columns)) <= columns - 2
        report(builder, 7, None, "packing")
        until_line(terminal, r"waiting for run --cwd=/home[^━]+ 7 done, for \d+ s.*", columns)
        finish(builder)
        assert lines(terminal.end()) == ["built"]


def test_after_ctrl_c_nothing_of_the_line_stays(crew, cache):
    builder = start(crew, cache, LONG)
    gives_up = """
        with atomcache.show_waiting():
            try:
                ask(*sys.argv[1:])
            except KeyboardInterrupt:
                pass
        print("given up")
    """
    with on_terminal(gives_up, cache.directory, LONG, columns=80) as terminal:
        report(builder, 1, 2, "a note that is too long to be shown beside all the rest of it")
        terminal.until(rb"50 %")
        terminal.type(CTRL_C)
        assert lines(terminal.end(), 80) == ["given up"]
    finish(builder)


def test_a_line_of_any_width_keeps_off_the_edge_and_shows_the_key():
    from rich.console import Console

    from atomcache._display import Display

    waiting = Waiting("漢字" * 40, "value", 1, "host", time.time(), 9.0, 1.0, 2.0, "漢" * 50, 3.0)
    for width in range(1, 200):
        said = io.StringIO()
        display = Display(Console(file=said, force_terminal=True, width=width, color_system=None))
        display.see(waiting)
        line = screen(said.getvalue().encode())[0]
        display.end()
        assert sum(1 + (ord(letter) > 0x3000) for letter in line) <= max(1, width - 2)
        if width > 30:
            assert line.startswith("waiting for 漢字漢字")


def test_a_pipe_shows_nothing_and_loads_no_rich(crew, cache):
    builder = start(crew, cache)
    waits_long = """
        def told(waiting):
            if waiting.waited > 0.7:
                os.write(1, b"long\\n")

        with atomcache.show_waiting():
            print(ask(sys.argv[1], on_wait=told), "rich" in sys.modules)
    """
    process = subprocess.Popen(
        [*program(waits_long), str(cache.directory)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout.readline() == b"long\n"
            finish(builder)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert out.endswith(b"built False\n")
    assert err == b""


def test_two_caches_have_a_line_each(crew, tmp_path):
    caches = [Cache(tmp_path / name) for name in ("one", "two")]
    builders = [start(crew, each, f"key {n}") for n, each in enumerate(caches)]
    both = """
        with atomcache.show_waiting():
            other = threading.Thread(target=ask, args=(sys.argv[1], "key 0"))
            other.start()
            value = ask(sys.argv[2], "key 1")
            other.join()
        print(value)
    """
    with on_terminal(both, *(each.directory for each in caches)) as terminal:
        until_lines(terminal, "key 0", "key 1")
        finish(builders[0])
        until_lines(terminal, "key 1")
        finish(builders[1])
        assert lines(terminal.end()) == ["built"]


def until_lines(terminal, *keys):
    """Read until the terminal shows waits for these keys, and for no others."""

    def shown():
        found = lines(terminal.seen)
        return len(found) == len(keys) and all(
            any(f"waiting for {key} " in line for line in found) for key in keys
        )

    while not shown():
        assert terminal.read()


def test_the_end_of_the_block_ends_the_display(crew, cache):
    builder = start(crew, cache)
    leaves = """
        told = threading.Semaphore(0)
        waiter = threading.Thread(
            target=ask,
            args=(sys.argv[1],),
            kwargs={"on_wait": lambda waiting: waiting.waited < 0.6 or told.release()},
        )
        with atomcache.show_waiting():
            waiter.start()
            for _ in range(3):
                told.acquire()
        print("left", flush=True)
        for _ in range(3):
            told.acquire()
        print("still waiting", flush=True)
        waiter.join()
    """
    with on_terminal(leaves, cache.directory) as terminal:
        terminal.until(rb"waiting for key")
        terminal.until(rb"left")
        gone = len(terminal.seen)
        terminal.until(rb"still waiting")
        finish(builder)
        seen = terminal.end()
    assert b"waiting for" not in seen[gone:]
    assert lines(seen) == ["left", "still waiting"]


def test_nobody_who_builds_can_steer_the_terminal(crew, cache):
    key = "evil\x1b[2J\nkey\u202e"
    builder = start(crew, cache, key)
    report(builder, 1, 2, "\x1b]0;title\x07\x9b31m{task.id}[red]")
    with on_terminal(SHOW, cache.directory, key) as terminal:
        terminal.until(rb"50 %")
        finish(builder)
        seen = terminal.end()
    for evil in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e"):
        assert evil.encode() not in seen
    assert rb"\x1b]0;title\x07\x9b31m{task.id}[red]" in seen


def test_no_progress_is_too_strange_to_be_shown(crew, cache):
    builder = start(crew, cache)
    with on_terminal(SHOW, cache.directory) as terminal:
        for number, (done, total) in enumerate(
            [(float("nan"), 10), (1, float("inf")), (3, float("nan")), (-1, 5), (9, 5), (5, 0)]
        ):
            report(builder, done, total, f"step {number}.")
            terminal.until(rb"step %d\." % number)
        finish(builder)
        assert lines(terminal.end()) == ["built"]


def test_without_rich_a_terminal_is_told_what_to_install(tmp_path):
    without = """
        sys.modules["rich"] = sys.modules["rich.console"] = None
        try:
            atomcache.show_waiting()
        except ImportError as error:
            print(error)
    """
    with on_terminal(without) as terminal:
        assert b"pip install 'atomcache[cli]'" in terminal.end()


def test_a_script_that_is_killed_leaves_the_cursor(crew, cache):
    builder = start(crew, cache)
    with on_terminal(SHOW, cache.directory) as terminal:
        terminal.until(rb"waiting for key.* for \d+ s")
        terminal.process.kill()
        seen = terminal.end(-signal.SIGKILL)
    assert seen.rfind(b"\x1b[?25l") < seen.rfind(b"\x1b[?25h")
    finish(builder)


def fork_while_drawing(line):
    from rich.console import Console

    from atomcache._display import Display

    waiting = Waiting("key", "value", 1, "host", 0.0, 9.0, 1.0, 2.0, "", None)
    display = Display(Console(file=io.StringIO(), force_terminal=True))
    display.see(waiting)

    def run():
        display.see(waiting)
        display.end()
        return 0

    with display._live._lock, display._console._lock:  # as if this thread were drawing
        child = Forked(run)
    display.end()
    with child:
        return child.status()


def test_a_process_may_fork_while_something_is_drawn(crew):
    assert crew.start(fork_while_drawing).result() == 0
