"""``atomcache cat``: print what is stored, after its checksums, if any, were found right.

Nothing that is read can run code: pickles are refused, and so is what a codec of a program's
own has written.  Large values are read twice, in pieces, rather than into memory.

Who calls it: the dispatcher.  What may go wrong: `Misuse` for an unknown key; `DamagedError`;
`AtomcacheError` for a folder, and for what only its own program can read.
"""

from __future__ import annotations

import os
import stat

from .._errors import AtomcacheError
from ._arguments import Misuse, add_cache, add_json
from ._find import DamagedError, add_key, damaged, find, inspect, look, status, trouble
from ._tables import quoted, say_json, write_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from .._cache import Cache
    from .._header import Header
    from .._listing import EntryInfo

_PIECE = 1 << 20
_UNKNOWN = "there is no such entry, or several"
_PLAIN = ("bytes", "text", "json")
"""Codecs whose stored bytes are what is to be printed."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Print what is stored."}

Bytes, text and files are printed as they are, and of a recorded command its standard output, or
with --stderr the other stream; --json has both, and its exit status. Other data is printed as
JSON if JSON can say it without loss, and else as Python writes it. An entry that has expired is
printed too.

Only values carry checksums, which are verified before anything is printed. A file that was built
must be there with the size that it had.

Pickles are not read, because reading one can run code, and neither is what a codec of a
program's own has written; --raw prints their bytes."""
    add_key(parser)
    parser.add_argument(
        "--stderr",
        action="store_true",
        help="print what a recorded command wrote to its standard error stream",
    )
    parser.add_argument(
        "--raw", action="store_true", help="print the stored bytes, whatever they mean"
    )
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status("it is damaged, a folder, or can't be said", _UNKNOWN)}
examples:
  atomcache cat index > index.html
  atomcache cat rates | jq .EUR
  atomcache cat 'run -- git log' | less
  atomcache cat --json 'run -- make' | jq .status
