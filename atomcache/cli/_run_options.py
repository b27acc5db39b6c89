"""What ``atomcache run`` takes: its options, how they are understood, and its help.

They are understood by hand, because a replayed command takes half as long again if argparse is
loaded for it; the help and the completion use argparse, and the same table.

Who calls it: `_run`, and whoever shows the help.  What may go wrong: `Misuse`.
"""

from __future__ import annotations

from ._asked import Misuse, duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OUTPUT = "{output}"
"""What stands in a command for the path at which it is to make something."""

_EPILOG = """\
what identifies a run:
  The command line, word by word, and what the options under "key" add. Nothing else: not the
  current folder, not the environment, not the files that the command reads, unless an option
  says so.

what happens:
  The first process that asks runs the command; its output appears as it comes. Others that
  ask meanwhile sleep, and then get the same output and exit status. Later ones get them at
  once. If the process that runs the command is killed, one of those who wait takes over. The
  command reads nothing on its standard input, unless --stdin is given. Standard output and
  standard error stay apart, in the order in which they arrived; what is written to both within
  the same instant may swap. SIGINT, SIGTERM, SIGHUP and SIGQUIT reach the command; then nothing
  is stored.

  All output is held in memory until the command has ended. Of a failure that wrote more than
  some 400 KB, those who waited get the exit status and no output. A command that asks for
  itself, by running atomcache run, gets an error.

environment:
  ATOMCACHE_DIR      the cache folder, where --cache is not given
  ATOMCACHE_MAX_AGE  stands for --max-age, where that is not given
  ATOMCACHE_SCOPE    a text that is added to what identifies a run, as by --key

  The command finds in ATOMCACHE_PROGRESS_FD the number of a descriptor to which it may write
  how far it is, for those who wait and for atomcache watch, in lines DONE [TOTAL [NOTE]]:
    echo "3 10 linking" >&"$ATOMCACHE_PROGRESS_FD"

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


def _raise_or_bypass(text: str) -> str:
    if text not in ("raise", "bypass"):
        raise Misuse(f"{text!r} is neither raise nor bypass")
    return text


OPTIONS = {
    "key": [
        Option("--key", "add a text", "TEXT", several=True),
        Option("--cwd", "add the current folder"),
        Option(
            "--env",
            "add an environment variable; listings show its name and a hash of its value",
            "NAME",
            several=True,
        ),
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
            "--on-store-error",
            "bypass: run the command without storing what it writes, where the cache can't be "
            "written; by default, raise: that is an error",
            "raise|bypass",
            _raise_or_bypass,
        ),
        Option(
            "--warm",
            "print nothing and return at once; run in the background if there is nothing yet",
        ),
        Option("--tag", "label the entry, for atomcache rm --tag", "TEXT", several=True),
        Option(
            "--keep-failures",
            "store and replay also what ended with another status than 0; such runs are kept "
            "apart from those without this option. Not with --output",
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


_FILES = ("--input", "--mtime")


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
    flag = ""
    for word in words:
        if word == "--":
            asked.command = [*words]
            break
        if not word.startswith("-"):
            asked.command = [word, *words]
            if flag in _FILES and "--" in asked.command:
                raise Misuse(_one_file_only(flag, word))
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
        if not text and flag != "--key":
            raise Misuse(f"{flag} needs a value that is not empty; see atomcache run --help")
        try:
            read = option.read(text)
        except Misuse as error:
            raise Misuse(f"{flag}: {error}") from None
        if option.several:
            getattr(asked, option.name).append(read)
        else:
            setattr(asked, option.name, read)
    return asked


def _one_file_only(flag: str, word: str) -> str:
    """Say of a word that would be run as the command that it may be meant as one more file.

    A pattern that the shell has expanded looks so: it would run the second file that matches.
    """
    return (
        f"{flag} takes one file, so {word!r} would be the command, though a -- follows. Write "
        f"{flag} before each file, and a pattern in quotes; or -- before {word!r}, if that is the "
        "command"
    )


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
