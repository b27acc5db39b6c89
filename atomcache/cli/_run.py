"""``atomcache run``: run a command once for all who ask, and play it again afterwards.

What it is for: what a command writes to its two output streams and its exit status are a value
of the cache, as a recording; with ``--output``, what it makes at a path is a file or folder of
the cache.  The key is text that names the command and all that was said to identify it, so
listings can be read.  A command that fails is, in the library's terms, a factory that raises:
`CommandFailed` carries the recording to all who wait for it, and nothing is stored.

Who calls it: `main`.  What may go wrong: as ``--help`` says.
"""

from __future__ import annotations

import os
import sys

from .._errors import (
    AtomcacheError,
    BuildTimeout,
    EntryNameError,
    MissingInputError,
    OptionError,
)
from ._asked import Misuse, duration, open_cache
from ._recording import Output, is_recording, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from .._cache import Cache
    from .._waiting import Waiting

TIMED_OUT = 124
FAILED_ITSELF = 125
"""Statuses of timeout(1) and of most commands that run another one."""

OUTPUT = "{output}"

_BEHIND = "ATOMCACHE_RUN_BEHIND"
"""Set for a process that builds what another one has answered from a stale entry."""

_REBUILD = "import sys; sys.path[:] = {!r}; from atomcache.cli import main; sys.exit(main())"
"""For such a process; it is to find the modules of this one, and none in the current folder."""

_LARGEST_FAILURE = 400_000
"""Bytes of a failed command's output that those who wait get to see: claims hold a megabyte, and
it stands there in hexadecimal digits."""

_EPILOG = """\
what identifies a run:
  The command line, word by word, and what the options under "key" add.  Nothing else: not the
  current folder, not the environment, not the files that the command reads, unless an option
  says so.

what happens:
  The first process that asks runs the command; its output appears as it comes.  Others that
  ask meanwhile sleep, and then get the same output and exit status.  Later ones get them at
  once.  If the process that runs the command is killed, one of those who wait takes over.  The
  command reads nothing on its standard input, unless --stdin is given.  Standard output and
  standard error stay apart, in the order in which they arrived; what is written to both within
  the same instant may swap.  SIGINT, SIGTERM, SIGHUP and SIGQUIT reach the command; then nothing
  is stored.

environment:
  ATOMCACHE_DIR      the cache folder, where --cache is not given
  ATOMCACHE_MAX_AGE  stands for --max-age, where that is not given
  ATOMCACHE_SCOPE    a text that is added to what identifies a run, as by --key

exit status:
  that of the command, also when it is replayed (128 and the signal's number if a signal ended it)
  2    a mistake on the command line, or an input that is not there
  124  --timeout passed while another process was still running the command
  125  the cache can't be used, or the output can't be written
  126  the command can't be run
  127  the command is not found

examples:
  atomcache run --max-age 10m -- curl -s https://example.org/rates.json
  atomcache run --cwd --env LANG --input 'src/**/*.py' -- mypy src
  atomcache run --input in.md --output out.pdf -- pandoc in.md -o {output}
  git diff | atomcache run --stdin -- python review.py
  atomcache run --max-age 1m --stale-for 1h -- gh pr list
"""


class CommandFailed(Exception):
    """A command ended with another status than 0, and is not to be stored.

    Parameters
    ----------
    status
        Its exit status.
    recording
        What it wrote; `None` if that is too much to be handed to those who wait.
    """

    def __init__(self, status: int, recording: bytes | None) -> None:
        super().__init__(status, recording)

    def __str__(self) -> str:
        return f"the command ended with status {self.args[0]}"


class Option:
    """One option of this subcommand, for `parse` and for `describe`.

    Parameters
    ----------
    flag
        How it is written.
    tells
        What it does.
    takes
        What it takes, for people; nothing if it is a switch.
    read
        What turns that into a value.
    several
        Whether it may be given several times.
    """

    def __init__(
        self,
        flag: str,
        tells: str,
        takes: str = "",
        read: Callable[[str], object] = str,
        *,
        several: bool = False,
    ) -> None:
        self.flag = flag
        self.tells = tells
        self.takes = takes
        self.read = read
        self.several = several
        self.name = flag[2:].replace("-", "_")

    def none(self) -> Any:
        """Return its value where it is not given."""
        return [] if self.several else None if self.takes else False


