"""``atomcache path``: where what was built stands.

Who calls it: the dispatcher.  What may go wrong: `Misuse` for an unknown key; `DamagedError`
for an entry that has lost what was built.
"""

from __future__ import annotations

import os

from ._arguments import add_cache, add_json
from ._find import add_key, damaged, find, inspect, look, status
from ._tables import on_terminal, say, say_json, shown, write_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Print a path."}

That is the file or folder that was built, or the entry's own file for a value. Treat it as
read-only: others use it too. On a pipe the path is printed as it is; on a terminal,
characters that are not printable are escaped."""
    add_key(parser)
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status("the entry is damaged", "there is no such entry, or several")}
examples:
  atomcache path report-42
  xdg-open "$(atomcache path report-42)"
  tar -cf tiles.tar -C "$(atomcache path tiles)" .
"""


def run(options: argparse.Namespace) -> int:
    """Print the path of what was built."""
    cache = look(options)
    place = find(cache, options.key, options.kind)
    entry = inspect(cache, place)
    target = os.fspath(entry.path)
    if not os.path.lexists(target):
        raise damaged(place, "what was built is gone")
    if options.json:
        say_json({"id": entry.id, "key": entry.key, "kind": entry.kind, "path": target})
    elif on_terminal():
        say(shown(target))
    else:
        write_bytes([os.fsencode(target), b"\n"])
    return 0
