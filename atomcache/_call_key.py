"""How a call of a decorated function becomes a key.

What it is for: arguments are bound to the signature first, so that ``f(1, b=2)``,
``f(1, 2)`` and defaults are one key; each is written down canonically by itself, so that
one that is no plain data can be named.  The key holds the function's name and version
and the arguments, and shows itself as the call.

Who calls it: decorated functions, once per call.  What may go wrong: `KeyTypeError` for
an argument that can't be part of a key; `TypeError`, as from the function itself, for
arguments that it does not take.
"""

from __future__ import annotations

import inspect
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from ._errors import KeyTypeError, OptionError
from ._keys import NotPlain, describe, name_of, shortened, written
from ._recall import BY_THEMSELVES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class CallKey:
    """The key of one call; equal calls have equal keys, in every process.

    It holds on to none of the arguments, only to what is written of them, or its hash.

    Attributes
    ----------
    function
        Module and qualified name of the decorated function.
    """

    __slots__ = ("_call", "_content", "_hash", "function")

    def __init__(self, function: str, content: tuple[Any, ...], call: str) -> None:
        self.function = function
        self._content = content
        self._call = call
        self._hash = hash((function, content))

    def __atomcache_key__(self) -> object:
        """Return what identifies the entry."""
        return self.function, self._content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallKey):
            return NotImplemented
        return self.function == other.function and self._content == other._content

    def __hash__(self) -> int:
        return self._hash

    def __sizeof__(self) -> int:
        parts = self._content[-1]
        encoded = parts if isinstance(parts, bytes) else b"".join(part for _, part in parts)
        return object.__sizeof__(self) + len(encoded) + getsizeof(self._call)

    def __reduce__(self) -> Any:
        return CallKey, (self.function, self._content, self._call)

    def __repr__(self) -> str:
        return self._call


BY_THEMSELVES.add(CallKey)
CallKey.__module__ = "atomcache"  # part of the key: the class may move, its entries stay


