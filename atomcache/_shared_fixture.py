"""The decorator that makes a fixture one that all workers of a test run share.

What it is for: `shared` puts a function in the fixture's place that asks for a value instead
of making one.  It is made by the worker that asks first; how the workers share it is told in
`_sharing`.  What a fixture raises is told to all of them, skips and failures too.

Who calls it: test suites, by the name `atomcache.pytest.shared`.  What may go wrong:
`OptionError` for a fixture that can't be shared, `CodecError` for a value that can't be given
to other processes.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from typing import overload

import pytest

from ._errors import BuildFailedError, CodecError, OptionError, UnsafeDirectoryError
from ._keys import describe
from ._options import seconds
from ._shared_identity import identify
from ._test_run import run_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta
    from typing import Any, TypeVar

    from ._cache import Cache
    from ._own_codec import Codec
    from ._sharing import Build

    F = TypeVar("F", bound=Callable[..., Any])

_LASTING = {
    *("request", "pytestconfig", "tmp_path_factory", "worker_id", "testrun_uid"),
    *("shared_cache", "persistent_cache"),
}
"""Fixtures of which nothing ends with the worker that built what uses them."""


@overload
def shared(function: F, /) -> F: ...


@overload
def shared(
    *,
    scope: str = ...,
    params: Sequence[Any] | None = ...,
    autouse: bool = ...,
    ids: Any = ...,
    name: str | None = ...,
    codec: str | Codec = ...,
    allow: Sequence[type] = ...,
    timeout: float | timedelta | str | None = ...,
) -> Callable[[F], F]: ...


def shared(
    function: Any = None,
    /,
    *,
    scope: str = "session",
    params: Sequence[Any] | None = None,
    autouse: bool = False,
    ids: Any = None,
    name: str | None = None,
    codec: str | Codec = "data",
    allow: Sequence[type] = (),
    timeout: float | timedelta | str | None = None,
) -> Any:
    """Make a session-scoped fixture that is built once for all workers of a run.

    It takes the place of `pytest.fixture`.  The function is called, up to its ``yield`` if it
    has one, in the worker that asks first; the others get the value.  What comes after the
    ``yield`` runs in that same worker once no worker can need the value any more.

    Parameters
    ----------
    function
        The fixture function, if the decorator is used without parentheses.
    scope
        ``"session"``; no other scope can be shared.
    params, autouse, ids, name
        As for `pytest.fixture`.  Each parameter is built once.
    codec : str or Codec
        How the value travels to the other workers, as in `Options`; ``"pickle"`` takes
        objects of any class.
    allow : sequence of type
        Classes that the codec ``"data"`` admits besides Python's own, as for `Cache`.
    timeout : float, timedelta or str, optional
        How long to wait for another worker's build before `BuildTimeout` is raised.  `None`,
        the default: as long as that worker lives.

    Raises
    ------
    OptionError
        If the function, the scope, the codec, a class or the timeout can't be.

    Examples
    --------
    >>> import atomcache.pytest
    >>> @atomcache.pytest.shared
    ... def primes():
    ...     return [n for n in range(2, 100) if all(n % d for d in range(2, n))]
    """
    if scope != "session":
        raise OptionError(
            f"a fixture of scope {describe(scope)} can't be shared, because no worker knows "
            "whether another one still has tests of that scope to run. Use scope='session', or "
            "an ordinary fixture of that scope that asks shared_cache"
        )
    seconds("timeout", timeout)
    allow = _checked(codec, allow)

    def values(directory: str) -> Cache:
        from ._cache import Cache

        return Cache(directory, codec=codec, allow=allow)

    def decorate(function: Any) -> Any:
        wrapped = _wrap(function, values, timeout)
        fixture: Any = pytest.fixture(
            scope="session", params=params, autouse=autouse, ids=ids, name=name
        )
        return fixture(wrapped)

    return decorate if function is None else decorate(function)


def _checked(codec: Any, allow: Any) -> tuple[type, ...]:
    """Refuse a codec before its fixture is built for minutes, and with it what it admits."""
    from ._codec_table import CodecTable

    if isinstance(allow, str | bytes | type) or not hasattr(allow, "__iter__"):
        raise OptionError(
            f"allow must be several classes, as a list or tuple, not {describe(allow)}"
        )
    table = CodecTable("", tuple(allow), None)
    for each in (codec, "data"):
        table.find(each)
    return tuple(allow)


def _wrap(function: Any, values: Any, timeout: Any) -> Any:
    """Return what pytest is to call: it asks for a value instead of making one."""
    if isinstance(function, classmethod | staticmethod):
        return type(function)(_wrap(function.__func__, values, timeout))
    is_fixture = hasattr(function, "_pytestfixturefunction")  # a function still, before pytest 8.4
    if is_fixture or not inspect.isfunction(function):
        raise OptionError(
            f"only a function can be a shared fixture, not {describe(function)}; where there are "
            "several decorators, shared takes the place of pytest.fixture"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(
            f"{function.__qualname__} is a coroutine function and can't be shared: its event "
            "loop would not outlive it. Use a plain function that calls asyncio.run"
        )
    signature = inspect.signature(function)
    wants_request = "request" in signature.parameters

    @functools.wraps(function)
    def fixture(*args: Any, **given: Any) -> Any:
        __tracebackhide__ = True
        request = given["request"] if wants_request else given.pop("request")
        make = functools.partial(function, *args, **given)
        return _get(request, function, make, values, timeout)

    if not wants_request:
        signature = _with_request(signature)
    fixture.__signature__ = signature  # type: ignore[attr-defined]
    return fixture


def _with_request(signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    takes_any = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
    parameters.insert(len(parameters) - takes_any, request)
    return signature.replace(parameters=parameters)


def _get(request: Any, function: Any, make: Any, values: Any, timeout: Any) -> Any:
    """Return a shared fixture's value, or raise what it raised."""
    __tracebackhide__ = True
    from ._sharing import Wanted

    run = run_of(request.config)
    name, identity = identify(request, function)

    def build() -> Build:
        return _build(request, function, make)

    place = request._fixturedef.baseid or ""
    wanted = Wanted(name, identity, place, build, _describe_unstored, values, timeout)
    loan = run.sharing().get(wanted)
    if loan.leave is not None:
        request.addfinalizer(loan.leave)
    if loan.end is not None:
        # Not a finalizer of the fixture: other workers outlast this one's last use of it, and
        # pytest may finish a parameter, or a rerun, long before the end.
        request.node.addfinalizer(loan.end)
    if loan.build.told is not None:
        error = loan.build.error
        raise _restore(loan.build.told) if error is None else error
    return loan.build.value


