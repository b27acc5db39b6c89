"""How a factory's error travels to those who were waiting for its result.

What it is for: an error that ends a build is written into the claim as one line of
JSON, with the traceback as text; every waiter rebuilds it and raises it with the remote
traceback as its cause, so ``except ValueError`` works in all of them.

A record is only data, whoever wrote it.  The error's class is looked up among the modules that
this process has loaded already, must be an `Exception`, and is made by the constructor of its
nearest built-in base, so none of the class's own is run.  An object that does not say then what
the error said (its class may need what its own constructor does) gets a subclass that does.  A
class that is not known here becomes `BuildFailedError`.

Who calls it: the claim, to write and read failures; the flights, to give each waiting
thread an error object of its own.  What may go wrong: a record that can't be understood
counts as none, and whoever waited looks again.
"""

from __future__ import annotations

import sys

from ._errors import BuildFailedError, RemoteTraceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_names_of_class = type.__dict__["__dict__"].__get__

_LONGEST_TRACEBACK = 50_000
"""Characters kept of a traceback; a deep recursion fills megabytes."""


_LONGEST_MESSAGE = 20_000
_LARGEST_CONTENT = 200_000
"""Characters kept of a message, and of arguments and attributes: a claim is read in one piece."""

_DEEPEST = 5
_MOST_PARTS = 50
"""Of groups of errors that are kept: how deep in each other, and how many in one."""


def describe(error: Exception) -> str:
    """Return one line of JSON that `restore` understands."""
    import json

    return json.dumps(_record(error, 0))


def _record(error: Exception, depth: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "module": str(type(error).__module__),
        "name": type(error).__qualname__,
        "message": _message(error)[:_LONGEST_MESSAGE],
        "traceback": _traceback(error),
    }
    if isinstance(error, ExceptionGroup) and depth < _DEEPEST:
        parts = [each for each in error.exceptions[:_MOST_PARTS] if isinstance(each, Exception)]
        record["group"] = error.message[:_LONGEST_MESSAGE]
        record["parts"] = [_record(each, depth + 1) for each in parts]
        return record
    content = _encode(_arguments(error), _attributes(error))
    if content is not None and len(content) <= _LARGEST_CONTENT:
        record["content"] = content
    return record


def _traceback(error: Exception) -> str:
    import traceback

    try:
        text = "".join(traceback.format_exception(type(error), error, _since_factory(error)))
    except Exception as broken:  # the class's own code may do anything
        return f"<it can't be formatted: {type(broken).__name__}>"
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return text


def restore(line: str) -> Exception | None:
    """Return the error that `describe` wrote down; `None` for what it never wrote."""
    import json

    try:
        return _restore(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _restore(record: Any) -> Exception:
    module, name, message = record["module"], record["name"], record["message"]
    if not all(isinstance(text, str) for text in (module, name, message)):
        raise TypeError("not a record of a failure")
    kind = _find_class(module, name)
    error = None
    if kind is not None and issubclass(kind, ExceptionGroup) and "parts" in record:
        parts = [_restore(each) for each in record["parts"]]
        error = rebuild(kind, (str(record["group"]), parts), {})
    elif kind is not None:
        args, attributes = _decode(record.get("content"), message)
        error = rebuild(kind, args, attributes)
        if kind.__module__ != "builtins" and (error is None or not says(error, message)):
            error = _speak_for(kind, args, attributes, message)
    if error is None:
        why = "this process has not loaded that type" if kind is None else "it can't be made here"
        error = BuildFailedError(
            f"the build failed in another process with {module}.{name}: {message} "
            f"({why}; the remote traceback is the cause)"
        )
    error.__cause__ = RemoteTraceback(f"\n\n{record['traceback']}")
    return error


def again(error: Exception) -> Exception:
    """Return an error equal to `error`, caused by it, to raise in another thread."""
    copy = rebuild(type(error), _arguments(error), _attributes(error))
    if copy is None or not says(copy, _message(error)):
        return error
    copy.__cause__ = error
    return copy


def says(error: Exception, message: str) -> bool:
    """Tell whether an error that was made without its constructor can be used as one."""
    import traceback

    try:
        traceback.format_exception_only(error)
        return str(error)[:_LONGEST_MESSAGE] == message[:_LONGEST_MESSAGE]
    except Exception:  # what its class's own code does without its constructor
        return False


def _speak_for(
    kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> Exception | None:
    """Return an error of a subclass of `kind` that says what it is told to."""

    def refuse(self: Exception, name: str) -> Any:
        raise AttributeError(name)

    names = {"__str__": lambda self: message, "__repr__": lambda self: message}
    metaclass: Any = type(kind)
    try:
        stand_in = metaclass(kind.__name__, (kind,), {**names, "__getattr__": refuse})
        stand_in.__module__, stand_in.__qualname__ = kind.__module__, kind.__qualname__
        error = rebuild(stand_in, args, attributes) or rebuild(stand_in, (message,), {})
    except Exception:  # a class that can't have subclasses
        return None
    return error if error is not None and says(error, message) else None


def _arguments(error: Exception) -> tuple[Any, ...]:
    """Return what the error's built-in base was made with; `OSError` keeps its paths apart."""
    if isinstance(error, OSError) and len(error.args) == 2 and error.filename is not None:
        if error.filename2 is None:
            return (*error.args, error.filename)
        return (*error.args, error.filename, None, error.filename2)
    return error.args


def _since_factory(error: Exception) -> TracebackType | None:
    """Return the traceback without the library's own frames, unless there are no others."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_globals.get("__package__") == __package__:
        found = found.tb_next
    return found or error.__traceback__


def _message(error: Exception) -> str:
    try:
        return str(error)
    except Exception as broken:  # the class's own __str__ may do anything
        return f"<its __str__ raised {type(broken).__name__}>"


def _attributes(error: Exception) -> dict[str, Any]:
    try:
        return dict(error.__dict__)
    except Exception:  # a property of that name may do anything
        return {}


def _encode(args: tuple[Any, ...], attributes: dict[str, Any]) -> str | None:
    """Return arguments and attributes, without those attributes that are no plain data."""
    content = _pack((args, attributes))
    if content is None and attributes:
        plain = {name: value for name, value in attributes.items() if _pack(value) is not None}
        content = _pack((args, plain))
    return content


def _pack(content: Any) -> str | None:
    from ._inert import InertPickles

    try:
        payload, buffers = InertPickles({}).dumps(content)
    except Exception:  # no plain data, or an object that may do anything: the message must do
        return None
    return None if buffers else bytes(payload).hex()


def _decode(content: str | None, message: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from ._inert import InertPickles

    if content is None:
        return (message,), {}
    try:
        args, attributes = InertPickles({}).loads(bytes.fromhex(content), ())
    except Exception as error:  # whatever pickle says of bytes that it can't read
        raise ValueError("not a record of a failure") from error
    if not isinstance(args, tuple) or not isinstance(attributes, dict):
        raise ValueError("not a record of a failure")
    return args, attributes


def _find_class(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: a lazy module's could import, thus run, anything.
        if type(found) is type(sys):
            found = found.__dict__.get(part)
        elif issubclass(type(found), type):
            found = _names_of_class(found).get(part)
        else:
            return None
    if issubclass(type(found), type) and issubclass(found, Exception):
        kind: type[Exception] = found
        return kind
    return None


def rebuild(
    kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]
) -> Exception | None:
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        error: Exception = builtin.__new__(kind, *args)
        builtin.__init__(error, *args)
        if attributes:
            error.__dict__.update(attributes)
    except Exception:  # of arguments that are none of its own
        return None
    return error