OPTIONS = {
    "key": [
        Option("--key", "add a text", "TEXT", several=True),
        Option("--cwd", "add the current folder"),
        Option("--env", "add an environment variable", "NAME", several=True),
        Option(
            "--input",
            "add the content of a file, of a folder, or of all files that match; ** goes deep",
            "FILE|GLOB",
            several=True,
        ),
        Option(
            "--mtime",
            "add the time when a file was changed, if reading it would take too long",
            "FILE",
            several=True,
        ),
        Option("--stdin", "read the standard input, add what it says, and hand it to the command"),
        Option(
            "--output",
            "the command makes a file or folder at the path that stands for {output} in it; "
            "print the path where it is kept. What the command writes goes to the standard error "
            "stream, when it runs",
            "NAME",
        ),
    ],
    "life": [
        Option("--max-age", "run anew what is older, such as 10m", "TIME", duration),
        Option(
            "--stale-for",
            "for so long after that, replay the old and run anew in the background",
            "TIME",
            duration,
        ),
        Option(
            "--stale-on-error",
            "for so long after that, replay the old if the command fails; what it writes is "
            "held back until it has ended",
            "TIME",
            duration,
        ),
        Option(
            "--timeout",
            "wait no longer for another process that runs the command",
            "TIME",
            duration,
        ),
        Option("--refresh", "run anew, now"),
        Option(
            "--warm",
            "print nothing and return at once; run in the background if there is nothing yet",
        ),
        Option("--tag", "label the entry, for atomcache rm --tag", "TEXT", several=True),
        Option(
            "--keep-failures",
            "store and replay also what ended with another status than 0; such runs are kept "
            "apart from those without this option",
        ),
    ],
    "cache": [
        Option(
            "--cache",
            "the cache folder, also -C; by default $ATOMCACHE_DIR, else the cache that "
            "atomcache.get_or_create uses",
            "DIR",
        )
    ],
}
"""By the group in which the help shows them."""


