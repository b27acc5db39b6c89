"""The build that a factory runs in, and what the factory can say to it.

What it is for: `current_build` gives a factory the build that it is part of, where it can
set an age limit, add tags and inputs, and report progress.  The protocol keeps the
builds that some code runs in as well, to find factories that ask for their own result.

Who calls it: factories, and the protocol.  What may go wrong: `NoBuildError` outside of a
factory; `OptionError` for what is no age, tag, or number.
"""

from __future__ import annotations

import math
import os
from contextvars import ContextVar

from ._errors import NoBuildError, OptionError
from ._keys import describe
from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from typing import Any

    from ._claim import Claim
    from ._door import Door

_PROGRESS_PAUSE = 0.1
"""Seconds between two reports at least; later ones come at a fiftieth of the time so far, so
that a build of any length writes some hundred lines."""


class Build:
    """A build that is under way; a factory gets its own by `current_build`."""

    # Without these, `current_build().maxage = 5` would be taken and mean nothing.
    __slots__ = (
        "__weakref__",
        "_began",
        "_claim",
        "_door",
        "_given",
        "_max_age",
        "_next_report",
        "_path",
        "_reported_end",
        "behind",
        "ended",
        "fetched",
        "has_max_age",
        "inputs",
        "lost_claim",
        "over",
        "tagged",
        "tags",
        "took",
        "waits",
    )

    def __init__(
        self, door: Door, path: str, claim: Claim | None, tags: tuple[str, ...] = ()
    ) -> None:
        self._door = door
        self._given = tags
        self._claim = claim
        self._path = path
        self._began = door.monotonic()
        self.over = False
        self.ended = 0.0
        self.took: float | None = None
        self.fetched = False
        self.lost_claim = False
        self.behind: Callable[[bool], None] | None = None
        self.waits: list[str] = []
        self._next_report = 0.0
        self._reported_end: float | None = None
        self._max_age: float | None = None
        self.has_max_age = False
        self.tags: list[str] = []
        self.tagged: Callable[[list[str]], None] | None = None
        self.inputs: dict[str, bytes] = {}

    @property
    def max_age(self) -> float | None:
        """Seconds after which what is built is to be built anew; a timedelta can be set too.

        It replaces the option of the same name for this entry, whoever asks.

        Raises
        ------
        OptionError
            If it is set to anything but a length of time or `None`.
        """
        return self._max_age

    @max_age.setter
    def max_age(self, value: Any) -> None:
        from ._options import seconds

        self._max_age = seconds("max_age", value)
        self.has_max_age = True

    def tag(self, *tags: str) -> None:
        """Add labels to the entry, as the option `tags` does.

        Raises
        ------
        OptionError
            If one is not a non-empty string.
        """
        for tag in tags:
            if not isinstance(tag, str) or not tag:
                raise OptionError(f"a tag must be a non-empty string, not {describe(tag)}")
        new = [tag for tag in tags if tag not in self.tags]
        self.tags += new
        self._tell([("tag", tag) for tag in new])
        if self.tagged is not None:
            self.tagged(new)

    def input(self, path: str | os.PathLike[str]) -> None:
        """Name a file that this build has read, or is about to.

        The entry holds for as long as the file's content stays the same; each hit checks that,
        at the cost of one stat if the file has not been touched.

        Parameters
        ----------
        path
            A file, or a folder with all that is in it.

        Raises
        ------
        MissingInputError, InputError
            If it is not there, can't be read, or is a folder around the cache's entries.
        OptionError
            If it is no path.
        """
        from ._input_files import absolute, refuse_around
        from ._inputs import hash_input
        from ._options import paths

        name = absolute(paths("input", [path])[0])
        refuse_around(name, os.path.dirname(os.path.dirname(self._path)))
        self.inputs[name] = hash_input(name)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell those who wait how far the build is.

        Parameters
        ----------
        done, total
            In any unit; `total` may be unknown.
        note
            A line of text for people, such as the name of the file that is being read.

        Raises
        ------
        OptionError
            If these are not numbers and text.
        """
        done, total = _number(done), None if total is None else _number(total)
        if not isinstance(note, str):
            raise OptionError(f"the note of a progress must be text, not {describe(note)}")
        now = self._door.monotonic()
        is_new_end = done == total and self._reported_end != done
        if self._claim is None or (now < self._next_report and not is_new_end):
            return
        self._reported_end = done if done == total else None
        self._next_report = now + max(_PROGRESS_PAUSE, (now - self._began) / 50)
        told = f"{done!r} {'' if total is None else repr(total)} {note[:200]}"
        self._tell([("progress", told)])

    def _tell(self, lines: list[tuple[str, str]]) -> None:
        """Write for others to see what the factory says; that it can't be is not its fault."""
        if self._claim is None or not lines:
            return
        try:
            self._claim.tell(lines)
        except OSError as error:
            logger().warning("others can't see what a factory says: %s", error)

    # -- for the protocol ------------------------------------------------------------

    @property
    def path(self) -> str:
        """Path of the claim, also where there is none because the cache can't be written."""
        return self._path

    @property
    def claim(self) -> Claim | None:
        """The claim under which this is built."""
        return self._claim

    def revoked(self) -> bool:
        """Tell whether the entry was removed since the build began."""
        if self.lost_claim or self._claim is None:
            return self.lost_claim
        return self._claim.revoked({*self._given, *self.tags})

    def age_limit(self, default: float | None) -> float | None:
        """Return after how many seconds what is built expires."""
        return self._max_age if self.has_max_age else default


def _number(given: Any) -> float:
    """Return any kind of number, such as numpy's, as a float."""
    known = isinstance(given, int | float) or hasattr(given, "__float__")
    if not known or isinstance(given, bool):
        raise OptionError(f"progress takes numbers, not {describe(given)}")
    try:
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf
    except (TypeError, ValueError) as error:
        raise OptionError(f"progress takes numbers, not {describe(given)}") from error


running: ContextVar[tuple[Build, ...]] = ContextVar("atomcache_building", default=())
"""The builds that this code runs in, outermost first."""


def enter(build: Build) -> Token[tuple[Build, ...]]:
    """Have what follows run in a build; an interrupt may have left others that are over."""
    return running.set((*(each for each in running.get() if not each.over), build))


def current_build() -> Build:
    """Return the build that the calling factory is part of.

    Returns
    -------
    Build
        With ``max_age``, ``tag``, ``input`` and ``progress``.

    Raises
    ------
    NoBuildError
        If no factory is running here.  A thread that a factory starts does not know of the
        build; hand it the object.

    Examples
    --------
    >>> import tempfile
    >>> from atomcache import Cache, current_build
    >>> cache = Cache(tempfile.mkdtemp())
    >>> def fetch():
    ...     current_build().max_age = 60
    ...     current_build().tag("rates")
    ...     return {"EUR": 1.08}
    >>> cache.get_or_create("rates", fetch)
    {'EUR': 1.08}
    >>> [entry.tags for entry in cache.entries()]
    [('rates',)]
    """
    builds = running.get()
    if not builds:
        raise NoBuildError(
            "no factory is running here, so there is no current build. Call this from a factory "
            "itself, and hand the object to threads that it starts"
        )
    return builds[-1]
