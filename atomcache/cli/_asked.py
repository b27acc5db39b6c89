"""What somebody typed, understood: lengths of time, sizes, and which cache is meant.

Who calls it: every subcommand.  What may go wrong: `Misuse`, which becomes one line and exit
status 2.
"""

from __future__ import annotations

import os
import sys

from .._cache import Cache
from .._errors import AtomcacheError, InputError, OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MISUSE = 2
"""Exit status for a mistake on the command line, as shells and argparse have it."""


_TYPED = {
    "pass on_store_error='bypass' to build without storing": (
        "give --on-store-error bypass to run it without storing"
    ),
    "Raise timeout=": "Raise --timeout",
    "leave it out of the inputs": "leave it out of --input",
    "Leave it out of the inputs": "Leave it out of --input",
}
"""What the library advises, and what somebody at a command line can do instead."""


class Misuse(AtomcacheError):
    """What somebody typed can't be meant."""


def line_of(error: Exception) -> str:
    """Return what an error says, in one line, with advice for who typed."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        place = error.filename
        if isinstance(place, str) and place not in text and not isinstance(error, InputError):
            text += f", in {place}" if "." not in text else f" ({place})"
    for written, typed in _TYPED.items():
        text = text.replace(written, typed)
    return " ".join(text.split())


def open_cache(options: Any, **parameters: Any) -> Cache:
    """Return the cache that was asked for, by its option or by the environment."""
    if options.cache == "":  # such as of a variable that is not set; the default is not meant
        raise Misuse("--cache needs the path of a folder, which is not empty")
    directory = options.cache or os.environ.get("ATOMCACHE_DIR")
    if not directory:
        return Cache.for_app("atomcache", **parameters)
    try:
        return Cache(directory, **parameters)
    except OptionError as error:
        raise Misuse(str(error)) from None


def duration(text: str) -> float:
    """Return how many seconds a text such as ``10m`` says; a bare number is seconds."""
    from .._options import seconds

    try:
        length = seconds("it", float(text) if _is_number(text) else text)
    except OptionError:
        length = None
    if length is None:
        raise Misuse(f"{text!r} is no length of time; write 90, 500ms, 10m, 1h30m or 7d")
    return length


def size(text: str) -> int:
    """Return how many bytes a text such as ``10GB`` says; a bare number is bytes."""
    from .._options import size

    try:
        number = size("it", int(text) if text.isdecimal() else text)
    except ValueError:  # of more digits than int() reads, too
        number = None
    if number is None:
        raise Misuse(f"{text!r} is no size; write 500000, 64MB or 10GB")
    return number


def count(text: str) -> int:
    """Return a whole number that is not negative."""
    try:
        if text.isdecimal():
            return min(int(text), sys.maxsize)  # more is not countable for Python either
    except ValueError:  # of more digits than int() reads
        pass
    raise Misuse(f"{text!r} is no whole number")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
