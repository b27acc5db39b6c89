"""What `Cache.memoize` and `Cache.builder` do to a function.

What it is for: a function is looked at (what it is, whether it is a method, what its parameters
are), and made a `Memoized` or an `AsyncMemoized`.  `Memoizer` and `PathMemoizer` say to type
checkers what comes of it.

Who calls it: `Cache`.  What may go wrong: `OptionError` when a function is decorated that can't
be, or with options that are wrong.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from ._bound import Bound, ClassBound
from ._call_key import Calls
from ._errors import OptionError
from ._keys import describe
from ._memoize import AsyncMemoized, Memoized, Paths, Values
from ._path import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Concatenate

    from ._cache import Cache
    from ._options import Options

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Memoizer(Protocol):
    """What ``cache.memoize(...)`` returns: a decorator."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncMemoized[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Memoized[P, R]: ...


class PathMemoizer(Protocol):
    """What ``cache.builder(...)`` returns: a decorator."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Path, P], Coroutine[Any, Any, object]], /
    ) -> AsyncMemoized[P, Path]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Path, P], object], /
    ) -> Memoized[P, Path]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[S, Path, P], Coroutine[Any, Any, object]], /
    ) -> AsyncMemoized[Concatenate[S, P], Path]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, Path, P], object], /
    ) -> Memoized[Concatenate[S, P], Path]: ...


def memoizer(
    cache: Cache, key: Any, ignore: Any, version: Any, options: dict[str, Any]
) -> Callable[[Any], Any]:
    """Return the decorator that ``cache.memoize(...)`` is."""
    find_inputs, chosen = _options(cache, options)

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return _rewrap(function, decorate)
        _check_function(function)
        calls = Calls(function, key, ignore, version)
        return _make(Values(cache, function), calls, chosen, find_inputs)

    return decorate


def builder(
    cache: Cache, name: Any, key: Any, ignore: Any, version: Any, options: dict[str, Any]
) -> Callable[[Any], Any]:
    """Return the decorator that ``cache.builder(...)`` is."""
    find_inputs, chosen = _options(cache, options)
    if name is not None:
        check_name(name)

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return _rewrap(function, decorate)
        _check_function(function)
        calls = Calls(function, key, ignore, version)
        # Under another decorator, or where the class is not made by a class statement, nobody
        # tells a function that it is a method.  What its first parameter is called does.
        target_at = 1 if next(iter(calls.signature.parameters), None) in ("self", "cls") else 0
        kind = Paths(cache, function, check_name(name or function.__name__), target_at)
        return _make(kind, calls.without(target_at), chosen, find_inputs)

    return decorate


def _options(cache: Cache, options: dict[str, Any]) -> tuple[Callable[..., Any] | None, Options]:
    """Return what finds the inputs of a call, and the other options."""
    find_inputs = None
    if callable(options.get("inputs")):
        find_inputs = options["inputs"]
        options = {name: value for name, value in options.items() if name != "inputs"}
    changes: Any = options
    return find_inputs, cache._changed(changes)


def _rewrap(function: Any, decorate: Callable[[Any], Any]) -> Any:
    """Decorate what is inside a static or class method."""
    inner = decorate(function.__func__)
    if isinstance(function, staticmethod):
        return staticmethod(inner)
    inner._take_target_second()
    return ClassBound(inner)


def _make(
    kind: Values | Paths,
    calls: Calls,
    options: Options,
    find_inputs: Callable[..., Any] | None,
) -> Any:
    # Whatever it wraps: a wrapper may run a coroutine to its end, or make one of a function.
    is_async = inspect.iscoroutinefunction(kind.function)
    decorated: Any = AsyncMemoized if is_async else Memoized
    return decorated(kind, calls, options, find_inputs)


def _check_function(function: Any) -> None:
    if not callable(function) or isinstance(function, type):
        raise OptionError(f"only functions can be decorated, not {describe(function)}")
    if not hasattr(function, "__qualname__") or not getattr(function, "__module__", None):
        raise OptionError(
            f"{describe(function)} has no name of its own, so its calls can't have keys. "
            "Decorate a function that calls it"
        )
    if "<lambda>" in function.__qualname__.rpartition(".")[2]:
        raise OptionError(
            "a lambda has no name of its own, so two of them would share their results. "
            "Decorate a function made with def"
        )
    if inspect.ismethod(function) or isinstance(function, Bound):
        raise OptionError(
            f"{function.__qualname__} is the method of one object, which would not be part of "
            "its key. Decorate the function in the class"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(
            f"{function.__qualname__} is a generator function: what it returns can be used up "
            "once. Decorate one that returns a list"
        )
