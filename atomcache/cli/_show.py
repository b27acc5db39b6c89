"""``atomcache show``: all that is known of an entry.

Who calls it: the dispatcher.  What may go wrong: `Misuse` for an unknown key; `DamagedError`.
"""

from __future__ import annotations

import os

from ._arguments import add_cache, add_json
from ._find import add_key, damaged, find, inspect, look, trouble
from ._find import status as exit_status
from ._tables import facts_of, moment, say_facts, say_json, shown, size_text, time_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from .._cache import Cache
    from .._listing import EntryInfo


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    add_key(parser)
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{exit_status("the entry is damaged", "there is no such entry, or several")}
examples:
  atomcache show index
      the entry that was stored by cache.get_or_create("index", ...)
  atomcache show 1f83
      the entry whose id begins so
  atomcache show "('page', 42)"
      the entry of a key that is a tuple, as atomcache ls shows it
  atomcache show report-42 --json | jq .build_seconds
"""


def run(options: argparse.Namespace) -> int:
    """Show what is known of an entry."""
    from .._header import Damaged
    from .._listing import _read_head

    cache = look(options)
    place = find(cache, options.key, options.kind)
    entry = inspect(cache, place)
    try:
        with trouble(cache):
            inputs = sorted(_read_head(cache._door, place)[1]["inputs"])
    except (Damaged, ValueError) as why:
        raise damaged(place, why) from None
    status = _status(cache, place, entry)
    if options.json:
        say_json({**facts_of(entry), "inputs": inputs, "status": status})
    else:
        ended = [] if status is None else [("status", str(status))]
        say_facts([*_facts(entry), *ended, *(("input", shown(name)) for name in inputs)])
    return 0


def _status(cache: Cache, place: str, entry: EntryInfo) -> int | None:
    """Return with which status a recorded command ended; `None` if it is something else."""
    if entry.codec != "bytes":
        return None
    from .._header import SIZE, Damaged, glance, payload_start
    from ._recording import FRAME_SIZE, MAGIC, status_of

    with trouble(cache):
        try:
            fd = cache._door.open_unnoticed(place)
        except (FileNotFoundError, IsADirectoryError):
            raise damaged(place, "it was replaced just now") from None
        try:
            header = glance(os.read(fd, SIZE))
            os.lseek(fd, payload_start(header), os.SEEK_SET)
            begin = os.read(fd, min(len(MAGIC), header.payload_size))
            end = max(0, header.payload_size - FRAME_SIZE)
            os.lseek(fd, payload_start(header) + end, os.SEEK_SET)
            return status_of(begin, os.read(fd, FRAME_SIZE))
        except Damaged as why:
            raise damaged(place, why) from None
        finally:
            os.close(fd)


def _facts(entry: EntryInfo) -> list[tuple[str, str]]:
    from time import time

    now = time()

    def since(when: float) -> str:
        return f"{moment(when)} ({time_text(now - when)} ago)"

    expires = "never"
    if entry.expires is not None:
        left = entry.expires - now
        told = f"in {time_text(left)}" if left > 0 else f"{time_text(-left)} ago"
        expires = f"{moment(entry.expires)} ({told})"
    facts = [
        ("key", shown(entry.key)),
        ("id", entry.id),
        ("kind", entry.kind),
        ("path", shown(os.fspath(entry.path))),
        ("size", f"{size_text(entry.size)} ({entry.size} bytes)"),
        ("created", since(entry.created)),
        ("last used", since(entry.last_used)),
        ("expires", expires),
        ("build time", time_text(entry.build_seconds)),
    ]
    if entry.codec:
        facts.append(("codec", shown(entry.codec)))
    if entry.function:
        facts.append(("function", shown(entry.function)))
    if entry.tags:
        facts.append(("tags", ", ".join(map(shown, entry.tags))))
    return facts
