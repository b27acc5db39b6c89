"""Objects of classes as keys: enums, named tuples, dataclasses, attrs classes and models.

What it is for: these say by themselves which of their attributes hold their data, so they are
written down by the name of their class and those attributes.  An object that holds more than its
class says would share its key with others, so it is refused.

Who calls it: `_keys`.  What may go wrong: `NotPlain`.
"""

from __future__ import annotations

from ._keys import NotPlain, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_OF_NO_ACCOUNT = frozenset(["__orig_class__", "_attrs_cached_hash"])
"""Attributes that typing and attrs leave in objects, and that say nothing new."""


def structured(value: Any, kind: Any) -> tuple[str, list[Any]] | None:
    """Write down enums, named tuples, dataclasses, attrs classes and models."""
    import enum

    if isinstance(value, enum.Enum):
        number = value.value if isinstance(value, enum.Flag) else None  # a sum has no name
        return "enum", [name_of(kind), value.name, number]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        _check_attributes(value, kind, ())
        return "namedtuple", [name_of(kind), *value]
    if hasattr(kind, "__dataclass_fields__") and not isinstance(value, type):
        return "dataclass", [name_of(kind), _dataclass(value, kind)]
    if hasattr(kind, "__attrs_attrs__"):
        return "attrs", [name_of(kind), _attrs(value, kind)]
    if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):
        return "pydantic", [name_of(kind), *_model(value, kind)]
    return None


def _dataclass(value: Any, kind: Any) -> dict[str, Any]:
    import dataclasses

    _check_decorated(kind, "__dataclass_fields__", "a dataclass")
    fields = [field.name for field in dataclasses.fields(kind)]
    _check_class(kind)
    _check_attributes(value, kind, _filled_slots(value, kind), fields)
    return _values(value, kind, fields)


def _attrs(value: Any, kind: Any) -> dict[str, Any]:
    _check_decorated(kind, "__attrs_attrs__", "an attrs class")
    fields = [field.name for field in kind.__attrs_attrs__]
    _check_class(kind)
    _check_attributes(value, kind, _filled_slots(value, kind), fields)
    return _values(value, kind, fields)


def _model(value: Any, kind: Any) -> list[dict[str, Any]]:
    """Return fields and extras of a model, and its private attributes if it has any."""
    fields = kind.model_fields
    _check_class(kind)
    _check_attributes(value, kind, (), fields)
    held = {field: v for field, v in vars(value).items() if field in fields}
    extra = getattr(value, "__pydantic_extra__", None)
    private = getattr(value, "__pydantic_private__", None)
    return [{**held, **(extra or {})}, *([private] if private else [])]


def _values(value: Any, kind: type, fields: Iterable[str]) -> dict[str, Any]:
    found = {}
    for field in fields:
        try:
            found[field] = getattr(value, field)
        except AttributeError:
            raise NotPlain(f"holds {_named(kind)} whose field {field!r} has no value") from None
    return found


def _check_decorated(kind: type, mark: str, what: str) -> None:
    if mark not in vars(kind):
        raise NotPlain(
            f"holds {_named(kind)}, which is derived from {what} and is none itself, so that "
            "what it adds would not count: decorate it too"
        )


def _check_class(kind: type) -> None:
    """Refuse what is also a list or a number, say: its items are none of its fields."""
    for base in kind.__mro__:
        # A class written in Python has slots or a dict; one that has neither is written in C.
        in_c = "__slots__" not in vars(base) and base.__dictoffset__ == 0
        if in_c and (base.__basicsize__ > object.__basicsize__ or base.__itemsize__):
            raise NotPlain(
                f"holds {_named(kind)}, which is a {base.__name__} too, and what it holds as "
                "such is none of its fields"
            )


def _check_attributes(
    value: Any, kind: type, slots: Iterable[str], fields: Iterable[str] = ()
) -> None:
    from functools import cached_property

    for name in (*slots, *getattr(value, "__dict__", ())):
        if name in fields or name in _OF_NO_ACCOUNT:
            continue
        if not isinstance(getattr(kind, name, None), cached_property):
            raise NotPlain(
                f"holds {_named(kind)} whose attribute {name!r} is none of its fields, and "
                "would not count"
            )


def _filled_slots(value: Any, kind: type) -> Iterator[str]:
    """Yield the slots that have a value, without those that attrs makes for itself."""
    from types import MemberDescriptorType

    for base in kind.__mro__:
        if "__slots__" not in vars(base) or "__attrs_attrs__" in vars(base):
            continue
        for name, slot in vars(base).items():
            if isinstance(slot, MemberDescriptorType):
                try:
                    slot.__get__(value)
                except AttributeError:
                    continue
                yield name


def _named(kind: type) -> str:
    return f"a {kind.__module__}.{kind.__qualname__}"