class Calls:
    """The calls of one function.

    Parameters
    ----------
    function
        The undecorated function.
    find_key
        Called with a call's arguments, defaults filled in; what it returns identifies the call.
    ignore
        Names of parameters that don't.
    version
        Stands in every key; ``"source"`` for a hash of the function's source.

    Raises
    ------
    OptionError
        If one of these is of the wrong type, or names no parameter.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        find_key: Callable[..., object] | None,
        ignore: Sequence[str],
        version: str | int | None,
    ) -> None:
        self.name = name_of(function)
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"the parameters of {self.name} can't be read: {error}. Decorate a function "
                "that calls it"
            ) from error
        self._function = function
        self.find_key = find_key
        self._ignore = _check_ignore(ignore, self.signature, self.name)
        if find_key is not None and not callable(find_key):
            raise OptionError(f"key must be a function of the arguments, not {describe(find_key)}")
        if find_key is not None and self._ignore:
            raise OptionError("give key= or ignore=, not both: key= sees all arguments")
        if isinstance(version, bool) or not isinstance(version, str | int | None):
            raise OptionError(f"version must be text or a whole number, not {describe(version)}")
        self._version = version
        # A class method's first argument is a class, which its name identifies.
        outer, _, _ = function.__qualname__.rpartition(".")
        is_method = outer and not outer.endswith("<locals>")
        self.first = next(iter(self.signature.parameters), None) if is_method else None

    def without(self, position: int) -> Calls:
        """Return a builder's calls: its target is not given, and a path is returned."""
        from pathlib import Path

        signature = inspect.signature(self._function)
        parameters = list(signature.parameters.values())
        if len(parameters) <= position or parameters[position].kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        ):
            raise OptionError(
                f"{self.name}{signature} has no parameter for the path of what it builds. A "
                "builder's first one, after self, takes that"
            )
        copy = object.__new__(Calls)
        copy.__dict__.update(self.__dict__)
        if parameters[position].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[position]
        copy.signature = signature.replace(parameters=parameters, return_annotation=Path)
        return copy

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallKey:
        """Return the key of a call."""
        bound = self.bind(args, kwargs)
        content: tuple[Any, ...]
        if self.find_key is None:
            content = ("call", self.version(), self._write(bound.arguments))
        else:
            found = self.find_key(*bound.args, **bound.kwargs)
            try:
                content = ("key", self.version(), shortened(written(found)))
            except NotPlain as why:
                raise KeyTypeError(
                    f"what key= returned for {self._show(bound)} {why}. It must return plain "
                    "data: text, numbers, or tuples of those"
                ) from None
        return CallKey(self.name, content, self._show(bound))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Give each argument to its parameter, and each parameter without one its default."""
        if self.first == "cls" and "cls" not in kwargs:
            self._check_class(args)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function.__qualname__}(): {error}") from None
        bound.apply_defaults()
        return bound

    def check_asked(self, option: str, function: Callable[..., object]) -> None:
        """Raise if a function that is to be asked about calls does not take their arguments."""
        try:
            takes = inspect.signature(function)
        except (TypeError, ValueError):  # written in C, maybe
            return
        ours = self.signature.parameters.values()
        args = [p for p in ours if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        kwargs = {p.name: p for p in ours if p.kind is p.KEYWORD_ONLY}
        try:
            takes.bind(*args, **kwargs)
        except TypeError as error:
            raise OptionError(
                f"{option}= must take all arguments of {self.name}{self.signature}, which it gets "
                f"with defaults filled in: {error}"
            ) from None

    def _check_class(self, args: tuple[Any, ...]) -> None:
        """Refuse calls of a class method that come without the class, as from Python 3.13 on."""
        if not args or not isinstance(args[0], type):
            raise TypeError(
                f"{self._function.__qualname__}() was not told its class. Put @cache.memoize or "
                "@cache.builder above @classmethod: below it, calls get the class, and cached, "
                "key and the other questions don't"
            )

    def version(self) -> str | int | None:
        """Return the version, with the source's hash in the place of ``"source"``."""
        if self._version == "source":
            from ._source import source_hash

            self._version = f"source {source_hash(self._function)}"
        return self._version

    def _write(self, arguments: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
        parts = []
        for name, value in sorted(self._counted(arguments).items()):
            try:
                if name == self.first and isinstance(value, type):
                    found = written(("class", name_of(value)))
                else:
                    found = written(value)
                parts.append((name, shortened(found)))
            except NotPlain as error:
                name, why = self._refused(name, value, error)
                raise KeyTypeError(
                    f"the argument {name!r} of {self.name} {why}. Say what identifies it with "
                    f"key=, leave it out with ignore=({name!r},) if results don't depend on it, "
                    "or give its class a method __atomcache_key__ that returns plain data"
                ) from None
        return tuple(parts)

    def _refused(self, name: str, value: Any, why: NotPlain) -> tuple[str, NotPlain]:
        """Return name and trouble of an argument, also of one among ``**named``."""
        if name == _parameter_for_others(self.signature):
            for each, given in value.items():
                try:
                    written(given)
                except NotPlain as its:
                    return each, its
        return name, why

    def _counted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that count."""
        counted = {name: value for name, value in arguments.items() if name not in self._ignore}
        named = _parameter_for_others(self.signature)
        if self._ignore and named in counted:
            others = counted[named].items()
            counted[named] = {name: value for name, value in others if name not in self._ignore}
        return counted

    def _show(self, bound: inspect.BoundArguments) -> str:
        """Return the call for people to read."""
        counted = self._counted(bound.arguments)
        shown = ", ".join(f"{name}={_short(value)}" for name, value in counted.items())
        return f"{self.name}({shown})"


def _short(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else describe(value, 80)


def _parameter_for_others(signature: inspect.Signature) -> str | None:
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return parameter.name
    return None


def _check_ignore(
    ignore: Sequence[str], signature: inspect.Signature, function: str
) -> frozenset[str]:
    several = isinstance(ignore, list | tuple | set | frozenset)
    if not several or not all(isinstance(name, str) for name in ignore):
        raise OptionError(
            f"ignore must be several names of parameters, as a list or tuple, not "
            f"{describe(ignore)}"
        )
    if _parameter_for_others(signature) is None:
        for name in ignore:
            if name not in signature.parameters:
                raise OptionError(
                    f"ignore names {name!r}, which is no parameter of {function}{signature}"
                )
    return frozenset(ignore)
