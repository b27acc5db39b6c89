"""``atomcache completion``: commands, options, keys and tags completed in a shell.

The shell calls ``atomcache`` again with what was typed so far; `complete` answers.  It looks at a
bounded part of the cache, because somebody waits with a finger on the key.

Who calls it: the dispatcher.  What may go wrong: `AtomcacheError` where argcomplete is not
installed; nothing else is told, or it would end up in the line that is being typed.
"""

from __future__ import annotations

import argparse
import os
import sys

from .._errors import AtomcacheError
from ._tables import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST_LOOKED_AT = 2000
_MOST_OFFERED = 200

_FREE = (
    *("max_age", "stale_for", "stale_on_error", "timeout", "interval", "max_idle", "max_bytes"),
    *("max_entries", "limit", "glob", "output"),
)
"""Options that take what somebody thinks of: a length of time, a number, a pattern, a name."""

_OURS = ("_ARGCOMPLETE", "COMP_")
"""Beginnings of variables that are there only while a line is completed."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Print a script."}

It completes commands, options, tags, names of variables and of programs, and the keys of the
cache, of which it looks at no more than {_MOST_LOOKED_AT:,}, and ids, of any cache."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")
    parser.epilog = """
exit status:
  0  done
  1  argcomplete is not installed
  2  a mistake on the command line

examples:
  eval "$(atomcache completion bash)"
      in ~/.bashrc
  eval "$(atomcache completion zsh)"
      in ~/.zshrc, after compinit
  atomcache completion fish > ~/.config/fish/completions/atomcache.fish
"""


def run(options: argparse.Namespace) -> int:
    """Print a script."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise AtomcacheError(
            "completion needs argcomplete: pip install 'atomcache[cli]'"
        ) from None
    # Without the shell's own completion, which would offer files where there is nothing to offer.
    sys.stdout.write(
        shellcode(["atomcache"], shell=options.shell, complete_arguments=["-o", "nospace"])
    )
    return 0


def complete() -> None:
    """Tell a shell what may be typed next, and end."""
    try:
        from argcomplete import autocomplete
    except ImportError:
        raise SystemExit(1) from None
    autocomplete(whole_parser())
    raise SystemExit(1)  # the shell asked in a way that argcomplete does not know


def whole_parser() -> argparse.ArgumentParser:
    """Return a parser of all subcommands, whose arguments know what may stand for them."""
    from importlib import import_module

    from argcomplete.completers import DirectoriesCompleter

    from . import COMMANDS

    completers: dict[str, Callable[..., Any]] = {
        "cache": DirectoriesCompleter(),
        "directory": DirectoriesCompleter(),
        "keys": _keys,
        "tag": _tags,
        "env": _variables,
        "command": _programs,
        **dict.fromkeys(_FREE, _nothing),
    }
    parser = argparse.ArgumentParser("atomcache", allow_abbrev=False)
    parser.add_argument("--version", "-V", action="store_true")
    commands = parser.add_subparsers()
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, allow_abbrev=False)
        try:
            import_module(f"{__package__}._{name}").describe(command)
        except ImportError:
            continue  # what one command lacks must not end up in the line that is being typed
        for action in command._actions:
            completer = completers.get(action.dest)
            if action.dest == "key":  # a text of any kind, if it is an option
                completer = _nothing if action.option_strings else _keys
            if completer is not None:
                vars(action)["completer"] = completer
    return parser


def _nothing(**_: object) -> list[str]:
    return []


def _variables(prefix: str, **_: object) -> list[str]:
    found = (name for name in os.environ if name.startswith(prefix))
    return sorted(name for name in found if not name.startswith(_OURS))


def _programs(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return programs for the first word of a command, and files for the others."""
    from argcomplete.completers import FilesCompleter

    typed = getattr(parsed_args, "command", None) or []
    if os.sep in prefix or typed not in ([], ["--"]):
        return list(FilesCompleter()(prefix))
    found: set[str] = set()
    for folder in os.get_exec_path():
        try:
            names = [name for name in os.listdir(folder) if name.startswith(prefix)]
        except OSError:
            continue
        found.update(name for name in names if os.access(os.path.join(folder, name), os.X_OK))
    return sorted(found)[:_MOST_OFFERED]


def _keys(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return keys, and ids where some digits of one are there, that begin as what was typed."""
    return _looked_up(parsed_args, lambda cache: _matching_keys(cache, prefix))


def _tags(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    return _looked_up(parsed_args, lambda cache: _matching_tags(cache, prefix))


def _looked_up(options: argparse.Namespace, look: Callable[[Any], list[str]]) -> list[str]:
    from ._arguments import open_cache

    try:
        return look(open_cache(options))
    except (AtomcacheError, OSError):
        return []


def _matching_keys(cache: Any, prefix: str) -> list[str]:
    from itertools import islice

    found = {
        shown(entry.key)
        for entry in islice(cache.entries(), _MOST_LOOKED_AT)
        if shown(entry.key).startswith(prefix)
    }
    return sorted(found)[:_MOST_OFFERED] or _matching_ids(cache, prefix)


def _matching_ids(cache: Any, prefix: str) -> list[str]:
    from .._layout import is_entry

    if len(prefix) < 2 or not set(prefix) <= set("0123456789abcdef"):
        return []
    names = os.listdir(os.path.join(cache._layout.root, prefix[:2]))
    return sorted(name for name in names if is_entry(name) and name.startswith(prefix))[
        :_MOST_OFFERED
    ]


def _matching_tags(cache: Any, prefix: str) -> list[str]:
    from itertools import islice

    return sorted(
        {
            shown(tag)
            for entry in islice(cache.entries(), _MOST_LOOKED_AT)
            for tag in entry.tags
            if tag.startswith(prefix)
        }
    )[:_MOST_OFFERED]
