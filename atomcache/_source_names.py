"""What the names in some code lead to, as far as that is from the same package.

What it is for: ``version="source"`` hashes a function with all that it needs of its package.  What
is followed: names at module level, also behind modules (``shapes.area``); wrappers and what they
wrap; functions behind `functools.partial` and `functools.singledispatch`, or in lists and dicts;
constants, by the statements that assign them, wherever they are imported from.  What is not:
methods that are reached through objects (``self.area()``), names imported inside functions, what a
closure has captured, and objects of this library, since a cache is not what is computed.

Who calls it: `_source`.  What may go wrong: nothing; what can't be found is not followed.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from importlib.util import resolve_name
from types import FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ._keys import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MISSING = object()
_NOTHING = ModuleType("nothing")
_PLAIN = {str, bytes, int, float, bool, type(None)}


class Assigned(NamedTuple):
    """A name to which a module gives a value that is no function, class or module."""

    module: str
    name: str


def label(thing: Any) -> str:
    """Return under what name something is hashed."""
    return ".".join(thing) if isinstance(thing, Assigned) else name_of(thing)


def followed(thing: Any, package: str) -> list[Any]:
    """Return the functions and classes of a package that some value is, wraps or holds."""
    found: list[Any] = []
    seen = set()
    ahead = [thing]
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        found += own_layers(each, package)
        for part in [each, *_layers(each)]:
            ahead += [inner for inner in _parts(part) if type(inner) not in _PLAIN]
    return found


def own_layers(thing: Any, package: str) -> list[Any]:
    """Return a function or class, and what it wraps, as far as it is from a package."""
    return [
        layer
        for layer in _layers(thing)
        if isinstance(layer, FunctionType | type) and package_of(layer) == package
    ]


def _layers(thing: Any) -> list[Any]:
    if not callable(thing):
        return []
    layers: list[Any] = []
    layers.append(inspect.unwrap(thing, stop=layers.append))
    return layers


def _parts(thing: Any) -> Iterable[Any]:
    """Return what may be functions in a container, a partial call or a dispatching function."""
    if isinstance(thing, dict | MappingProxyType):
        return thing.values()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    registry = vars(thing).get("registry") if isinstance(thing, FunctionType) else None
    return registry.values() if isinstance(registry, MappingProxyType) else ()


def package_of(thing: Any) -> str:
    """Return the top-level package that something is from; wrappers have a borrowed module."""
    return _module_of(thing).partition(".")[0]


def _module_of(thing: Any) -> str:
    if isinstance(thing, Assigned):
        return thing.module
    borrowed = getattr(thing, "__module__", None)
    return str(thing.__globals__.get("__name__") if isinstance(thing, FunctionType) else borrowed)


def path_of(thing: Any) -> str:
    """Return the path of the source file of something, or what stands for one."""
    if isinstance(thing, FunctionType):
        return thing.__code__.co_filename
    return getattr(sys.modules.get(_module_of(thing)), "__file__", None) or ""


def names_of(thing: Any) -> dict[str, Any]:
    """Return what the names in the code of something lead to."""
    if isinstance(thing, FunctionType):
        return {**thing.__globals__, **inspect.getclosurevars(thing).nonlocals}
    module = sys.modules.get(_module_of(thing))
    return {} if module is None else vars(module)


def named(tree: ast.AST, owner: Any, package: str) -> list[Any]:
    """Return the functions, classes and constants of a package that some code names.

    Parameters
    ----------
    owner
        The function, class or constant that the code is from.
    """
    if isinstance(tree, ast.ImportFrom) and isinstance(owner, Assigned):
        return _imported(tree, owner, package)
    names = names_of(owner)
    found = []
    for node in ast.walk(tree):
        module, name, value = _resolve(node, names, _module_of(owner))
        found += followed(value, package)
        if module.partition(".")[0] == package and _is_constant(value):
            found.append(Assigned(module, name))
    return found


def _resolve(node: ast.AST, names: dict[str, Any], module: str) -> tuple[str, str, Any]:
    """Return what a name leads to, and in which module under which name that is."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return module, node.id, names.get(node.id, _MISSING)
    if isinstance(node, ast.Attribute):
        behind = _resolve(node.value, names, module)[2]
        if isinstance(behind, ModuleType):
            return behind.__name__, node.attr, vars(behind).get(node.attr, _MISSING)
    return module, "", _MISSING


def _is_constant(value: Any) -> bool:
    if value is _MISSING or isinstance(value, FunctionType | type | ModuleType):
        return False
    return type(value).__module__.partition(".")[0] != "atomcache"


def _imported(statement: ast.ImportFrom, thing: Assigned, package: str) -> list[Any]:
    """Return what an import of a package's own module makes of a name."""
    origin = "." * statement.level + (statement.module or "")
    try:
        origin = resolve_name(origin, names_of(thing).get("__package__"))
    except ImportError:  # no module of a package, such as a script
        return []
    if origin.partition(".")[0] != package:
        return []
    names = [
        thing.name if alias.name == "*" else alias.name
        for alias in statement.names
        if alias.name == "*" or (alias.asname or alias.name) == thing.name
    ]
    there = vars(sys.modules.get(origin, _NOTHING))
    return [Assigned(origin, name) for name in names if _is_constant(there.get(name, _MISSING))]


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield what a module does when it is imported, also under conditions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from statements(node)


def gives(statement: ast.stmt, name: str) -> bool:
    """Tell whether a statement gives a value to a name, to a part of it, or imports it."""
    if isinstance(statement, ast.ImportFrom):
        return any((each.asname or each.name) in (name, "*") for each in statement.names)
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return False
    nodes = [node for target in targets for node in ast.walk(target)]
    return any(isinstance(node, ast.Name) and node.id == name for node in nodes)