class Asked:
    """What was asked for: an attribute for each option, and the command."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.command: list[str] = []
        for option in (each for group in OPTIONS.values() for each in group):
            setattr(self, option.name, option.none())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def parse(arguments: list[str]) -> Asked | None:
    """Understand the arguments; `None` if they ask for help.

    By hand, because a replayed command takes half as long again if argparse is loaded for it.
    """
    known = {option.flag: option for group in OPTIONS.values() for option in group}
    known["-C"] = known["--cache"]
    asked = Asked(arguments)
    words = iter(arguments)
    for word in words:
        if word == "--" or not word.startswith("-"):
            asked.command = [*([] if word == "--" else [word]), *words]
            break
        flag, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            return None
        option = known.get(flag)
        if option is None:
            raise Misuse(f"there is no option {flag!r}; see atomcache run --help")
        if not option.takes:
            if equals:
                raise Misuse(f"{flag} takes no value")
            setattr(asked, option.name, True)
            continue
        text = value if equals else next(words, None)
        if text is None:
            raise Misuse(f"{flag} needs a value; see atomcache run --help")
        try:
            read = option.read(text)
        except Misuse as error:
            raise Misuse(f"{flag}: {error}") from None
        if option.several:
            getattr(asked, option.name).append(read)
        else:
            setattr(asked, option.name, read)
    return asked


def describe(parser: Any) -> None:
    """Say what this takes, for help and completion."""
    parser.usage = "atomcache run [options] [--] COMMAND ..."
    parser.epilog = _EPILOG
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            if option.takes:
                action = "append" if option.several else "store"
                group.add_argument(
                    option.flag, action=action, metavar=option.takes, help=option.tells
                )
            else:
                group.add_argument(option.flag, action="store_true", help=option.tells)
    parser.add_argument("command", nargs="...", help="the command and its arguments")


def run(options: Asked) -> int:
    """Run the command, or replay it."""
    _fill_streams()
    try:
        task = Task(options)
        status = task.run()
    except BuildTimeout as error:
        return _say(error, TIMED_OUT)
    except (EntryNameError, MissingInputError, OptionError) as error:
        raise Misuse(str(error)) from None
    except Misuse:
        raise
    except (AtomcacheError, OSError) as error:
        return _say(error, FAILED_ITSELF)
    except KeyboardInterrupt as error:
        return _end_by(getattr(error, "number", 2))
    trouble = task.output.error
    if trouble is None or isinstance(trouble, BrokenPipeError):  # who reads has seen enough
        return status
    return _say(Misuse(f"the output can't be written: {trouble.strerror}"), FAILED_ITSELF)


class Task:
    """What one call of ``atomcache run`` has to do."""

    def __init__(self, options: Asked) -> None:
        self.options = options
        self.command = options.command
        if not self.command:
            raise Misuse("there is no command to run; see atomcache run --help")
        if options.output is not None and not any(OUTPUT in word for word in self.command):
            raise Misuse(f"with --output the command has to name {OUTPUT}, where it is to write")
        self.behind = os.environ.pop(_BEHIND, None) is not None  # the command must not see it
        self.given = sys.stdin.buffer.read() if options.stdin else None
        self.key = self._key()
        self.output = Output(1 if options.output is None else 2, 2)
        self.held = options.stale_on_error is not None and options.output is None
        self.ran: bytes | None = None
        self.cache = self._open()
        self.choices: dict[str, Any] = {
            name: getattr(options, name)
            for name in ("max_age", "stale_for", "stale_on_error", "timeout")
            if getattr(options, name) is not None
        }
        if options.max_age is None and os.environ.get("ATOMCACHE_MAX_AGE"):
            try:
                self.choices["max_age"] = duration(os.environ["ATOMCACHE_MAX_AGE"])
            except Misuse as error:
                raise Misuse(f"ATOMCACHE_MAX_AGE: {error}") from None
        if options.tag:
            self.choices["tags"] = options.tag
        if options.input:
            self.choices["inputs"] = options.input

    def run(self) -> int:
        """Do it, and return the exit status."""
        if self.options.warm and not self.behind:
            return self.warm()
        try:
            return self.value() if self.options.output is None else self.path()
        except CommandFailed as failed:
            return self.failed(failed)

    def value(self) -> int:
        """Have what the command writes, and play it unless it was seen already."""
        ask = self.cache.refresh if self.options.refresh else self.cache.get_or_create
        recording = ask(self.key, self._record, codec="bytes", **self.choices)
        if not is_recording(recording):
            raise Misuse(f"the entry of key {self.key!r} is no recording of a command")
        if self.behind:
            return 0
        seen = self.ran is not None and not self.held
        return (Output(None, None) if seen else self.output).play(recording)

    def path(self) -> int:
        """Have what the command makes, and print its path."""
        ask = self.cache.refresh_path if self.options.refresh else self.cache.get_or_create_path
        made = ask(self.key, self._make, name=self.options.output, **self.choices)
        if not self.behind:
            write(1, os.fsencode(made) + b"\n")
        return 0

    def warm(self) -> int:
        """Have it run in the background if there is nothing yet."""
        choices = {n: c for n, c in self.choices.items() if n in ("max_age", "inputs")}
        if self.options.output is not None:
            there = self.cache.get_path(self.key, **choices)
        else:
            there = self.cache.get(self.key, codec="bytes", **choices)
        if there is None or self.options.refresh:
            self._start_behind()
        return 0

    def failed(self, error: CommandFailed) -> int:
        """Show what a command wrote that failed, unless it was seen, and return its status."""
        status, recording = error.args
        seen = self.ran is not None and not self.held
        if not seen and not self.behind:
            recording = self.ran or recording
            if recording is None:
                text = f"{error} in another process, and wrote too much to be shown here"
                return _say(Misuse(text), status)
            self.output.play(recording)
        return int(status)

    # -- the factories ---------------------------------------------------------------

    def _record(self) -> bytes:
        return self._run(self.command)

    def _make(self, target: Path) -> None:
        self._run([word.replace(OUTPUT, str(target)) for word in self.command])

    def _run(self, command: list[str]) -> bytes:
        from ._child import run_command

        output = Output(None, None) if self.behind or self.held else self.output
        status, started, recorder = run_command(command, self.given, output)
        recording = self.ran = recorder.finish(status)
        keep = self.options.keep_failures and started and self.options.output is None
        if status and not keep:
            raise CommandFailed(status, recording if len(recording) <= _LARGEST_FAILURE else None)
        return recording

    # -- inside ----------------------------------------------------------------------

    def _key(self) -> str:
        """Return a text that names all that identifies this run, and nothing else."""
        options = self.options
        scope = os.environ.get("ATOMCACHE_SCOPE")
        parts = ["run", *(f"--key={text}" for text in [*([scope] if scope else []), *options.key])]
        if options.cwd:
            try:
                parts.append(f"--cwd={os.getcwd()}")
            except OSError as error:
                raise Misuse(f"--cwd: the current folder: {error.strerror}") from None
        for name in sorted(set(options.env)):
            if not name or "=" in name:  # it would be taken for another variable with a value
                raise Misuse(f"--env: {name!r} is no name of an environment variable")
            value = os.environ.get(name)
            parts.append(f"--env={name}" if value is None else f"--env={name}={value}")
        for file in options.mtime:
            try:
                parts.append(f"--mtime={file}={os.stat(file).st_mtime_ns}")
            except OSError as error:
                raise Misuse(f"--mtime {file}: {error.strerror}") from None
        if self.given is not None:
            from .._keys import blake2b

            parts.append(f"--stdin={blake2b(self.given, digest_size=20).hexdigest()}")
        if options.output is not None:
            parts.append(f"--output={options.output}")
        if options.keep_failures:
            parts.append("--keep-failures")
        return " ".join(map(_quote, [*parts, "--", *self.command]))

    def _open(self) -> Cache:
        show = sys.stderr is not None and sys.stderr.isatty() and not self.behind
        cache = open_cache(self.options, on_wait=_Shown().see if show else None)
        if not self.behind:
            cache._protocol.start_behind = lambda build: self._start_behind()
        return cache

    def _start_behind(self) -> None:
        """Have a process of its own do what this one was asked for, and not wait for it."""
        import subprocess
        import tempfile

        with tempfile.TemporaryFile() as given:
            given.write(self.given or b"")
            given.seek(0)
            subprocess.Popen(
                [sys.executable, "-c", _REBUILD.format(sys.path), "run", *self.options.arguments],
                env={**os.environ, _BEHIND: "1"},
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )


class _Shown:
    """Shows what is waited for; what draws it is loaded when there is something to show."""

    def __init__(self) -> None:
        self._display: Callable[[Waiting], None] | None = None

    def see(self, waiting: Waiting) -> None:
        if self._display is None:
            self._display = self._find()
        self._display(waiting)

    def _find(self) -> Callable[[Waiting], None]:
        try:
            from .._display import Display, find_console

            return Display(find_console()).see
        except ImportError:
            return lambda waiting: None


def _quote(word: str) -> str:
    """Quote a word as shells do, so that no two lists of words give the same text.

    As `shlex.quote` does, which loads the modules of regular expressions.
    """
    if word and not set(word) - _PLAIN:
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_")


def _say(error: Exception, status: int) -> int:
    try:
        sys.stderr.write(f"atomcache run: {' '.join(str(error).split())}\n")
    except OSError:  # nobody is there to be told, but whoever reads the status
        pass
    return status


def _fill_streams() -> None:
    """Open what is closed of the standard streams, lest a file of the cache gets its number.

    What the command writes would go into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _end_by(number: int) -> int:
    """End as a signal would have ended this process, so that shells stop their loops."""
    import signal

    if hasattr(os, "register_at_fork"):  # POSIX
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number
