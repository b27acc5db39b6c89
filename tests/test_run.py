"""``atomcache run``: a command runs once for all who ask, and is replayed as it was."""

import ctypes
import json
import os
import random
import re
import select
import shlex
import signal
import subprocess
import sys

import pytest

from atomcache import Cache, current_build

from .crew import PATIENCE, Hang, leftovers, sleepers, until
from .terminal import CTRL_C, Terminal, end_session, screen

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ATOMCACHE = [sys.executable, "-m", "atomcache"]
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2

UNWANTED = ("COLUMNS", "ATOMCACHE_MAX_AGE", "ATOMCACHE_SCOPE")

COUNT = 'echo >> "$RUNS"; '
"""How a script says that it runs; the shell appends, so no word of several is lost."""

LAST_WEEK = """
import sys, time
from atomcache._door import door
from atomcache.cli import main
door.time = lambda: time.time() - 7 * 86_400
sys.exit(main())
"""
"""Runs what is to be old already."""

WAIT = 'read -r word < "$GATE"; '


# -- helpers ---------------------------------------------------------------------------


class Shell:
    """Starts programs with a cache and a current folder of their own, and ends them all."""

    def __init__(self, folder) -> None:
        self.cache = folder / "cache"
        self.here = folder / "here"
        self.here.mkdir()
        self.runs_file = folder / "runs"
        self.runs_file.touch()
        self.gate = folder / "gate"
        os.mkfifo(self.gate)
        self._tokens = os.open(self.gate, os.O_RDWR)  # both ends, so nobody waits to open it
        self.processes = []
        kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        self.environment = {
            **kept,
            "ATOMCACHE_DIR": str(self.cache),
            "GATE": str(self.gate),
            "PYTHONPATH": HERE,
            "RUNS": str(self.runs_file),
            "TERM": "xterm",
        }

    def options(self, env=None, cwd=None):
        return {"env": {**self.environment, **(env or {})}, "cwd": cwd or self.here}

    def start(self, *args, program=ATOMCACHE, env=None, cwd=None, **options):
        """Start ``atomcache run``, with pipes."""
        process = subprocess.Popen(
            [*program, "run", *args],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "start_new_session": True,
                **self.options(env, cwd),
                **options,
            },
        )
        self.processes.append(process)
        return process

    def run(self, *args, status=0, given=None, **options):
        """Run it to its end; return what it wrote."""
        if given is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*args, **options)
        out, err = process.communicate(given, PATIENCE)
        assert process.returncode == status, (process.returncode, out, err)
        assert b"Traceback" not in (err or b""), err
        return out, err

    def terminal(self, *args, program=ATOMCACHE, env=None, cwd=None):
        return Terminal([*program, "run", *args], **self.options(env, cwd))

    def runs(self):
        """Return how often commands ran that count it."""
        return len(self.runs_file.read_text().splitlines())

    def open_gate(self):
        """Let one go on who waits at the gate, or will."""
        os.write(self._tokens, b"go on\n")

    def claim(self):
        """Return the path of the claim, once there is one."""
        return until(
            lambda: next((path for path in leftovers(self.cache) if path.endswith(".temp")), None),
            "somebody claims",
        )

    def wait_for_sleepers(self, number):
        claim = self.claim()
        until(lambda: sleepers(claim) == number, f"{number} sleep")

    def entries(self):
        return list(Cache(self.cache).entries())

    def end(self):
        os.close(self._tokens)
        for process in self.processes:
            end_session(process)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    try:
        yield shell
    finally:
        shell.end()
    until(lambda: not leftovers(shell.cache), "what runs in the background ends")


def sh(script):
    return ["--", "sh", "-c", script]


def python(program):
    return ["--", sys.executable, "-c", program]


def read_until(stream, wanted):
    """Read what a process writes until `wanted` stands there; return all."""
    seen = b""
    while wanted not in seen:
        if not select.select([stream], [], [], PATIENCE)[0]:
            raise Hang(f"{wanted!r} never came after {seen!r}")
        piece = os.read(stream.fileno(), 65_536)
        if not piece:
            raise Hang(f"{wanted!r} never came after {seen!r}, and nothing will")
        seen += piece
    return seen


