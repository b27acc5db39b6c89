"""Decorated functions: each call with equal arguments runs once, for all processes.

What it is for: `Cache.memoize` and `Cache.builder` make a `Memoized` of a function, or an
`AsyncMemoized` of a coroutine function (see `_decorate`).  It is called like the function, has
its name, signature and docstring, is pickled by its name as functions are, and binds to objects
as methods do.  What it adds are the questions that a cache answers: ``key``, ``cached``,
``peek``, ``refresh``, ``forget`` and ``forget_all``.

A call whose arguments are all plain scalars, or small tuples of those, finds its key in a table of
recent calls; the others are bound and written down (see `_call_key`).

Who calls it: users.  What may go wrong: `KeyTypeError` when a call can't have a key.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from ._bound import Bound
from ._publish import MISS
from ._recall import shape, small

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Concatenate, Self

    from ._cache import Cache
    from ._call_key import CallKey, Calls
    from ._inputs import InputKey
    from ._options import Options

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

_MOST_CALLS = 10_000
"""Calls whose key is remembered, per function."""


class Values:
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


class Paths:
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

    def taking_target_at(self, position: int) -> Paths:
        """Return the same for a function that takes its target elsewhere."""
        return Paths(self.cache, self.function, self.how["name"], position)

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
        kind: Values | Paths,
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

    def _take(self, kind: Values | Paths, calls: Calls) -> None:
        self._kind = kind
        self._calls = calls
        self.__signature__ = calls.signature
        if isinstance(kind, Paths):
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
        if isinstance(self._kind, Paths) and self._kind.target_at == 0:
            self._take(self._kind.taking_target_at(1), self._calls.without(1))

    def _as_method(self) -> Self:
        """Return this as it is when called through an object; a function may be both."""
        if not isinstance(self._kind, Paths) or self._kind.target_at == 1:
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
        return self if instance is None else Bound(self._as_method(), instance)


class AsyncMemoized(_Decorated[P, R]):
    """A decorated coroutine function; made by `Cache.memoize` and `Cache.builder`.

    Only calls and `refresh` leave what takes long to threads: `key`, `cached`, `peek` and `forget`
    are no coroutines and hash inputs in the calling thread, so with large inputs call them by
    ``asyncio.to_thread``.
    """

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
        return self if instance is None else Bound(self._as_method(), instance)
