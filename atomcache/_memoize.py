"""Decorated functions: each call with equal arguments runs once, for all processes.

What it is for: `Cache.memoize` and `Cache.builder` make a `Memoized` of a function, or an
`AsyncMemoized` of a coroutine function.  It is called like the function, has its name,
signature and docstring, is pickled by its name as functions are, and binds to objects as
methods do.  What it adds are the questions that a cache answers: ``key``, ``cached``,
``peek``, ``refresh``, ``forget`` and ``forget_all``.

A call whose arguments are all plain scalars, or small tuples of those, finds its key in a table of
recent calls; the others are bound and written down (see `_call_key`).

Who calls it: `Cache`.  What may go wrong: `OptionError` when a function is decorated that
can't be, `KeyTypeError` when a call can't have a key.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from ._call_key import Calls
from ._errors import OptionError
from ._keys import describe
from ._path import check_name
from ._publish import MISS
from ._recall import shape, small

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Concatenate, Self

    from ._cache import Cache
    from ._call_key import CallKey
    from ._inputs import InputKey
    from ._options import Options

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

_MOST_CALLS = 10_000
"""Calls whose key is remembered, per function."""


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


class _Values:
    """How a function that returns a value is asked."""

    def __init__(self, cache: Cache, function: Callable[..., Any]) -> None:
        self.cache = cache
        self.function = function
        self.ask = cache._asking.value
        self.aask = cache._asking.avalue
        self.how: dict[str, Any] = {}

    def factory(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        return functools.partial(self.function, *args, **kwargs)

    def peek(self, key: object, options: Options) -> Any:
        return self.cache._asking.peek(key, options, MISS)


class _Paths:
    """How a function that makes a file or folder is asked."""

    def __init__(
        self, cache: Cache, function: Callable[..., Any], name: str, target_at: int
    ) -> None:
        self.cache = cache
        self.function = function
        self.ask = cache._asking.file
        self.aask = cache._asking.afile
        self.how = {"name": name}
        self.target_at = target_at

    def taking_target_at(self, position: int) -> _Paths:
        """Return the same for a function that takes its target elsewhere."""
        return _Paths(self.cache, self.function, self.how["name"], position)

    def factory(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        before, after = args[: self.target_at], args[self.target_at :]
        return lambda target: self.function(*before, target, *after, **kwargs)

    def peek(self, key: object, options: Options) -> Any:
        return self.cache._asking.peek_file(key, options, MISS)


class _Decorated(Generic[P, R]):
    """What `Memoized` and `AsyncMemoized` have in common.

    Parameters
    ----------
    kind
        How values, or paths, are asked for.
    calls
        How calls become keys.
    options
        Of each call.
    inputs
        Called with a call's arguments, defaults filled in; returns its input files.
    """

    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    def __init__(
        self,
        kind: _Values | _Paths,
        calls: Calls,
        options: Options,
        inputs: Callable[..., Any] | None,
    ) -> None:
        functools.update_wrapper(self, kind.function)  # type: ignore[arg-type]
        self._take(kind, calls)
        self._options = options
        self._find_inputs = inputs
        for option, asked in (("key", calls.find_key), ("inputs", inputs)):
            if asked is not None:
                calls.check_asked(option, asked)
        self._keys: dict[Any, CallKey] = {}
        self._method: Self | None = None

    def _take(self, kind: _Values | _Paths, calls: Calls) -> None:
        self._kind = kind
        self._calls = calls
        self.__signature__ = calls.signature
        if isinstance(kind, _Paths):
            parameters = calls.signature.parameters.values()
            told = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
            self.__annotations__ = {**told, "return": calls.signature.return_annotation}
            vars(self).pop("__annotate__", None)  # from Python 3.14 on: that of the function

    def key(self, *args: P.args, **kwargs: P.kwargs) -> CallKey | InputKey:
        """Return the key of a call, for the methods of the cache.

        Raises
        ------
        KeyTypeError
            If an argument can't be part of a key.
        InputError
            If an input file is missing or can't be read.
        """
        key = self._key(args, kwargs)
        options = self._options_of(args, kwargs)
        return self._kind.cache._asking.inputs(options).key(key) if options.inputs else key

    def cached(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Tell whether a call has a fresh result; the function is not called.

        Raises
        ------
        KeyTypeError, InputError
            As for `key`.
        StorageError
            If there is a result that can't be read.
        """
        return self._kind.peek(self.key(*args, **kwargs), self._options) is not MISS

    def peek(self, *args: Any, default: Any = None, **kwargs: Any) -> Any:
        """Return the result of a call if there is a fresh one, else `default`.

        A parameter of the function that is itself called ``default`` has to be given by
        position here.

        Raises
        ------
        KeyTypeError, InputError, StorageError
            As for `cached`.
        """
        found = self._kind.peek(self.key(*args, **kwargs), self._options)
        return default if found is MISS else found

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of a call; tell whether there was one.

        With ``inputs``, the result for what they hold now.

        Raises
        ------
        KeyTypeError, InputError
            As for `key`.
        StorageError
            If the result can't be removed.
        """
        return self._kind.cache.remove(self.key(*args, **kwargs), inputs=())

    def forget_all(self) -> int:
        """Remove the results of all calls, of all versions; return how many there were.

        Looks at every entry of the cache.

        Raises
        ------
        StorageError
            If a result can't be removed.
        """
        return self._kind.cache._forget(self._calls.name)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallKey:
        kinds = shape((*args, *kwargs.values()) if kwargs else args)
        if kinds is None or self._calls.find_key is not None:
            return self._calls.key(args, kwargs)
        call = (kinds, args, *kwargs.items()) if kwargs else (kinds, args)
        key = self._keys.get(call)
        if key is None:
            key = self._calls.key(args, kwargs)
            if small(key) and small(args) and small(tuple(kwargs.values())):
                if len(self._keys) >= _MOST_CALLS:
                    self._keys.clear()
                self._keys[call] = key
        return key

    def _options_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Options:
        if self._find_inputs is None:
            return self._options
        bound = self._calls.bind(args, kwargs)
        found = self._find_inputs(*bound.args, **bound.kwargs)
        return self._kind.cache._changed({"inputs": found}, self._options)

    def __set_name__(self, owner: type, name: str) -> None:
        if self.__qualname__.rpartition(".")[0] == owner.__qualname__:
            self._take_target_second()

    def _take_target_second(self) -> None:
        """Take a builder for a method: its target comes after the object or class."""
        if isinstance(self._kind, _Paths) and self._kind.target_at == 0:
            self._take(self._kind.taking_target_at(1), self._calls.without(1))

    def _as_method(self) -> Self:
        """Return this as it is when called through an object; a function may be both."""
        if not isinstance(self._kind, _Paths) or self._kind.target_at == 1:
            return self
        if self._method is None:
            method = object.__new__(type(self))
            method.__dict__.update(self.__dict__)
            method._take_target_second()
            self._method = method
        return self._method

    def __reduce__(self) -> Any:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._calls.name}>"


class Memoized(_Decorated[P, R]):
    """A decorated function; made by `Cache.memoize` and `Cache.builder`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result of a call, from the cache or from the function."""
        result: R = self._ask(args, kwargs, self._kind.how)
        return result

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, store its result in place of the old one, and return it.

        Raises
        ------
        Exception
            As the call itself.
        """
        result: R = self._ask(args, kwargs, {**self._kind.how, "anew": True})
        return result

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], how: dict[str, Any]) -> Any:
        kind = self._kind
        options = self._options_of(args, kwargs)
        key, make = self._key(args, kwargs), kind.factory(args, kwargs)
        if options.inputs:
            return kind.cache._asking.with_inputs(key, make, options, kind.ask, **how)
        return kind.ask(key, make, options, **how)

    # Type checkers don't tell static and class methods from others behind a decorator, so the
    # first parameter has to: a class, an object like the one it is reached through, or neither.
    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[S], Q], R], instance: S | None, owner: type[S], /
    ) -> Memoized[Q, R]: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> Memoized[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], R], instance: S, owner: type | None = None, /
    ) -> Memoized[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> Memoized[P, R]: ...
    def __get__(self, instance: Any, owner: Any = None, /) -> Any:
        """Bind to an object, as functions do."""
        return self if instance is None else _Bound(self._as_method(), instance)


class AsyncMemoized(_Decorated[P, R]):
    """A decorated coroutine function; made by `Cache.memoize` and `Cache.builder`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)
        else:
            # What asyncio.iscoroutinefunction looks for, and what inspect's does.
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
            for name in ("__code__", "__defaults__", "__kwdefaults__"):
                setattr(self, name, getattr(self._kind.function, name))

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result of a call, from the cache or from the coroutine function."""
        result: R = await self._ask(args, kwargs, self._kind.how)
        return result

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the coroutine function now, store its result and return it.

        Raises
        ------
        Exception
            As the call itself.
        """
        result: R = await self._ask(args, kwargs, {**self._kind.how, "anew": True})
        return result

    async def _ask(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], how: dict[str, Any]
    ) -> Any:
        kind = self._kind
        options = self._options_of(args, kwargs)
        key, make = self._key(args, kwargs), kind.factory(args, kwargs)
        if options.inputs:
            return await kind.cache._asking.awith_inputs(key, make, options, kind.aask, **how)
        return await kind.aask(key, make, options, **how)

    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[S], Q], Coroutine[Any, Any, R]],
        instance: S | None,
        owner: type[S],
        /,
    ) -> AsyncMemoized[Q, R]: ...
    @overload
    def __get__(self, instance: None, owner: type, /) -> AsyncMemoized[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]],
        instance: S,
        owner: type | None = None,
        /,
    ) -> AsyncMemoized[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> AsyncMemoized[P, R]: ...
    def __get__(self, instance: Any, owner: Any = None, /) -> Any:
        """Bind to an object, as functions do."""
        return self if instance is None else _Bound(self._as_method(), instance)


class _Bound:
    """A decorated method of one object, with every question about its calls."""

    def __init__(self, decorated: Any, instance: Any) -> None:
        self.__func__ = decorated
        self.__self__ = instance
        self.__wrapped__ = decorated.__wrapped__.__get__(instance)
        self.__doc__ = decorated.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        first, *others = self.__func__.__signature__.parameters.values()
        kept = [first, *others] if first.kind is first.VAR_POSITIONAL else others
        signature: inspect.Signature = self.__func__.__signature__.replace(parameters=kept)
        return signature

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__func__, name)
        if name in ("key", "cached", "peek", "refresh", "forget"):
            return functools.partial(found, self.__self__)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Bound):
            return NotImplemented
        return self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((self.__func__, id(self.__self__)))

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {self.__self__!r}>"


class _ClassBound:
    """A decorated class method: binds to the class, however it is reached."""

    def __init__(self, decorated: Any) -> None:
        functools.update_wrapper(self, decorated, updated=())  # type: ignore[arg-type]
        self.__func__ = decorated
        self.__wrapped__ = decorated.__wrapped__

    def __get__(self, instance: Any, owner: Any = None) -> _Bound:
        return _Bound(self.__func__, type(instance) if owner is None else owner)


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
        return _make(_Values(cache, function), calls, chosen, find_inputs)

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
        kind = _Paths(cache, function, check_name(name or function.__name__), target_at)
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
    return _ClassBound(inner)


def _make(
    kind: _Values | _Paths,
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
    if inspect.ismethod(function) or isinstance(function, _Bound):
        raise OptionError(
            f"{function.__qualname__} is the method of one object, which would not be part of "
            "its key. Decorate the function in the class"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(
            f"{function.__qualname__} is a generator function: what it returns can be used up "
            "once. Decorate one that returns a list"
        )
