"""What tells one shared fixture from another, alike in all workers of a test run.

What it is for: workers find each other's fixtures under an identity.  A fixture is its code,
and the place where pytest found it, and is built for each parameter that it depends on.

Who calls it: the shared fixtures, each time one is asked for.  What may go wrong: nothing.
"""

from __future__ import annotations

import pytest

from ._errors import KeyTypeError
from ._keys import describe, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
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
    item = request._pyfuncitem
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return {}
    given = callspec.params
    found: dict[str, tuple[str, object]] = {}
    seen: set[str] = set()
    ahead = [(request.fixturename, (definition,))]
    while ahead:
        name, definitions = ahead.pop()
        if name in given:
            index = callspec.indices[name]
            found[name] = _parameter(given[name], index, definitions, item)
        for each in definitions:
            for argument in {*each.argnames} - seen - {"request"}:
                seen.add(argument)
                ahead.append((argument, tuple(request._arg2fixturedefs.get(argument) or ())))
    return dict(sorted(found.items()))


def _parameter(
    value: object, index: int, definitions: Sequence[Any], item: Any
) -> tuple[str, object]:
    """Return a parameter as text, and what stands for it in a key."""
    try:
        digest(b"f", value)
        return describe(value, 40), ("value", value)
    except KeyTypeError:
        text = f"{type(value).__name__} {index}"
    for definition in definitions:
        params = definition.params or ()
        if index < len(params) and _is_value(value, params[index]):
            return text, ("parameter", index)
    return text, ("of test", item.nodeid.partition("[")[0], index)


def _is_value(value: object, parameter: Any) -> bool:
    if isinstance(parameter, type(pytest.param(None))):
        parameter = parameter.values[0]
    return value is parameter