def result(process):
    """Return status and output of a process, once it has ended."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def keys_of(line, *asked):
    """Return the keys of runs; in a process, because `main` finds its modules by itself."""
    from atomcache.cli._run import Task, parse

    return [Task(parse(list(args))).key for args in asked]


def one_line(text):
    """Return the only line of `text`."""
    [line] = text.decode().splitlines(keepends=True)
    assert line.startswith("atomcache run: ")
    assert line.endswith("\n")
    return line


# -- the first run streams, the others replay ------------------------------------------


def test_the_output_of_the_first_run_appears_while_the_command_runs(shell):
    process = shell.start(*sh("echo first; echo warned >&2; " + WAIT + "echo last"))
    read_until(process.stdout, b"first\n")
    read_until(process.stderr, b"warned\n")
    shell.open_gate()
    assert result(process) == (0, b"last\n", b"")


def test_a_replay_is_the_same_byte_by_byte(shell):
    write = """
        import os, random, sys
        os.write(os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND), b"\\n")
        noise = random.Random(1).randbytes(3_000_000)
        sys.stdout.buffer.write(bytes(range(256)) + b"\\0\\xff\\xfe\\r\\n" + noise)
        sys.stderr.buffer.write(noise[::-1] + b"no newline at the end")
    """
    command = python("if True:" + write)
    first = shell.run(*command)
    assert len(first[0]) > 3_000_000
    assert len(first[1]) > 3_000_000
    assert shell.run(*command) == first
    assert shell.runs() == 1


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [
        ("echo out", b"out\n", b""),
        ("echo err >&2", b"", b"err\n"),
        ("echo out; echo err >&2", b"out\n", b"err\n"),
        (":", b"", b""),
    ],
)
def test_the_streams_stay_apart(shell, script, out, err):
    for _ in range(2):
        assert shell.run(*sh(COUNT + script)) == (out, err)
    assert shell.runs() == 1


def test_a_replay_keeps_the_order_in_which_both_streams_arrived(shell):
    steps = [f"echo {stream} {n}" for n in range(3) for stream in ("out", "err >&2; : ")]
    command = sh(WAIT.join(f"{step}; " for step in steps))
    process = shell.start(*command, stderr=subprocess.STDOUT)
    live = b""
    for number in range(len(steps)):
        live += read_until(process.stdout, b"\n")
        if number + 1 < len(steps):
            shell.open_gate()
    assert result(process)[0] == 0
    assert live == b"out 0\nerr\nout 1\nerr\nout 2\nerr\n"
    assert shell.run(*command, stderr=subprocess.STDOUT)[0] == live


def test_the_command_reads_nothing_unless_told_to(shell):
    assert shell.run(*sh("cat; echo end"), given=b"typed") == (b"end\n", b"")


# -- exit statuses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 1", 1),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("kill -KILL $$", 128 + signal.SIGKILL),
    ],
)
def test_failures_are_not_stored_but_on_request_replayed(shell, script, status):
    command = sh(COUNT + f"echo out; echo err >&2; {script}")
    for runs in (1, 2):
        assert shell.run(*command, status=status) == (b"out\n", b"err\n")
        assert shell.runs() == runs
    assert shell.entries() == []
    for _ in range(2):
        assert shell.run("--keep-failures", *command, status=status) == (b"out\n", b"err\n")
        assert shell.runs() == 3
    shell.run(*command, status=status)
    assert shell.runs() == 4, "what was kept is replayed only to those who want failures"


def test_what_cannot_be_started_ends_as_shells_have_it_and_is_never_stored(shell):
    plain = shell.here / "plain"
    plain.write_text("no program")
    for command, status, why in [
        ("no-such-command", 127, "No such file or directory"),
        ("", 127, "No such file or directory"),
        (str(plain), 126, "Permission denied"),
        (str(shell.here), 126, "Permission denied"),
    ]:
        for _ in range(2):
            out, err = shell.run("--keep-failures", command, status=status)
            assert out == b""
            assert one_line(err) == f"atomcache run: can't run '{command}': {why}\n"
    assert shell.entries() == []


def test_a_script_without_an_interpreter_is_run_as_shells_do(shell):
    script = shell.here / "no-interpreter"
    script.write_text('echo "$0 $# $1"\n')
    script.chmod(0o755)
    for name in ("./no-interpreter", "no-interpreter"):
        path = f"{shell.here}:{os.environ['PATH']}"
        out, err = shell.run("--", name, "a b", "c", env={"PATH": path})
        assert (out.split(b" ", 1)[1], err) == (b"2 a b\n", b"")
    script.write_bytes(b"\x7fFOO\0\0\0")
    out, err = shell.run("--key=other", "--", "./no-interpreter", status=126)
    assert one_line(err) == "atomcache run: can't run './no-interpreter': Exec format error\n"


def test_what_the_caller_hands_on_reaches_the_command_and_nothing_else(shell):
    ours, theirs = os.pipe()
    os.write(theirs, b"handed on")
    os.close(theirs)
    try:
        program = "import os; print(os.read(%d, 99)); print(sorted(os.listdir('/proc/self/fd')))"
        out, _ = shell.run(*python(program % ours), pass_fds=[ours])
    finally:
        os.close(ours)
    read, descriptors = out.decode().splitlines()
    assert read == "b'handed on'"
    # The three streams, what is handed on, its progress, and the listing of the folder.
    assert len(shlex.split(descriptors)) == 6, "the claim's is for its owner only"


# -- a command that waits for itself ---------------------------------------------------


def test_a_command_that_asks_for_itself_is_one_clear_line(shell):
    script = shell.here / "script"
    script.write_text(f"#!/bin/sh\n{COUNT}exec {shlex.join([*ATOMCACHE, 'run', './script'])}\n")
    script.chmod(0o755)
    for runs in (1, 2):
        out, err = shell.run("./script", status=125)
        assert out == b""
        assert "would never end" in one_line(err)
        assert shell.runs() == runs
    assert shell.entries() == []


def test_a_command_that_asks_for_itself_by_another_one_is_one_clear_line(shell):
    for name, other in (("one", "two"), ("two", "one")):
        script = shell.here / name
        script.write_text(f"#!/bin/sh\nexec {shlex.join([*ATOMCACHE, 'run', f'./{other}'])}\n")
        script.chmod(0o755)
    assert "would never end" in one_line(shell.run("./one", status=125)[1])


def test_what_runs_in_the_background_may_wait_for_what_began_it(shell, in_the_past):
    inner = shlex.join([*ATOMCACHE, "run", "--warm", *sh("echo inner")])
    assert shell.run(*sh(f"{inner}; echo outer")) == (b"outer\n", b"")
    until(lambda: len(shell.entries()) == 2, "it is there")


# -- many at once ----------------------------------------------------------------------


def test_sixteen_that_ask_at_once_run_the_command_once(shell):
    command = sh(COUNT + "echo out; echo err >&2; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    others = [shell.start(*command) for _ in range(15)]
    shell.wait_for_sleepers(15)
    shell.open_gate()
    assert [result(each) for each in others] == [(0, b"out\n", b"err\n")] * 15
    assert result(builder) == (0, b"", b"err\n")
    assert shell.runs() == 1


def test_one_failing_attempt_fails_for_all_who_waited_and_the_next_tries_anew(shell):
    command = sh(COUNT + r"printf 'out\0\377'; echo err >&2; " + WAIT + "exit 7")
    builder = shell.start(*command)
    read_until(builder.stderr, b"err\n")
    others = [shell.start(*command) for _ in range(4)]
    shell.wait_for_sleepers(4)
    shell.open_gate()
    assert [result(each) for each in others] == [(7, b"out\0\xff", b"err\n")] * 4
    assert result(builder) == (7, b"out\0\xff", b"")
    assert shell.runs() == 1
    assert shell.entries() == []
    again = shell.start(*command)
    shell.open_gate()
    assert result(again)[0] == 7
    assert shell.runs() == 2


def test_a_failure_that_wrote_too_much_is_told_without_it(shell):
    noise = "import os; os.write(1, os.urandom(300_000)); os.write(2, os.urandom(300_000))"
    command = sh(COUNT + f"{sys.executable} -c '{noise}'; " + WAIT + "exit 9")
    builder = shell.start(*command)
    shell.claim()
    waiter = shell.start(*command)
    shell.wait_for_sleepers(1)
    until_gate = _drain(builder, 600_000)
    shell.open_gate()
    status, out, err = result(waiter)
    assert (status, out) == (9, b"")
    assert "status 9 in another process, and wrote too much" in one_line(err)
    rest = result(builder)
    assert rest[0] == 9
    assert until_gate + len(rest[1]) + len(rest[2]) == 600_000
    assert shell.runs() == 1


def _drain(process, wanted):
    """Read both streams until so much has come; return how much."""
    seen = 0
    while seen < wanted:
        ready = select.select([process.stdout, process.stderr], [], [], PATIENCE)[0]
        if not ready:
            raise Hang(f"only {seen} bytes came")
        seen += sum(len(os.read(stream.fileno(), 65_536)) for stream in ready)
    return seen


def test_if_the_one_that_runs_it_is_killed_another_takes_over(shell):
    command = sh(COUNT + "if mkdir first 2>&-; then echo mine; " + WAIT + "fi; echo done")
    builder = shell.start(*command)
    read_until(builder.stdout, b"mine\n")
    others = [shell.start(*command) for _ in range(3)]
    shell.wait_for_sleepers(3)
    builder.kill()
    assert [result(each) for each in others] == [(0, b"done\n", b"")] * 3
    assert shell.runs() == 2


# -- signals ---------------------------------------------------------------------------

COUNTING = """if True:
    import os, signal
    def note(number, frame):
        global got
        got = True
        os.write(log, b"%d\\n" % number)
    log = os.open("signals", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    got = False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    os.write(1, b"ready\\n")
    while not got:
        signal.sigtimedwait([], 0.05)
    os.write(1, b"got\\n")
    open(os.environ["GATE"]).readline()
"""


def test_ctrl_c_reaches_the_command_once_and_frees_the_claim(shell):
    with shell.terminal(*python(COUNTING)) as terminal:
        terminal.until(rb"ready")
        terminal.type(CTRL_C)
        terminal.until(rb"got")  # so atomcache has had its own signal, too
        shell.open_gate()
        terminal.end(-signal.SIGINT)
    assert (shell.here / "signals").read_text() == f"{signal.SIGINT:d}\n"
    assert not leftovers(shell.cache)
    assert shell.entries() == []


def test_ctrl_c_ends_the_command(shell):
    command = sh(COUNT + "echo $$; " + WAIT)
    with shell.terminal(*command) as terminal:
        child = int(re.search(rb"(\d+)\r\n", terminal.until(rb"\d+\r\n"))[1])
        terminal.type(CTRL_C)
        terminal.end(-signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not leftovers(shell.cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_a_waiter_takes_over(shell, number):
    command = sh(
        COUNT + "if mkdir first 2>&-; then trap 'echo told >> told; exit 0' INT TERM HUP; "
        "echo mine; while :; do " + WAIT + "done; fi; echo done"
    )
    builder = shell.start(*command)
    read_until(builder.stdout, b"mine\n")
    waiter = shell.start(*command)
    shell.wait_for_sleepers(1)
    builder.send_signal(number)
    assert result(builder)[0] == -number
    assert (shell.here / "told").read_text() == "told\n"
    assert result(waiter) == (0, b"done\n", b"")
    assert shell.runs() == 2


def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored(shell):
    under_nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *ATOMCACHE]
    process = shell.start(*sh("echo ready; " + WAIT + "echo done"), program=under_nohup)
    read_until(process.stdout, b"ready\n")
    os.killpg(process.pid, signal.SIGHUP)
    shell.open_gate()
    assert result(process) == (0, b"done\n", b"")
    assert len(shell.entries()) == 1


def test_what_a_command_leaves_running_does_not_keep_a_signal_from_ending_it(shell):
    left = '(trap "" INT TERM; echo $$ ready; exec sleep 3600) & '
    process = shell.start(*sh(left + "exit 0"))
    read_until(process.stdout, b"ready\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == -signal.SIGTERM
    assert shell.entries() == []


def test_a_waiter_that_is_interrupted_harms_nobody(shell):
    command = sh(COUNT + "echo mine; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"mine\n")
    with shell.terminal(*command) as terminal:
        shell.wait_for_sleepers(1)
        terminal.type(CTRL_C)
        terminal.end(-signal.SIGINT)
    shell.open_gate()
    assert result(builder)[0] == 0
    assert shell.run(*command) == (b"mine\n", b"")
    assert shell.runs() == 1


# -- what identifies a run -------------------------------------------------------------


def test_a_key_says_word_by_word_what_was_asked_for(crew):
    chance = random.Random(1)
    letters = "ab\udc80\udcff '\"\\$-=;~ \n\tä€"

    def some(number):
        return [
            "".join(chance.choices(letters, k=chance.randrange(5)))
            for _ in range(chance.randrange(number))
        ]

    given = [(some(3), [chance.choice("ab"), *some(4)]) for _ in range(2000)]
    asked = [
        [*(part for key in keys for part in ("--key", key)), "--", *command]
        for keys, command in given
    ]
    for (keys, command), key in zip(given, crew.start(keys_of, *asked).result(), strict=True):
        expected = ["run", *(f"--key={key}" for key in keys), "--", *command]
        assert shlex.split(key) == expected


def keys_in_environment(line, *asked):
    os.environ.update({"EMPTY": "", "SET": "x"})
    os.environ.pop("UNSET", None)
    return keys_of(line, *asked)


def test_runs_that_differ_have_different_keys(crew):
    asked = [
        ["a b"],
        ["a", "b"],
        ["a", "b", ""],
        ["--", "--key=x", "a", "b"],
        ["--key=x", "a", "b"],
        ["--key", "x", "--key", "y", "a", "b"],
        ["--key", "x --key=y", "a", "b"],
        ["--key=", "a", "b"],
        ["--cwd", "a", "b"],
        ["--env=EMPTY", "a", "b"],
        ["--env=UNSET", "a", "b"],
        ["--env=SET", "a", "b"],
        ["--output=a", "{output}"],
        ["--output=b", "{output}"],
        ["{output}"],
        ["--keep-failures", "a", "b"],
    ]
    same = [
        [["--env=SET", "--env=EMPTY", "a"], ["--env=EMPTY", "--env=SET", "--env=SET", "a"]],
        [["--key", "x", "a"], ["--key=x", "--", "a"]],
        [["--max-age=1h", "--tag=x", "--timeout=1", "a"], ["a"]],
    ]
    keys = crew.start(keys_in_environment, *asked).result()
    assert len(set(keys)) == len(keys)
    for pair in same:
        one, other = crew.start(keys_in_environment, *pair).result()
        assert one == other


def test_each_key_option_makes_a_run_of_its_own_and_the_same_is_replayed(shell, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    script = sh(COUNT + "pwd")
    plain = shell.run(*script)
    assert shell.run(*script, cwd=other, env={"LANG": "x"}) == plain
    assert shell.runs() == 1
    seen = {}
    for args, how in [
        (["--key", "a"], {}),
        (["--key", "b"], {}),
        (["--cwd"], {}),
        (["--cwd"], {"cwd": other}),
        (["--env", "NAME"], {"env": {"NAME": ""}}),
        (["--env", "NAME"], {"env": {"NAME": "value"}}),
        (["--env", "NAME"], {}),
    ]:
        before = shell.runs()
        seen[len(seen)] = shell.run(*args, *script, **how)
        assert shell.runs() == before + 1
        assert shell.run(*args, *script, **how) == seen[len(seen) - 1]
        assert shell.runs() == before + 1
    assert seen[3][0] == f"{other}\n".encode()


def test_arguments_that_are_no_utf_8_reach_the_command_and_the_key(shell):
    script = [*sh(COUNT + 'printf %s "$1"'), "sh"]
    for word in (b"a\xff", b"a\xfe", b"a\xff"):
        assert shell.run(*script, word) == (word, b"")
    assert shell.runs() == 2


def test_the_content_of_inputs_counts_and_not_their_times(shell):
    one = shell.here / "one.txt"
    one.write_text("1")
    command = ["--input", "*.txt", *sh(COUNT + "cat *.txt")]
    assert shell.run(*command) == (b"1", b"")
    os.utime(one, (1, 1))
    assert shell.run(*command) == (b"1", b"")
    assert shell.runs() == 1
    one.write_text("2")
    assert shell.run(*command) == (b"2", b"")
    (shell.here / "two.txt").write_text("3")
    assert shell.run(*command) == (b"23", b"")
    assert shell.runs() == 3


@pytest.mark.parametrize("args", [["--input", "gone.txt"], ["--mtime", "gone.txt"]])
def test_an_input_that_is_not_there_is_a_mistake(shell, args):
    out, err = shell.run(*args, *sh(COUNT), status=2)
    assert "gone.txt" in one_line(err)
    assert (out, shell.runs()) == (b"", 0)


def test_the_time_of_a_file_counts_on_request(shell):
    file = shell.here / "large"
    file.touch()
    command = ["--mtime", "large", *sh(COUNT)]
    shell.run(*command)
    shell.run(*command)
    assert shell.runs() == 1
    os.utime(file, ns=(1, 123_456_789))
    shell.run(*command)
    assert shell.runs() == 2


def test_what_is_read_reaches_the_command_and_the_key(shell):
    large = b"\0\xff" * 200_000
    command = ["--stdin", *sh(COUNT + "cat")]
    for content, runs in [(large, 1), (b"other", 2), (large, 2), (b"", 3), (b"other", 3)]:
        assert shell.run(*command, given=content) == (content, b"")
        assert shell.runs() == runs


# -- for how long ----------------------------------------------------------------------


def test_what_is_older_than_max_age_runs_anew(shell, in_the_past):
    command = sh(COUNT + 'wc -l < "$RUNS"')
    assert shell.run(*command, program=in_the_past)[0] == b"1\n"
    assert shell.run("--max-age", "30d", *command)[0] == b"1\n"
    for _ in range(2):
        assert shell.run("--max-age=1d12h", *command)[0] == b"2\n"


@pytest.fixture
def in_the_past():
    """Return what runs a command as if that were a week ago."""
    return [sys.executable, "-P", "-c", LAST_WEEK]


def test_the_environment_may_say_how_old_is_too_old(shell, in_the_past):
    command = sh(COUNT + 'wc -l < "$RUNS"')
    assert shell.run(*command, program=in_the_past)[0] == b"1\n"
    for age in ("", "30d"):
        assert shell.run(*command, env={"ATOMCACHE_MAX_AGE": age})[0] == b"1\n"
    shorter = {"ATOMCACHE_MAX_AGE": "500ms"}
    assert shell.run("--max-age=30d", *command, env=shorter)[0] == b"1\n"
    assert shell.run(*command, env=shorter)[0] == b"2\n"
    err = shell.run(*command, env={"ATOMCACHE_MAX_AGE": "soon"}, status=2)[1]
    assert one_line(err).startswith("atomcache run: ATOMCACHE_MAX_AGE: 'soon' is no length")


def test_the_environment_may_say_to_what_a_run_belongs(shell):
    command = sh(COUNT + 'wc -l < "$RUNS"')
    for scope, number in (("", b"1\n"), ("a", b"2\n"), ("b", b"3\n"), ("a", b"2\n")):
        assert shell.run(*command, env={"ATOMCACHE_SCOPE": scope})[0] == number
    assert shell.run("--key=a", *command)[0] == b"2\n"
    assert shell.run("--key=x", *command, env={"ATOMCACHE_SCOPE": "a"})[0] == b"4\n"
    assert shell.run("--key=a", "--key=x", *command)[0] == b"4\n"


def test_refresh_runs_anew(shell):
    command = sh(COUNT + 'wc -l < "$RUNS"')
    for number in (b"1\n", b"2\n"):
        assert shell.run("--refresh", *command)[0] == number
        assert shell.run(*command)[0] == number


SAY = 'wc -l < "$RUNS"; ps -o sid= -p $$; echo "${ATOMCACHE_RUN_BEHIND-unset}"; cat; '


@pytest.fixture
def with_traps(shell):
    """Put modules into the current folder that nobody may load."""
    for name in ("selectors", "subprocess", "tempfile", "random", "atomcache"):
        (shell.here / f"{name}.py").write_text("import os; os._exit(99)")
    return [sys.executable, "-P", "-m", "atomcache"]


def test_the_old_is_replayed_while_a_process_of_its_own_runs_it_anew(
    shell, in_the_past, with_traps
):
    command = ["--stdin", *sh(COUNT + SAY)]
    options = {"program": with_traps, "given": b"given\n"}
    old = shell.run(*command, given=b"given\n", program=in_the_past)
    assert old[0].startswith(b"1\n")
    behind = ["--max-age=1h", "--stale-for", "30d", *command]
    assert shell.run(*behind, **options) == old
    new = until(lambda: (out := shell.run(*command, **options)) != old and out, "a new one")
    assert new[1] == b""
    number, session, variable, given = new[0].decode().split()
    assert (number, variable, given) == ("2", "unset", "given")
    assert session != old[0].split()[1].decode()
    assert shell.runs() == 2


def test_a_failure_in_the_background_is_silent_and_the_old_is_replayed_on(shell, in_the_past):
    command = sh(COUNT + "mkdir first && echo good")
    good = shell.run(*command, program=in_the_past)
    old = ["--max-age=1h", "--stale-for=30d", *command]
    assert shell.run(*old) == good
    until(lambda: shell.runs() == 2 and not leftovers(shell.cache), "the background fails")
    assert shell.run(*old) == good
    assert shell.run(*command) == good


def test_if_the_command_fails_the_old_is_replayed_and_nothing_of_the_failure(shell, in_the_past):
    command = sh(COUNT + 'wc -l < "$RUNS"; echo warned >&2; mkdir first 2>&-')
    rescued = ["--max-age=1h", "--stale-on-error=30d", *command]
    assert shell.run(*command, program=in_the_past) == (b"1\n", b"warned\n")
    assert shell.run(*rescued) == (b"1\n", b"warned\n")
    assert shell.runs() == 2
    assert shell.run("--refresh", *rescued, status=1) == (b"3\n", b"warned\n")


def test_a_failure_without_an_old_one_shows_all_it_wrote(shell):
    noise = ["--stale-on-error=1h", *sh("head -c 900000 /dev/zero; exit 5")]
    assert shell.run(*noise, status=5) == (bytes(900_000), b"")


def test_timeout_ends_the_wait_for_a_stuck_one(shell):
    command = sh(COUNT + "echo mine; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"mine\n")
    out, err = shell.run("--timeout=0.05", *command, status=124)
    assert out == b""
    line = one_line(err)
    assert f"process {builder.pid} " in line
    assert "sh -c" in line
    shell.open_gate()
    assert result(builder)[0] == 0
    assert shell.run("--timeout=0.05", *command)[0] == b"mine\n"
    assert shell.runs() == 1


def test_warm_runs_it_in_the_background_if_there_is_nothing_yet(shell):
    command = sh(COUNT + "echo out; " + WAIT)
    assert shell.run("--warm", *command) == (b"", b"")
    shell.open_gate()
    until(shell.entries, "it is there")
    assert shell.run(*command) == (b"out\n", b"")
    assert shell.run("--warm", *command) == (b"", b"")
    assert shell.runs() == 1


def test_tags_are_stored(shell):
    shell.run("--tag", "one", "--tag=two", "true")
    assert [entry.tags for entry in shell.entries()] == [("one", "two")]


# -- what a command makes --------------------------------------------------------------


def test_the_path_of_a_file_that_the_command_makes_is_printed(shell):
    command = ["--output", "out.txt", *sh(COUNT + "echo said; printf made > {output}; " + WAIT)]
    builder = shell.start(*command)
    read_until(builder.stderr, b"said\n")
    waiter = shell.start(*command)
    shell.wait_for_sleepers(1)
    shell.open_gate()
    status, out, err = result(builder)
    path = out.decode().removesuffix("\n")
    assert (status, err, os.path.basename(path)) == (0, b"", "out.txt")
    with open(path) as file:
        assert file.read() == "made"
    assert result(waiter) == (0, out, b"")
    assert shell.run(*command) == (out, b"")
    assert shell.runs() == 1


def test_the_path_may_stand_for_a_folder_and_anywhere_in_a_word(shell):
    command = ["--output=site", *sh("mkdir {output} && echo page > {output}/index")]
    path = shell.run(*command)[0].decode().strip()
    assert os.listdir(path) == ["index"]


def test_a_command_that_makes_nothing_is_one_clear_line(shell):
    out, err = shell.run("--output=out.txt", "--", "true", "{output}", status=125)
    assert out == b""
    assert "out.txt" in one_line(err)


def test_a_command_that_fails_prints_no_path(shell):
    script = COUNT + "echo out; echo err >&2; echo half > {output}; exit 4"
    for runs in (1, 2):
        assert shell.run("--output=out", *sh(script), status=4) == (b"", b"out\nerr\n")
        assert shell.runs() == runs
    assert shell.entries() == []


def test_if_what_makes_a_path_fails_the_old_is_told_and_nothing_of_the_failure(shell, in_the_past):
    script = 'echo out; echo warned >&2; wc -l < "$RUNS" > {output}; mkdir first'
    command = ["--output=out", *sh(COUNT + script)]
    rescued = ["--max-age=1h", "--stale-on-error=30d", *command]
    path, err = shell.run(*command, program=in_the_past)
    assert err == b"out\nwarned\n"
    assert shell.run(*rescued) == (path, b"")
    assert shell.runs() == 2
    (shell.here / "first").rmdir()
    assert shell.run("--refresh", *rescued)[1] == b"out\nwarned\n", "held back till its end"
    status, out, err = result(shell.start("--refresh", *rescued))
    assert (status, out) == (1, b"")
    assert err.startswith(b"out\nwarned\nmkdir: ")


def test_failures_of_what_makes_a_path_cannot_be_kept(shell):
    out, err = shell.run("--keep-failures", "--output=out", *sh(COUNT + ": {output}"), status=2)
    assert "--keep-failures goes without --output" in one_line(err)
    assert (out, shell.runs()) == (b"", 0)


def test_a_failure_of_what_makes_a_path_is_shown_to_all_who_waited(shell):
    command = ["--output=out", *sh(COUNT + "echo why; : {output}; " + WAIT + "exit 4")]
    builder = shell.start(*command)
    read_until(builder.stderr, b"why\n")
    waiter = shell.start(*command)
    shell.wait_for_sleepers(1)
    shell.open_gate()
    assert result(waiter) == (4, b"", b"why\n")
    assert result(builder) == (4, b"", b"")


# -- where the output can't go ---------------------------------------------------------


def test_a_reader_that_goes_away_does_not_keep_the_others_from_the_result(shell):
    command = sh("echo first; " + WAIT + "head -c 300000 /dev/zero; echo err >&2; echo last")
    process = shell.start(*command)
    read_until(process.stdout, b"first\n")
    process.stdout.close()
    shell.open_gate()
    assert process.stderr.read() == b"err\n"
    assert process.wait(PATIENCE) == 0
    assert shell.run(*command) == (b"first\n" + bytes(300_000) + b"last\n", b"err\n")
    replay = shell.start(*command)
    read_until(replay.stdout, b"first\n")
    replay.stdout.close()
    assert replay.stderr.read() == b"err\n", "the other stream is still read"
    assert replay.wait(PATIENCE) == 0


def test_an_output_on_a_full_disk_is_one_clear_line_and_others_have_the_result(shell):
    with open("/dev/full", "wb") as full:
        for _ in range(2):
            err = shell.run(*sh(COUNT + "echo out"), stdout=full, status=125)[1]
            assert "output can't be written: No space left" in one_line(err)
        shell.run(*sh(COUNT + "echo out"), stdout=full, stderr=full, status=125)
    assert shell.run(*sh(COUNT + "echo out")) == (b"out\n", b"")
    assert shell.runs() == 1


def test_a_pipe_that_does_not_block_is_written_in_full(shell):
    command = sh("head -c 500000 /dev/zero")
    for _ in range(2):
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        process = shell.start(*command, stdout=theirs)
        os.close(theirs)
        with open(ours, "rb") as stream:
            assert stream.read() == bytes(500_000)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_of_the_cache_takes_the_place_of_a_closed_stream(shell, closed):
    command = sh("echo out; echo err >&2")
    without = ["sh", "-c", f'exec "$@" {closed}', "sh", *ATOMCACHE]
    for _ in range(2):
        out, err = shell.run(*command, program=without)
        assert out == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")
        assert err == (b"" if "2>&-" in closed else b"err\n")
    assert shell.run(*command) == (b"out\n", b"err\n")


# -- what is advised -------------------------------------------------------------------


def test_advice_can_be_taken_on_the_command_line(shell, small_disk):
    command = sh(COUNT + "echo out")
    small_disk(MS_REMOUNT | MS_RDONLY)
    line = one_line(shell.run(*command, status=125)[1])
    assert "--on-store-error bypass" in line
    assert "on_store_error" not in line
    assert "Errno" not in line
    assert line.count(str(shell.cache)) == 1
    for runs in (1, 2):
        assert shell.run("--on-store-error=bypass", *command) == (b"out\n", b"")
        assert shell.runs() == runs
    assert shell.entries() == []


def test_who_waited_too_long_is_told_of_the_option(shell):
    command = sh("echo mine; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"mine\n")
    line = one_line(shell.run("--timeout=10ms", *command, status=124)[1])
    assert "Raise --timeout, or ask again later" in line
    shell.open_gate()
    assert result(builder)[0] == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["--input=", "true"],
            "--input needs a value that is not empty; see atomcache run --help",
        ),
        (["--tag=", "true"], "--tag needs a value that is not empty; see atomcache run --help"),
        (
            ["--input=gone", "true"],
            "the input 'gone' is not there. Make it first, or leave it out of --input",
        ),
        (
            ["--input=/dev/null", "true"],
            "the input '/dev/null' is neither a file nor a folder. Leave it out of --input",
        ),
        (
            ["--mtime=gone", "true"],
            "--mtime: 'gone' can't be looked at: No such file or directory",
        ),
        (
            ["--input", "/dev/null", "./second.py", "--cwd", "--", "true"],
            "--input takes one file, so './second.py' would be the command, though a -- follows. ",
        ),
        (
            ["--cwd", "--mtime=/dev/null", "second.py", "--", "true"],
            "--mtime takes one file, so 'second.py' would be the command, though a -- follows. ",
        ),
        (["--on-store-error=", "true"], "--on-store-error needs a value that is not empty; see "),
        (["--on-store-error=no", "true"], "--on-store-error: 'no' is neither raise nor bypass"),
        (["--on-store-error=bypass", "--output=x", "{output}"], "--on-store-error bypass goes wi"),
    ],
)
def test_a_mistake_is_told_in_a_whole_sentence(shell, args, told):
    status = 125 if "--input=/dev/null" in args else 2
    line = one_line(shell.run(*args, status=status)[1]).removeprefix("atomcache run: ")
    assert line.startswith(told)


def test_a_special_file_that_a_command_makes_is_told_as_such(shell):
    made = shell.run("--output=out", "--", "mkfifo", "{output}", status=125)[1]
    assert "left a special file, such as a pipe or a socket, at " in one_line(made)
    assert "link" not in one_line(made)
    linked = shell.run("--output=out", "--", "ln", "-s", "x", "{output}", status=125)[1]
    assert "left a symlink at " in one_line(linked)


# -- where there can be no cache -------------------------------------------------------


def test_a_cache_that_cannot_be_is_one_clear_line(shell):
    shell.cache.write_text("a file")
    out, err = shell.run(*sh(COUNT), status=125)
    assert str(shell.cache) in one_line(err)
    assert (out, shell.runs()) == (b"", 0)
    shell.cache.unlink()


@pytest.fixture
def small_disk(shell):
    """Mount a disk of 256 KB in the place of the cache; return what mounts it anew."""
    shell.cache.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(shell.cache)

    def mount(flags=0):
        if libc.mount(b"tmpfs", place, b"tmpfs", flags, b"size=256k"):
            pytest.skip(f"no tmpfs can be mounted: {os.strerror(ctypes.get_errno())}")

    mount()
    try:
        yield mount
        assert not leftovers(shell.cache)
    finally:
        libc.umount2(place, MNT_DETACH)


def test_a_full_disk_is_one_clear_line_and_the_next_one_runs_anew(shell, small_disk):
    command = sh(COUNT + "head -c 1000000 /dev/zero")
    for runs in (1, 2):
        out, err = shell.run(*command, status=125)
        assert out == bytes(1_000_000)
        assert "Make room on the disk" in one_line(err)
        assert shell.runs() == runs
    assert shell.run("echo", "small")[0] == b"small\n"


def test_a_disk_that_cannot_be_written_replays_and_runs_nothing(shell, small_disk):
    assert shell.run("echo", "known")[0] == b"known\n"
    small_disk(MS_REMOUNT | MS_RDONLY)
    assert shell.run("echo", "known")[0] == b"known\n"
    out, err = shell.run(*sh(COUNT), status=125)
    assert "Choose a folder on a filesystem that can be written" in one_line(err)
    assert (out, shell.runs()) == (b"", 0)


def test_a_current_folder_that_is_gone_is_one_clear_line(shell):
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    program = ["sh", "-c", gone, "sh", *ATOMCACHE]
    err = shell.run("--cwd", "--", "true", program=program, status=2)[1]
    assert "the current folder" in one_line(err)
    assert shell.run("--", "echo", "here", program=program) == (b"here\n", b"")


# -- the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--"],
        ["--max-age", "10m"],
        ["--max-age", "soon", "true"],
        ["--max-age=-1", "true"],
        ["--max-age=nan", "true"],
        ["--stale-for=", "true"],
        ["--stale-on-error=1y", "true"],
        ["--timeout", "true", "true"],
        ["--max-age"],
        ["--key"],
        ["--cwd=no", "true"],
        ["--no-such-option", "true"],
        ["-x", "true"],
        ["-", "true"],
        ["--env", "A=B", "true"],
        ["--tag=", "true"],
        ["--output", "out.txt", "true"],
        ["--output", "a/b", "{output}"],
        ["--output=", "{output}"],
        ["--output=..", "{output}"],
        ["--input", "", "true"],
        ["--cache=", "--input", "gone", "true"],
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(shell, args):
    out, err = shell.run(*args, status=2)
    assert out == b""
    one_line(err)
    assert shell.entries() == []


@pytest.mark.parametrize(
    ("args", "out"),
    [
        (["echo", "-n", "x"], b"x"),
        (["echo", "--key", "x"], b"--key x\n"),
        (["--", "echo", "--", "x"], b"-- x\n"),
        (["--input=/etc/passwd", "--", "echo", "--", "x"], b"-- x\n"),
        (["--input=/etc/passwd", "--cwd", "echo", "--", "x"], b"-- x\n"),
        (["--key=x", "echo", "--help"], b"--help\n"),
        (["--key", "--", "--", "echo", "x"], b"x\n"),
        (["-C", "elsewhere", "--", "echo", "x"], b"x\n"),
        (["echo", "{output}"], b"{output}\n"),
    ],
)
def test_what_stands_after_the_command_is_the_commands(shell, args, out):
    if "--help" in args:
        args = [*args[:-2], "printf", "%s\n", "--help"]
    assert shell.run(*args) == (out, b"")
    assert (shell.here / "elsewhere").exists() == ("-C" in args)


def test_a_command_may_begin_with_a_dash(shell):
    program = shell.here / "-x"
    program.write_text("#!/bin/sh\necho run\n")
    program.chmod(0o755)
    path = f"{shell.here}:{os.environ['PATH']}"
    assert shell.run("--", "-x", env={"PATH": path}) == (b"run\n", b"")


def options_of_run(line):
    from atomcache.cli._run import OPTIONS

    return [option.flag for group in OPTIONS.values() for option in group]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_reads_like_a_page_of_a_manual(shell, crew, flag):
    out, err = shell.run(flag)
    for section in (
        "usage: atomcache run [options] [--] COMMAND ...\n",
        "\nkey:\n",
        "\nlife:\n",
        "\ncache:\n",
        "\nwhat identifies a run:\n",
        "\nwhat happens:\n",
        "\nexit status:\n",
        "\nexamples:\n",
    ):
        assert section.encode() in out
    for option in crew.start(options_of_run).result():
        assert f"\n  {option}".encode() in out
    for status in (2, 124, 125, 126, 127):
        assert re.search(rb"\n  %d +\S" % status, out)
    assert err == b""
    with shell.terminal(flag) as terminal:
        assert b"\r\nexamples:\r\n" in terminal.end()


def test_help_says_that_only_the_order_of_arrival_is_kept(shell):
    told = " ".join(shell.run("--help")[0].decode().split())
    assert "in the order in which they arrived; what is written to both" in told
    assert "may swap" in told


def commands_of(line, *asked):
    from atomcache.cli._run import parse

    return [parse(list(args)).command for args in asked]


def test_the_examples_of_the_help_can_be_understood(shell, crew):
    examples = shell.run("--help")[0].decode().partition("\nexamples:\n")[2].splitlines()
    words = [shlex.split(line.rpartition("|")[2]) for line in examples]
    assert len(words) > 3
    assert all(each[:2] == ["atomcache", "run"] for each in words)
    assert all(crew.start(commands_of, *(each[2:] for each in words)).result())


def test_an_entry_that_is_no_recording_is_one_clear_line(shell, crew):
    [key] = crew.start(keys_of, ["true"]).result()
    Cache(shell.cache).set(key, b"something else", codec="bytes")
    assert "is no recording" in one_line(shell.run("true", status=2)[1])


def test_a_command_may_itself_run_commands_once(shell):
    inner = " ".join(map(shlex.quote, [*ATOMCACHE, "run", *sh(COUNT + "echo inner")]))
    for outer in ("a", "b"):
        assert shell.run(*sh(f"{inner}; echo {outer}"))[0] == f"inner\n{outer}\n".encode()
    assert shell.runs() == 1


LOADED = """
import sys
from atomcache.cli import main
status = main()
with open("loaded", "w") as file:
    file.write(" ".join(sys.modules))
sys.exit(status)
"""


UNNEEDED = ("platformdirs", "pathlib", "tempfile", "shutil", "re", "shlex", "inspect", "hashlib")


@pytest.mark.parametrize(
    ("args", "needed"),
    [
        (["--", "echo", "x"], []),
        (["--", "echo", "x", ""], []),
        (["--stdin", "--", "echo", "x"], []),
        (["--input=one.txt", "--", "echo", "x"], ["re"]),  # by cbor2, which a compound key takes
    ],
)
def test_a_replay_from_the_default_cache_loads_nothing_that_is_not_needed(shell, args, needed):
    program = [sys.executable, "-S", "-c", LOADED]
    (shell.here / "one.txt").write_text("1")
    kept = {"ATOMCACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(shell.cache)}
    kept["PYTHONPATH"] = os.pathsep.join([HERE, *sys.path])
    for _ in range(2):
        shell.run(*args, program=program, env=kept)
    loaded = set((shell.here / "loaded").read_text().split())
    assert [name for name in UNNEEDED if name in loaded] == needed
    assert "atomcache" in loaded
    assert len(list(Cache(shell.cache / ".cache" / "atomcache").entries())) == 1


def test_nothing_is_loaded_that_is_not_needed(shell):
    loaded = {}
    for what in ("miss", "hit"):
        program = [sys.executable, "-c", LOADED]
        assert shell.run("--max-age=1h", "echo", "x", program=program)[0] == b"x\n"
        loaded[what] = set((shell.here / "loaded").read_text().split())
    for what in ("rich", "filelock", "argparse", "argcomplete", "asyncio", "atomcache._waiting"):
        assert what not in loaded["miss"] | loaded["hit"]
    for what in ("subprocess", "selectors", "tempfile", "shlex", "atomcache.cli._child"):
        assert what not in loaded["hit"]


# -- in a terminal ---------------------------------------------------------------------


def test_runs_and_replays_look_the_same_in_a_terminal(shell):
    command = sh(COUNT + "echo out; echo err >&2; exit 3")
    for _ in range(2):
        with shell.terminal("--keep-failures", *command) as terminal:
            assert sorted(terminal.end(3).split()) == [b"err", b"out"]
    assert shell.runs() == 1


def build_recording(line, directory, key):
    """Build what a run of a key waits for, and report how far it is."""

    def factory():
        line.tell("building")
        while True:
            word = line.hear()
            if word == "go on":
                return recording(b"out\n")
            current_build()._next_report = 0.0  # each one counts, however soon it comes
            current_build().progress(*word)

    return Cache(directory).refresh(key, factory, codec="bytes")


def recording(out):
    from atomcache.cli._recording import Recorder

    recorder = Recorder()
    recorder.add(1, out)
    return recorder.finish(0)


def test_a_terminal_shows_who_runs_it_how_far_it_is_and_how_long_it_took(shell, crew, in_the_past):
    command = ["--max-age=1h", "--", "echo", "old"]
    assert shell.run(*command, program=in_the_past)[0] == b"old\n"
    [key] = crew.start(keys_of, command).result()
    builder = crew.start(build_recording, str(shell.cache), key)
    builder.hear("building")
    builder.tell((21, 50, "linking \x1b[31m"))
    with shell.terminal(*command) as terminal:
        terminal.until(rb"waiting for run -- echo old")
        terminal.until(rb"process %d on .*42 %%" % builder.pid)
        terminal.until(rb"linking \\x1b\[31m")
        terminal.until(rb"for \d+ s, took \d+ s last time")
        builder.tell((40, 50, "packing"))
        terminal.until(rb"80 %")
        terminal.until(rb"packing")
        builder.tell("go on")
        seen = terminal.end()
    assert [line for line in screen(seen) if line] == ["out"]


TELL = 'echo "%s" >&"$ATOMCACHE_PROGRESS_FD"; '


def builds(shell):
    """Return what ``atomcache watch`` says of builds in progress."""
    done = subprocess.run(
        [*ATOMCACHE, "watch", "--once", "--json"],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        **shell.options(),
    )
    return json.loads(done.stdout)["builds"]


def test_a_command_tells_those_who_wait_how_far_it_is(shell):
    command = sh("echo out; " + TELL % "21 50 linking it" + WAIT + TELL % "50 50 packing" + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    [told] = until(lambda: [each for each in builds(shell) if each["done"]], "it tells")
    assert (told["done"], told["total"], told["note"]) == (21, 50, "linking it")
    with shell.terminal(*command) as terminal:
        terminal.until(rb"42 %.* linking it")
        shell.open_gate()
        terminal.until(rb"100 %.* packing")
        shell.open_gate()
        assert screen(terminal.end())[0] == "out"
    assert result(builder) == (0, b"", b"")
    assert shell.run(*command) == (b"out\n", b"")


RUBBISH = ["", "x", "nan", "1 inf", "1 x", "1e999 2", "x 1 2", "\xff", "- -", "1 2 3 4 5" * 60]


def test_what_is_no_progress_is_ignored(shell):
    lines = "".join(TELL % line for line in RUBBISH[:-1])
    many = f"head -c 300000 /dev/zero >&$ATOMCACHE_PROGRESS_FD; {TELL % ''}"
    command = sh("echo out; " + lines + many + TELL % "7" + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    [told] = until(lambda: [each for each in builds(shell) if each["done"]], "it tells")
    assert (told["done"], told["total"], told["note"]) == (7, None, "")
    shell.open_gate()
    assert result(builder) == (0, b"", b"")


@pytest.mark.parametrize("line", RUBBISH[:-1])
def test_a_line_of_progress_begins_with_one_number_or_two(crew, line):
    assert crew.start(understood, line.encode("latin-1")).result() is None
    assert crew.start(understood, b" 3\t10  a note \xff\r").result() == (3, 10, "a note \ufffd")
    assert crew.start(understood, b"-1.5").result() == (-1.5, None, "")


def understood(line, text):
    from atomcache.cli._child import _understood

    return _understood(text)


def test_what_a_command_leaves_running_may_keep_the_descriptor_of_its_progress(shell):
    left = "(exec >&- 2>&-; sleep 3600) & echo done"
    assert shell.run(*sh(left)) == (b"done\n", b"")


def test_a_pipe_shows_nothing_of_a_wait(shell):
    command = sh("echo out; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    waiters = [shell.start(*command)]
    with shell.terminal(*command) as terminal:
        terminal.until(rb"waiting for")  # so there was something to be shown
        shell.wait_for_sleepers(2)
        shell.open_gate()
        assert screen(terminal.end())[0] == "out"
    assert [result(each) for each in waiters] == [(0, b"out\n", b"")]
    assert result(builder) == (0, b"", b"")


def test_without_rich_a_terminal_shows_nothing_of_a_wait(shell):
    without = "import sys; sys.modules['rich'] = None; from atomcache.cli import main; "
    command = sh("echo out; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    waits = "from atomcache import _patience; _patience.everywhere.append(lambda w: print(w)); "
    program = [sys.executable, "-c", without + waits + "sys.exit(main())"]
    with shell.terminal(*command, program=program) as terminal:
        terminal.until(rb"Waiting\(")  # so it was shown, if it could be
        shell.open_gate()
        seen = terminal.end()
    assert b"waiting for" not in seen
    assert seen.endswith(b"out\r\n")
    assert result(builder)[0] == 0


def test_a_terminal_keeps_its_cursor_when_one_that_waits_is_killed(shell):
    command = sh("echo out; " + WAIT)
    builder = shell.start(*command)
    read_until(builder.stdout, b"out\n")
    with shell.terminal(*command) as terminal:
        terminal.until(rb"waiting for.*\n?.* on .* s")
        terminal.process.kill()
        seen = terminal.end(-signal.SIGKILL)
    assert seen.rfind(b"\x1b[?25l") < seen.rfind(b"\x1b[?25h")
    shell.open_gate()
    assert result(builder)[0] == 0
