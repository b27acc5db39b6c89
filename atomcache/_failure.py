"""How a factory's error travels to those who were waiting for its result.

What it is for: an error that ends a build is written into the claim as one line of
JSON, with the traceback as text; every waiter rebuilds it and raises it with the remote
traceback as its cause, so ``except ValueError`` works in all of them.

A record is only data, whoever wrote it.  The error's class is looked up among the
modules that this process has loaded already, must be an `Exception`, and is made by the
constructor of its nearest built-in base, so none of the class's own code runs.  A class
that is not known here becomes `BuildFailedError`.

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


def describe(error: Exception) -> str:
    """Return one line of JSON that `restore` understands."""
    import json
    import traceback

    text = "".join(traceback.format_exception(type(error), error, _since_factory(error)))
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    record = {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "message": _message(error),
        "traceback": text,
    }
    content = _encode((_arguments(error), error.__dict__))
    if content is not None:
        record["content"] = content
    return json.dumps(record)


def restore(line: str) -> Exception | None:
    """Return the error that `describe` wrote down; `None` for what it never wrote."""
    import json

    try:
        record = json.loads(line)
        module, name, message = record["module"], record["name"], record["message"]
        if not all(isinstance(text, str) for text in (module, name, message)):
            return None
        cause = RemoteTraceback(f"\n\n{record['traceback']}")
        kind = _find_class(module, name)
        error = None if kind is None else rebuild(kind, *_decode(record.get("content"), message))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if error is None:
        error = BuildFailedError(
            f"the build failed in another process with {module}.{name}: {message} "
            "(this process has not loaded that type; the remote traceback is the cause)"
        )
    error.__cause__ = cause
    return error


def again(error: Exception) -> Exception:
    """Return an error equal to `error`, caused by it, to raise in another thread."""
    copy = rebuild(type(error), _arguments(error), error.__dict__)
    if copy is None:
        return error
    copy.__cause__ = error
    return copy


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


def _encode(content: tuple[tuple[Any, ...], dict[str, Any]]) -> str | None:
    from ._errors import CodecError
    from ._inert import InertPickles

    try:
        payload, buffers = InertPickles({}).dumps(content)
    except CodecError:
        return None  # an argument that is not plain data: the message must do
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
        error.__dict__.update(attributes)
    except (TypeError, ValueError):
        return None
    return error
