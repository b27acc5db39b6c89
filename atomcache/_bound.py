"""Decorated functions as methods.

What it is for: a decorated function that is reached through an object, or through a class if it is
a class method, gets that for its first argument, and so does every question about its calls.

Who calls it: Python, when such a method is looked up.  Nothing can go wrong.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


class Bound:
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
        if not isinstance(other, Bound):
            return NotImplemented
        return self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((self.__func__, id(self.__self__)))

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {self.__self__!r}>"


class ClassBound:
    """A decorated class method: binds to the class, however it is reached."""

    def __init__(self, decorated: Any) -> None:
        functools.update_wrapper(self, decorated, updated=())  # type: ignore[arg-type]
        self.__func__ = decorated
        self.__wrapped__ = decorated.__wrapped__

    def __get__(self, instance: Any, owner: Any = None) -> Bound:
        return Bound(self.__func__, type(instance) if owner is None else owner)
