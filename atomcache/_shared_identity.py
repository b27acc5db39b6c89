"""What tells one shared fixture from another, alike in all workers of a test run.

What it is for: workers find each other's fixtures under an identity.  A fixture is its code,
and the place where pytest found it, and is built for each parameter that it depends on.

Who calls it: the shared fixtures, each time one is asked for.  What may go wrong: nothing.
"""

from __future__ import annotations

import sys
from types import FunctionType

import pytest

from ._errors import KeyTypeError
from ._keys import describe, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def identify(request: Any, function: Any) -> tuple[str, str]:
    """Return a fixture's name, and what it has in common with itself in other workers only.

    A fixture is its code, and the place where pytest found it; a class may inherit it.  It is
    built for each parameter of its own, and of the fixtures that it uses.
    """
    code = function.__code__
    definition = request._fixturedef
    parameters = _parameters(request, definition)
    identity = (
        code.co_filename,
        code.co_firstlineno,
        function.__qualname__,
        request.fixturename,
        definition.baseid,
        {argument: key for argument, (_, key) in parameters.items()},
    )
    shown = ", ".join(text for text, _ in parameters.values())
    name = f"{request.fixturename}[{shown}]" if shown else request.fixturename
    return name, digest(b"f", identity).hex()


def _parameters(request: Any, definition: Any) -> dict[str, tuple[str, object]]:
    """Return the parameters that a fixture depends on, as text and as part of a key."""
    callspec = getattr(request._pyfuncitem, "callspec", None)
    if callspec is None:
        return {}
    found: dict[str, tuple[str, object]] = {}
    seen: set[str] = set()
    ahead = [(request.fixturename, (definition,))]
    while ahead:
        name, definitions = ahead.pop()
        if name in callspec.params:
            found[name] = _parameter(callspec.params[name], name, request)
        for each in definitions:
            for argument in {*each.argnames} - seen - {"request"}:
                seen.add(argument)
                ahead.append((argument, tuple(request._arg2fixturedefs.get(argument) or ())))
    return dict(sorted(found.items()))


def _parameter(value: object, name: str, request: Any) -> tuple[str, object]:
    """Return a parameter as text, and what stands for it in a key."""
    try:
        digest(b"f", value)
        return describe(value, 40), ("value", value)
    except KeyTypeError:
        pass
    where = _importable_name(value)
    if where is not None:
        return where[1], ("name", *where)
    item = request._pyfuncitem
    here = (item.nodeid, name, item.callspec.indices[name])
    first = _firsts(request.session).get(id(value), here)
    return f"{type(value).__name__} {first[2]}", ("first of", *first)


def _importable_name(value: object) -> tuple[str, str] | None:
    """Return module and name of a class or function, if it is what is found there."""
    if not isinstance(value, type | FunctionType):
        return None
    found: object = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return (value.__module__, value.__qualname__) if found is value else None


_FIRSTS = pytest.StashKey[dict[int, tuple[str, str, int]]]()


def _firsts(session: Any) -> dict[int, tuple[str, str, int]]:
    """Return of each object that is a parameter the first test that gets it, as what, as which.

    All workers collect the same tests in the same order, so that this is one name for one
    object.  The id that pytest shows is none: it counts within one list of parameters, and
    what two tests both call ``server0`` are two things.
    """
    if _FIRSTS in session.stash:
        known: dict[int, tuple[str, str, int]] = session.stash[_FIRSTS]
        return known
    found: dict[int, tuple[str, str, int]] = {}
    for item in session.items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None:
            for name, value in callspec.params.items():
                found.setdefault(id(value), (item.nodeid, name, callspec.indices[name]))
    session.stash[_FIRSTS] = found
    return found
