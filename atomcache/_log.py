"""The library's one logger, ``logging.getLogger("atomcache")``.

Silent unless the program listens.  It is fetched where something is to be said, because
importing `logging` would be a third of the cost of importing this library.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


class _Mute:
    def warning(self, message: str, *args: object, exc_info: bool = False) -> None:
        """Say nothing."""

    info = error = warning


def logger() -> Logger | _Mute:
    """Return the logger, made quiet on first use where nobody configured it."""
    try:
        import logging
    except OSError:  # no descriptor left even to read a module; what is said gets lost
        return _Mute()

    log = logging.getLogger("atomcache")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log