"""


def run(options: argparse.Namespace) -> int:
    """Print what is stored."""
    cache = look(options)
    place = find(cache, options.key, options.kind)
    entry = inspect(cache, place)
    if options.stderr and (entry.kind == "path" or options.raw or options.json):
        raise Misuse("--stderr goes with recorded commands only, and without --raw and --json")
    if entry.kind == "path":
        return _print_file(cache, place, entry, options)
    with trouble(cache):
        try:
            fd = cache._door.open_unnoticed(place)
        except (FileNotFoundError, IsADirectoryError):
            raise damaged(place, "it was replaced just now") from None
    try:
        return _print_value(cache, place, entry, fd, options)
    finally:
        os.close(fd)


def _print_file(cache: Cache, place: str, entry: EntryInfo, options: argparse.Namespace) -> int:
    with trouble(cache):
        try:
            found = os.lstat(entry.path)
            if stat.S_ISDIR(found.st_mode):
                raise AtomcacheError(
                    f"the entry of key {quoted(entry.key)} is a folder: {str(entry.path)!r}"
                )
            if not stat.S_ISREG(found.st_mode):
                raise damaged(place, "what was built is no file")
            if found.st_size != entry.size:
                raise damaged(
                    place, f"it has {found.st_size} bytes and had {entry.size} when it was built"
                )
            fd = os.open(entry.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise damaged(place, "what was built is gone") from None
    try:
        if options.json:
            _say_bytes(entry, b"".join(_pieces(cache, fd, 0, entry.size)))
        else:
            write_bytes(_pieces(cache, fd, 0, entry.size))
    finally:
        os.close(fd)
    return 0


def _print_value(
    cache: Cache, place: str, entry: EntryInfo, fd: int, options: argparse.Namespace
) -> int:
    from .._header import Damaged, payload_start
    from .._verify import check_value

    try:
        with trouble(cache):
            header = check_value(cache._door, fd, entry.id, {})
    except (Damaged, ValueError) as why:
        raise damaged(place, why) from None
    codec = header.codec.rstrip(b"\0").decode("ascii", "replace")
    begin, size = payload_start(header), header.payload_size
    pieces = _pieces(cache, fd, begin, size)
    recorded = None
    if codec == "bytes" and not options.raw:
        recorded = _recorded(cache, fd, begin, size)
    if recorded is not None:
        _print_recorded(entry, recorded, options)
        return 0
    if options.stderr:
        raise Misuse(f"the entry of key {quoted(entry.key)} is no recorded command")
    if options.raw or (_is_plain(codec, header) and not options.json):
        write_bytes(pieces)
        if codec == "json" and not options.raw:
            write_bytes([b"\n"])
        return 0
    if codec == "bytes":
        _say_bytes(entry, b"".join(pieces))
        return 0
    value = _decode(cache, place, entry, codec, fd, header)
    if options.json:
        _say_value(entry, value)
    else:
        text = _json(value)
        text = repr(value) if text is None else text
        write_bytes([text.encode("utf-8", "backslashreplace"), b"\n"])
    return 0


def _recorded(cache: Cache, fd: int, begin: int, size: int) -> tuple[bytes, bytes, int] | None:
    """Return both streams and the status of a recorded command; `None` for any other bytes."""
    from ._recording import MAGIC, split

    if b"".join(_pieces(cache, fd, begin, min(size, len(MAGIC)))) != MAGIC:
        return None
    try:
        return split(b"".join(_pieces(cache, fd, begin, size)))
    except ValueError:
        return None


def _print_recorded(
    entry: EntryInfo, recorded: tuple[bytes, bytes, int], options: argparse.Namespace
) -> None:
    out, err, status = recorded
    if options.json:
        streams = {**_stream("stdout", out), **_stream("stderr", err)}
        say_json({"id": entry.id, "key": entry.key, **streams, "status": status})
    else:
        write_bytes([err if options.stderr else out])


def _stream(name: str, content: bytes) -> dict[str, str]:
    """Return what JSON says of a stream: text, or digits under another name where it is none."""
    from base64 import b64encode

    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(content).decode()}


def _is_plain(codec: str, header: Header) -> bool:
    from .._data import _BYTES, _TEXT

    return codec in _PLAIN or (codec == "data" and header.form in (_BYTES, _TEXT))


def _decode(
    cache: Cache, place: str, entry: EntryInfo, codec: str, fd: int, header: Header
) -> Any:
    """Return a value by a codec that can't execute anything."""
    from .._header import payload_start, read_rows

    if codec == "pickle":
        raise AtomcacheError(
            f"the value of key {quoted(entry.key)} is a pickle, and reading one can run code. "
            "Read it in the program that knows it, with codec='pickle', or use --raw"
        )
    if codec not in ("data", *_PLAIN):
        raise AtomcacheError(
            f"the value of key {quoted(entry.key)} was stored with the codec {quoted(codec)}, "
            "which only the program that stored it has; --raw prints its bytes"
        )
    with trouble(cache):
        view = cache._door.map(fd, os.fstat(fd).st_size)
    start = payload_start(header)
    payload = bytes(view[start : start + header.payload_size])
    buffers = [view[at : at + size] for at, size, _ in read_rows(view, header)]
    try:
        return cache._codecs.find(codec).unpack(header.form, payload, buffers)
    except Exception as error:  # whatever a codec says of bytes that it can't read
        raise AtomcacheError(
            f"the value of key {quoted(entry.key)} can't be read here: {error}. Classes that a "
            f"program allows are known only there; --raw prints the bytes of {place}"
        ) from None


def _json(value: Any) -> str | None:
    """Return JSON that says a value without loss, if there is any."""
    import json

    from .._codecs import _check_json

    try:
        _check_json(value)
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (AtomcacheError, RecursionError, ValueError):
        return None


def _say_value(entry: EntryInfo, value: Any) -> None:
    if isinstance(value, bytes):
        _say_bytes(entry, value)
    elif _json(value) is None:
        say_json({"id": entry.id, "key": entry.key, "repr": repr(value)})
    else:
        say_json({"id": entry.id, "key": entry.key, "value": value})


def _say_bytes(entry: EntryInfo, content: bytes) -> None:
    from base64 import b64encode

    say_json({"id": entry.id, "key": entry.key, "base64": b64encode(content).decode()})


def _pieces(cache: Cache, fd: int, begin: int, size: int) -> Iterator[bytes]:
    os.lseek(fd, begin, os.SEEK_SET)
    while size > 0:
        with trouble(cache):
            piece = os.read(fd, min(size, _PIECE))
        if not piece:
            raise DamagedError("the entry became shorter while it was read")
        size -= len(piece)
        yield piece
