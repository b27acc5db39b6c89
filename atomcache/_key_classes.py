"""Objects of classes as keys: enums, named tuples, dataclasses, attrs classes and models.

What it is for: these say by themselves which of their attributes hold their data, so they are
written down by the name of their class and those attributes.

Who calls it: `_keys`.  What may go wrong: `NotPlain`.
"""

from __future__ import annotations

from ._keys import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def structured(value: Any, kind: Any) -> tuple[str, list[Any]] | None:
    """Write down enums, named tuples, dataclasses, attrs classes and models."""
    import dataclasses
    import enum

    if isinstance(value, enum.Enum):
        number = value.value if isinstance(value, enum.Flag) else None  # a sum has no name
        return "enum", [name_of(kind), value.name, number]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "namedtuple", [name_of(kind), *value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value)]
        return "dataclass", [name_of(kind), {field: getattr(value, field) for field in fields}]
    if hasattr(kind, "__attrs_attrs__"):
        fields = [f.name for f in kind.__attrs_attrs__]
        return "attrs", [name_of(kind), {field: getattr(value, field) for field in fields}]
    if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):
        held = {field: v for field, v in vars(value).items() if field in kind.model_fields}
        extra = getattr(value, "__pydantic_extra__", None)
        return "pydantic", [name_of(kind), {**held, **(extra or {})}]
    return None
