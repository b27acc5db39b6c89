"""What values and paths have in common, as the protocol sees them.

What it is for: an entry knows where it stands, what its caller wants, and how to look for
itself.  How it is built and published is its kind's own business.

Who calls it: `ValueEntry` and `PathEntry` derive from it.  What may go wrong: `OSError` as the
system gives it.
"""

from __future__ import annotations

from ._errors import OptionError
from ._freshness import Want
from ._header import NEVER
from ._keys import describe, function_of
from ._publish import identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._build import Build
    from ._layout import Layout
    from ._options import Options
    from ._publish import Identity


def function_tag(function: str) -> str:
    """Return a tag, which no user can give, of all entries of a decorated function."""
    return f"\0{function}"


class Entry:
    """One entry of a cache.

    Parameters
    ----------
    digest, key
        Of the entry; the key is kept for messages and listings.
    anew
        Whether the caller wants a new one though there may be a fresh one.

    Attributes
    ----------
    damaged
        Called if what is there turns out to be damaged.
    asynchronous
        The method of `Cache` that takes coroutine functions.
    size, size_before
        Bytes that it takes, once it is published, and those of what it replaces, if anything.
    unusable, replaces, replaced_blob
        For `Remote`: the version in the bucket that turned out to be damaged, the one that is to
        be replaced, and the object that holds that one's content.
    shared, looked, stands
        For `Remote` too: when that was made which is here as in the bucket, what was known of
        looks for removals when it began to be got, and what tells what we published from what
        comes after it.
    """

    kind = ""
    asynchronous = "aget_or_create"

    def __init__(
        self, layout: Layout, digest: bytes, key: object, options: Options, *, anew: bool
    ) -> None:
        self.layout = layout
        self.door = layout.door
        self.digest = digest
        self.key = key
        self.options = options
        self.anew = anew
        self.path = layout.entry(digest)
        self.damaged: Callable[[], None] | None = None
        self.size = 0
        self.size_before: int | None = None
        self.unusable = ""
        self.replaces = ""
        self.replaced_blob = ""
        self.shared: float | None = None
        self.looked: tuple[int, int] | None = None
        self.stands: Identity | None = None

    def what(self) -> str:
        """Say which entry this is, for messages and records."""
        return f"the {self.kind} of key {describe(self.key)}"

    def finished(self, made: Any) -> Any:
        """Return what a factory returned, unless it is a coroutine, which nobody here awaits."""
        if hasattr(type(made), "__await__") and hasattr(made, "close"):
            made.close()
            raise OptionError(
                f"the factory of {self.what()} returned a coroutine, which only an event loop can "
                f"run. Await cache.{self.asynchronous} instead; above a decorator that returns "
                "coroutines, put one that is a coroutine function"
            )
        return made

    def find(self, want: Want) -> Any:
        """Return the value or path if there is one that is good enough, else `MISS`."""
        raise NotImplementedError

    def look(self, started: float, largest: float = NEVER) -> Any:
        """Return what is fresh for a call that began at `started`, else `MISS`.

        Who wants it anew takes nothing that somebody began to make before the call.
        """
        since = started if self.anew else 0.0
        return self.find(Want(started, since=since, largest=largest, damaged=self.damaged))

    def look_for_old(self, tolerate: float) -> Any:
        """Return what ended up to `tolerate` seconds ago, or `MISS`."""
        return self.find(Want(tolerate=tolerate, quiet=True))

    def set_aside(self, scratch: str) -> None:
        """Keep what was built beside what is about to come down instead."""

    def take_back(self, scratch: str) -> None:
        """Have what was built again, because nothing came down."""

    def tags_of(self, build: Build | None) -> set[str]:
        """Return the labels of what is built."""
        tags = {*self.options.tags, *(() if build is None else build.tags)}
        function = function_of(self.key)
        return {*tags, function_tag(function)} if function else tags

    def identity(self) -> Identity | None:
        """Return what tells the present entry from any later one; `None` if none is there."""
        found = identify(self.door, self.path)
        self.size_before = None if found is None else found[2]
        return found
