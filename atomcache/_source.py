"""A hash of what a function does, by its source.

What it is for: ``version="source"`` makes a decorated function's entries depend on its
code and on that of the functions, classes and constants of the same package that it names, and so
on, so that editing the code builds anew.  What is hashed is the syntax tree: comments, layout
and docstrings don't count, and neither do the decorators of the function itself (the
options of its cache are not what it computes).  The tree is written down in a way that
does not change with Python's version.  What names lead to is found by `_source_names`.

The source is read at the first call.  A process that outlived an edit must not store what
its old code computes as a result of the new, so what the file compiles to is compared with
the code that runs.  That does not tell default values, arguments of decorators or constants
that were edited meanwhile.  Of a function whose assertions pytest has rewritten, only
name and line are compared.

Who calls it: decorated functions, once per process.  What may go wrong: `OptionError`
where there is no source, as for functions typed in at a prompt, or it is not what runs.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from ._errors import OptionError
from ._source_names import (
    Assigned,
    followed,
    gives,
    label,
    named,
    names_of,
    own_layers,
    package_of,
    path_of,
    statements,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def source_hash(function: Any) -> str:
    """Return the hash of a function's code and of what it calls in its package.

    Parameters
    ----------
    function
        A function written in Python.

    Raises
    ------
    OptionError
        If the source of a function or class can't be found, or is not what runs.
    """
    package = package_of(inspect.unwrap(function))
    own = own_layers(function, package)
    if not own:
        raise _sourceless(function, "it is not written in Python")
    files: dict[str, _File] = {}
    seen: dict[object, Any] = {}
    written = set()
    ahead = followed(function, package)
    while ahead:
        each = ahead.pop()
        # By identity: what one decorator returns has one name.
        mark = each if isinstance(each, Assigned) else id(each)
        if mark in seen:
            continue
        seen[mark] = each
        file = _open(each, files)
        nodes = [] if file is None else file.find(each)
        for node in nodes:
            if each in own and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.decorator_list = []
            ahead += named(node, each, package)
        nodes = [node for node in nodes if not isinstance(node, ast.ImportFrom)]
        if nodes:
            written.add(f"{label(each)}: {_write(nodes)}")
    text = "\n".join(sorted(written))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _open(thing: Any, files: dict[str, _File]) -> _File | None:
    """Return the file that a thing is from; `None` for a constant from where no source is."""
    path = path_of(thing)
    if path not in files:
        try:
            files[path] = _File(thing, path, names_of(thing))
        except OptionError:
            if not isinstance(thing, Assigned):
                raise
            return None
    return files[path]


class _File:
    """A source file as it is now: its syntax tree, and the code that it compiles to."""

    def __init__(self, thing: Any, path: str, names: dict[str, Any]) -> None:
        linecache.checkcache(path)
        source = "".join(linecache.getlines(path, names))
        if not source:
            raise _sourceless(thing, f"{path!r} can't be read")
        try:
            code = compile(source, path, "exec", dont_inherit=True)
            self._tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            raise _sourceless(thing, f"{path!r} is not Python: {error}") from error
        self._codes = list(_codes(code))
        self._path = path

    def find(self, thing: Any) -> list[ast.AST]:
        """Return the definition of a function or class; several if they are alike.

        Of a constant, and of a class that is made by a call, as by `namedtuple`: all statements
        that give something to the name, or import it.
        """
        if isinstance(thing, Assigned):
            return [each for each in statements(self._tree) if gives(each, thing.name)]
        found = [code for code in self._codes if _is_code_of(code, thing)]
        if not found and isinstance(thing, type):
            made: list[ast.AST] = [
                each for each in statements(self._tree) if gives(each, thing.__name__)
            ]
            if made:
                return made
        if not found:
            raise OptionError(
                f'version="source" can\'t be told: {self._path!r} no longer holds the code of '
                f"{label(thing)} that runs here. Restart the process if the file was edited "
                "since it was loaded, else give a version of your own"
            )
        places = {(code.co_name, code.co_firstlineno) for code in found}
        return [node for node in ast.walk(self._tree) if _place(node) in places]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield what is defined in some code, at any depth."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def _is_code_of(code: CodeType, thing: Any) -> bool:
    """Tell whether code is that of a function, or the body that has a class's methods."""
    if isinstance(thing, FunctionType):
        return _same(code, thing.__code__)
    if code.co_qualname != thing.__qualname__:
        return False
    methods = [const for const in code.co_consts if isinstance(const, CodeType)]
    return all(
        any(_same(method, running) for method in methods)
        for running in map(_code_of_method, vars(thing).values())
        if running is not None and running.co_qualname == f"{code.co_qualname}.{running.co_name}"
    )


def _code_of_method(method: Any) -> CodeType | None:
    for name in ("fget", "func"):  # of properties, and of those of functools
        method = getattr(method, name, method)
    plain: Any = inspect.unwrap(method)
    return plain.__code__ if isinstance(plain, FunctionType) else None


def _same(code: CodeType, other: CodeType) -> bool:
    """Compare code, wherever in its file it stands."""
    if code.co_qualname != other.co_qualname:
        return False
    if _has_asserts_of_pytest(other):
        return code.co_firstlineno == other.co_firstlineno
    return _placeless(code) == _placeless(other)


def _has_asserts_of_pytest(code: CodeType) -> bool:
    """Tell whether pytest has put code of its own in the place of ``assert`` statements."""
    return "@pytest_ar" in code.co_names or any(map(_has_asserts_of_pytest, _codes(code)))


def _placeless(code: CodeType) -> CodeType:
    consts = tuple(_placeless(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_firstlineno=0, co_linetable=b"", co_consts=consts)


def _place(node: ast.AST) -> tuple[str, int] | None:
    """Return name and line of a definition, as its code has them."""
    if isinstance(node, ast.Lambda):
        return "<lambda>", node.lineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name, [*node.decorator_list, node][0].lineno
    return None


def _sourceless(thing: Any, why: str) -> OptionError:
    return OptionError(
        f'version="source" needs the source of {label(thing)}, which can\'t be found: {why}. '
        "Give a version of your own"
    )


def _write(node: Any) -> str:
    """Write a syntax tree down: kinds, names and constants, whatever Python's version."""
    if isinstance(node, list):
        return f"[{' '.join(map(_write, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and _has_docstring(node):
            value = value[1:]
        if name == "values" and isinstance(node, ast.JoinedStr):
            value = [each for each in value if not _is_empty_text(each)]
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            fields.append(f"{name}={_write(value)}")
    return f"{type(node).__name__}({' '.join(fields)})"


def _is_empty_text(node: ast.AST) -> bool:
    """Tell whether a part of an f-string is what some releases of Python put between others."""
    return isinstance(node, ast.Constant) and node.value == ""


def _has_docstring(node: ast.AST) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None