def _build(request: Any, function: Any, make: Any) -> Build:
    """Call a fixture function, and keep what ends it."""
    from ._sharing import Build

    ends: list[Callable[[], object]] = []
    request.addfinalizer = ends.append  # to be called at the end of all, not of this worker's use
    stands_on = {*request._fixturedef.argnames} - _LASTING
    get_other = request.getfixturevalue

    def get_noted(argname: str) -> Any:
        __tracebackhide__ = True
        stands_on.update({argname} - _LASTING)
        return get_other(argname)

    request.getfixturevalue = get_noted
    try:
        value = make()
        if inspect.isgeneratorfunction(function):
            generator, value = value, next(value, ends)
            if value is ends:
                raise ValueError(f"the fixture {request.fixturename!r} did not yield a value")
            ends.append(functools.partial(_finish, generator, request.fixturename))
    except BaseException as error:
        _call_all(ends)
        if isinstance(error, _NO_ERRORS):
            raise
        if error.__traceback__ is not None:  # begin where the fixture's own code does
            error.__traceback__ = error.__traceback__.tb_next or error.__traceback__
        error = _as_exception(error)
        return Build(error=error, told=_describe(error))
    finally:
        del request.addfinalizer, request.getfixturevalue
    lives = bool(ends or stands_on)  # what it stands on ends when this worker does
    return Build(value, end=functools.partial(_call_all, ends) if lives else None)


def _call_all(ends: list[Callable[[], object]]) -> None:
    """Call all, the last one first, also if some of them raise."""
    with ExitStack() as stack:
        for end in ends:
            stack.callback(end)


def _finish(generator: Iterator[Any], name: str) -> None:
    """Run what comes after the yield."""
    if next(generator, _finish) is not _finish:
        pytest.fail(f"the fixture {name!r} has more than one 'yield'", pytrace=False)


# -- errors that all workers see ---------------------------------------------------------

_OUTCOMES: dict[type[BaseException], str] = {
    pytest.skip.Exception: "skip",
    pytest.xfail.Exception: "xfail",
    pytest.fail.Exception: "fail",
}
"""What pytest raises that is no `Exception`; the first that fits counts."""

_NO_ERRORS = (KeyboardInterrupt, pytest.exit.Exception, GeneratorExit)
"""What ends the run, or this process, and is no error of a fixture's."""


def _as_exception(error: BaseException) -> BaseException:
    """Return what all workers are to raise: only an `Exception` can be told to others."""
    if isinstance(error, (Exception, *_OUTCOMES)):
        return error
    text = f": {error}" if str(error) else ""
    wrapped = BuildFailedError(f"the fixture raised {type(error).__qualname__}{text}")
    wrapped.__cause__ = error
    return wrapped


def _describe(error: BaseException) -> dict[str, Any]:
    """Return what is told of an error to other workers."""
    for kind, name in _OUTCOMES.items():
        if isinstance(error, kind):
            pytrace = bool(getattr(error, "pytrace", True))
            return {"outcome": name, "message": str(error), "pytrace": pytrace}
    from ._failure import describe

    assert isinstance(error, Exception)
    return {"outcome": "error", "record": describe(error)}


def _describe_unstored(error: BaseException) -> dict[str, Any]:
    """Return what is told of an error that kept a value from travelling, with the remedy."""
    if isinstance(error, CodecError):
        error.add_note(
            "A shared fixture's value travels to other processes. Let it be what they need to "
            "reach the thing, such as a path or a port, or choose another codec= or allow=."
        )
    if isinstance(error, UnsafeDirectoryError):
        error.add_note(
            "It travels through pytest's temporary folder. Choose one with --basetemp in which "
            "nobody else can write, nor in those above it."
        )
    return _describe(error)


def _restore(told: dict[str, Any]) -> BaseException:
    from ._failure import restore

    for kind, name in _OUTCOMES.items():
        if told["outcome"] == name:
            made: Any = kind
            error: BaseException = made(told["message"], pytrace=told["pytrace"])
            return error
    restored = restore(told["record"])
    assert restored is not None, told
    return restored
