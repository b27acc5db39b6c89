"""The command ``atomcache``: memoize any command, and see what the cache does.

What it is for: `main` finds the subcommand and runs it.  Each subcommand is a module of its own
with two functions, ``describe(parser)``, which says what it takes, and ``run(options)``, which
does it and returns the exit status.  Only the module of the subcommand that was asked for is
loaded: a replayed command costs little more than starting Python.

Exit status: 0, or what the command that `atomcache run` runs ended with; 1 for what went wrong,
or was found wrong; 2 for a mistake on the command line and for unknown keys; 124 to 127 as
`atomcache run --help` says; 128 and the signal's number after a signal.

Who calls it: the script ``atomcache``, and ``python -m atomcache``.  What may go wrong: errors of
the library become one line on the standard error stream, and status 1.
"""

from __future__ import annotations

import os
import sys

from .._errors import AtomcacheError
from ._asked import MISUSE, Misuse, line_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._arguments import Parser

COMMANDS = {
    "run": "run a command once for all who ask, and replay it afterwards",
    "ls": "list the entries",
    "show": "show what is known of an entry",
    "path": "print the path of what was built",
    "cat": "print what is stored",
    "rm": "remove entries",
    "prune": "remove the least recently used entries, or what has expired",
    "reap": "remove what dead builders left",
    "clear": "remove all entries",
    "verify": "read every checksum, and remove what is damaged",
    "stats": "show what was counted",
    "watch": "show builds in progress, live",
    "doctor": "try what a filesystem is good for",
    "completion": "print a script that completes commands and keys in a shell",
}
"""Each subcommand, in the module of the same name with an underscore before it."""

FAILED = 1

_HELP = """\
usage: atomcache COMMAND ...

Build once, share everywhere: run commands once, and see what the cache does.

commands:
{commands}

atomcache COMMAND --help tells more. All but run and completion take --json. Which cache: --cache
DIR, else $ATOMCACHE_DIR, else the one that atomcache.get_or_create uses.

exit status:
  0    done; of run, that of the command
  1    something went wrong, or was found wrong
  2    a mistake on the command line, or an unknown key
  124  to 127: see atomcache run --help
  130  Ctrl-C

examples:
  atomcache run --max-age 10m -- curl -s https://example.org/rates.json
  atomcache ls --sort size --limit 10
  atomcache prune --max-bytes 10GB
  atomcache watch"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    arguments
        What stands after the program's name; that of this process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(given)
        if sys.stdout is not None:
            sys.stdout.flush()  # what can't be written is told while it still can be
        return status
    except SystemExit as ended:  # argparse, after --help
        return ended.code if isinstance(ended.code, int) else FAILED
    except Misuse as error:
        return _complain(given, error, MISUSE)
    except AtomcacheError as error:
        return _complain(given, error, FAILED)
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except OSError as error:
        _drop_output()
        told = OSError(f"the output can't be written: {error.strerror or error}")
        return _complain(given, told, FAILED)
    except KeyboardInterrupt:
        return 130


def _dispatch(given: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        from ._completion import complete

        complete()
    if given and given[0] in COMMANDS:
        name = given[0]
        module = load(name)
        options = module.parse(given[1:]) if name == "run" else None
        if options is None:  # the usual way, which takes longer to load
            options = parser(name).parse_args(given[1:])
        status: int = module.run(options)
        return status
    return _overview(given)


def load(name: str) -> Any:
    """Return the module of a subcommand."""
    return getattr(__import__(f"{__name__}._{name}").cli, f"_{name}")


def parser(name: str) -> Parser:
    """Return the parser of a subcommand."""
    from ._arguments import Parser

    made = Parser(f"atomcache {name}", COMMANDS[name])
    load(name).describe(made)
    return made


def _overview(given: list[str]) -> int:
    from .. import __version__

    word, *rest = given or [""]
    if word in ("--version", "-V") and not rest:
        print(f"atomcache {__version__}")
        return 0
    if given and word not in ("--help", "-h", "help"):
        if word.startswith("-") and word not in ("--version", "-V"):
            raise Misuse(
                f"there is no option {word!r} before a command. Options stand behind it, as in "
                "atomcache ls --cache DIR; see atomcache --help"
            )
        told = f"{word} stands alone" if word[:1] == "-" else f"there is no command {word!r}"
        raise Misuse(f"{told}; see atomcache --help")
    if rest and rest[0] not in COMMANDS:
        raise Misuse(f"there is no command {rest[0]!r}; see atomcache --help")
    if len(rest) > 1:
        raise Misuse(f"help takes one command, and not {rest[1]!r} too")
    if rest:
        return _dispatch([rest[0], "--help"])
    from ._help import columns, lay_out

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    print(lay_out(_HELP.format(commands=commands), columns()))
    return 0 if given else MISUSE


def _complain(given: list[str], error: Exception, status: int) -> int:
    name = f"atomcache {given[0]}" if given and given[0] in COMMANDS else "atomcache"
    if sys.stderr is not None:
        sys.stderr.write(f"{name}: {line_of(error)}\n")
    return status


def _drop_output() -> None:
    """Keep the interpreter from complaining, at its end, of a reader that went away."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
