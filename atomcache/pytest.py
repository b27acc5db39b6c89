"""The pytest plugin: expensive fixtures, built once for all workers of a test run.

What it is for: `shared` makes a fixture that is built by one worker and used by all,
`shared_cache` and `persistent_cache` are caches for what ordinary fixtures make.  The plugin
registers itself when atomcache is installed.  Without pytest-xdist there is one process, and
a shared fixture is an ordinary one.

How the processes of a run share a fixture is told in `_sharing`; here is what pytest wants:
the decorator, the hooks, what tells one fixture from another, and the summary.

Who calls it: pytest, and test suites.  What may go wrong: `OptionError` for a fixture that
can't be shared, `CodecError` for a value that can't be given to other processes.
"""

from __future__ import annotations

import functools
import inspect
import os
from contextlib import ExitStack
from typing import overload

import pytest

from ._errors import CodecError, KeyTypeError, OptionError
from ._keys import describe, digest
from ._options import seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import timedelta
    from typing import Any, TypeVar

    from ._cache import Cache
    from ._own_codec import Codec
    from ._sharing import Build, Sharing, Workers
    from ._watch import Event

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["shared"]

_FOLDER = "atomcache_folder"
"""What a worker is told by the first process."""

_MAX_IDLE = "30d"
"""After which what nobody asks the persistent cache for is removed."""


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
    timeout : float, timedelta or str, optional
        How long to wait for another worker's build before `BuildTimeout` is raised.  `None`,
        the default: as long as that worker lives.

    Raises
    ------
    OptionError
        If the function, the scope or the timeout can't be.

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

    def decorate(function: Any) -> Any:
        wrapped = _wrap(function, codec, timeout)
        fixture: Any = pytest.fixture(
            scope="session", params=params, autouse=autouse, ids=ids, name=name
        )
        return fixture(wrapped)

    return decorate if function is None else decorate(function)


def _wrap(function: Any, codec: Any, timeout: Any) -> Any:
    """Return what pytest is to call: it asks for a value instead of making one."""
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
        return _get(request, function, make, codec, timeout)

    if not wants_request:
        request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
        signature = signature.replace(parameters=[*signature.parameters.values(), request])
    fixture.__signature__ = signature  # type: ignore[attr-defined]
    return fixture


def _get(request: Any, function: Any, make: Any, codec: Any, timeout: Any) -> Any:
    """Return a shared fixture's value, or raise what it raised."""
    __tracebackhide__ = True
    from ._sharing import Wanted

    run = _run_of(request.config)
    name, identity = _identify(request, function)

    def build() -> Build:
        return _build(request, function, make)

    wanted = Wanted(name, identity, build, _describe, codec, timeout)
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
    try:
        value = make()
        if inspect.isgeneratorfunction(function):
            generator, value = value, next(value, ends)
            if value is ends:
                raise ValueError(f"the fixture {request.fixturename!r} did not yield a value")
            ends.append(functools.partial(_finish, generator, request.fixturename))
    except BaseException as error:
        _call_all(ends)
        if isinstance(error, pytest.exit.Exception) or not isinstance(error, _ERRORS):
            raise  # ends the run, and is no error of the fixture's
        if error.__traceback__ is not None:  # begin where the fixture's own code does
            error.__traceback__ = error.__traceback__.tb_next or error.__traceback__
        return Build(error=error, told=_describe(error))
    finally:
        del request.addfinalizer
    return Build(value, end=functools.partial(_call_all, ends) if ends else None)


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

_ERRORS: tuple[type[BaseException], ...] = (Exception, *_OUTCOMES)


def _describe(error: BaseException) -> dict[str, Any]:
    """Return what is told of an error to other workers."""
    for kind, name in _OUTCOMES.items():
        if isinstance(error, kind):
            pytrace = bool(getattr(error, "pytrace", True))
            return {"outcome": name, "message": str(error), "pytrace": pytrace}
    from ._failure import describe

    assert isinstance(error, Exception)
    if isinstance(error, CodecError):
        error.add_note(
            "A shared fixture's value travels to other processes. Let it be what they need to "
            "reach the thing, such as a path or a port, or choose another codec=."
        )
    return {"outcome": "error", "record": describe(error)}


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


# -- what tells one fixture from another -------------------------------------------------


def _identify(request: Any, function: Any) -> tuple[str, str]:
    """Return a fixture's name, and what it has in common with itself in other workers only.

    A fixture is its code, and the place where pytest found it; a class may inherit it.  It is
    built for each parameter of its own, and of the fixtures that it uses.
    """
    code = function.__code__
    definition = request._fixturedef
    parameters = _parameters(request, definition)
    identity = (
        code.co_filename,
        code.co_firstlineno,
        function.__qualname__,
        request.fixturename,
        definition.baseid,
        {argument: key for argument, (_, key) in parameters.items()},
    )
    shown = ", ".join(text for text, _ in parameters.values())
    name = f"{request.fixturename}[{shown}]" if shown else request.fixturename
    return name, digest(b"f", identity).hex()


def _parameters(request: Any, definition: Any) -> dict[str, tuple[str, object]]:
    """Return the parameters that a fixture depends on, as text and as part of a key."""
    item = request._pyfuncitem
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return {}
    given = callspec.params
    found: dict[str, tuple[str, object]] = {}
    seen: set[str] = set()
    ahead = [(request.fixturename, (definition,))]
    while ahead:
        name, definitions = ahead.pop()
        if name in given:
            index = callspec.indices[name]
            found[name] = _parameter(given[name], index, definitions, item)
        for each in definitions:
            for argument in {*each.argnames} - seen - {"request"}:
                seen.add(argument)
                ahead.append((argument, tuple(request._arg2fixturedefs.get(argument) or ())))
    return dict(sorted(found.items()))


def _parameter(
    value: object, index: int, definitions: Sequence[Any], item: Any
) -> tuple[str, object]:
    """Return a parameter as text, and what stands for it in a key."""
    try:
        digest(b"f", value)
        return describe(value, 40), ("value", value)
    except KeyTypeError:
        text = f"{type(value).__name__} {index}"
    for definition in definitions:
        params = definition.params or ()
        if index < len(params) and _is_value(value, params[index]):
            return text, ("parameter", index)
    return text, ("of test", item.nodeid.partition("[")[0], index)


def _is_value(value: object, parameter: Any) -> bool:
    if isinstance(parameter, type(pytest.param(None))):
        parameter = parameter.values[0]
    return value is parameter


# -- the run -----------------------------------------------------------------------------


class _Run:
    """A test run, seen from one of its processes.

    The first process has a folder, which it makes when it is needed and removes at the end;
    its workers are told of it, unless they run on another machine: those are on their own.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.item: Any = None
        self.told: list[dict[str, Any]] = []
        self._caches: dict[str, Cache] = {}
        self._sharing: Sharing | None = None
        self._first = not hasattr(config, "workerinput")
        given = getattr(config, "workerinput", {})
        self.worker: str | None = given.get("workerid")
        self._shared_folder: str | None = given.get(_FOLDER)
        self._own_folder: str | None = None
        self.workers: Workers | None = None
        self._lost = 0
        if self._shared_folder is not None:
            from ._sharing import Workers

            self.workers = Workers(self._shared_folder, self.worker)

    def sharing(self) -> Sharing:
        """Return what knows the shared fixtures."""
        if self._sharing is None:
            from ._sharing import Sharing

            self._sharing = Sharing(
                self._shared_folder, self.workers, self.note, self._stop_timer, self._give_up
            )
        return self._sharing

    def folder(self) -> str:
        """Return the folder of the run, or of this process if it is on its own."""
        if self._shared_folder is not None:
            return self._shared_folder
        if self._own_folder is None:
            import tempfile

            factory = getattr(self.config, "_tmp_path_factory", None)
            place = None if factory is None else factory.getbasetemp()
            self._own_folder = tempfile.mkdtemp(prefix="atomcache-", dir=place)
        return self._own_folder

    # -- caches -----------------------------------------------------------------------

    def shared_cache(self) -> Cache:
        """Return the cache that lives as long as the run."""
        return self._cache("shared_cache", os.path.join(self.folder(), "cache"))

    def persistent_cache(self) -> Cache:
        """Return the cache that outlives the run."""
        from platformdirs import user_cache_dir

        root = str(self.config.rootpath)
        place = f"{os.path.basename(root)}-{digest(b'f', root).hex()[:12]}"
        directory = os.path.join(user_cache_dir("atomcache-pytest", appauthor=False), place)
        return self._cache("persistent_cache", directory, max_idle=_MAX_IDLE)

    def _cache(self, name: str, directory: str, **limits: Any) -> Cache:
        if name not in self._caches:
            from ._cache import Cache

            cache = self._caches[name] = Cache(directory, **limits)

            def listen(event: Event) -> None:
                if event.kind == "build_finished":
                    self.note("built", f"{event.key}, in {name}", event.seconds or 0.0)

            cache.on(listen)
        return self._caches[name]

    # -- the processes ----------------------------------------------------------------

    def expect(self, node: Any) -> None:
        """Tell a worker of this run, before it is started."""
        if not node.gateway.spec.popen:
            return
        from ._sharing import Workers

        if self.workers is None:
            self.workers = Workers(self.folder(), None)
        self.workers.expect(node.gateway.id)
        node.workerinput[_FOLDER] = self.folder()

    def lost(self, node: Any) -> None:
        """Note that a worker died; whether another one follows is what xdist decides just so."""
        if self.workers is None or _FOLDER not in node.workerinput:
            return
        self._lost += 1
        option = self.config.option
        most = getattr(option, "maxworkerrestart", None)
        if most is None and getattr(option, "numprocesses", None):
            most = 4 * option.numprocesses
        replaced = most is None or self._lost <= int(most)
        self.workers.lost(node.gateway.id, replaced=replaced)

    def _stop_timer(self) -> None:
        """Keep pytest-timeout from blaming a test for the time that other workers take."""
        hook = getattr(self.config.hook, "pytest_timeout_cancel_timer", None)
        if hook is not None and self.item is not None:
            hook(item=self.item)

    def _give_up(self, name: str, silent: list[str]) -> None:
        import warnings

        message = (
            f"the shared fixture {name!r} is ended though {', '.join(silent)} may still use it: "
            "there was no sign of life for so long that it must hang. Look at what it does"
        )
        warnings.warn(pytest.PytestWarning(message), stacklevel=2)

    # -- the end ----------------------------------------------------------------------

    def finish(self) -> None:
        """Tell the others that this process asks for nothing any more."""
        if self.workers is None:
            return
        if self._first:
            self.workers.end()
        else:
            self.workers.over()

    def count_hits(self) -> None:
        """Note what this process was spared by the caches."""
        for name, cache in self._caches.items():
            saved = cache._watch.counts()["seconds_saved"]
            if saved:
                self.note("used", f"entries of {name}", saved)

    def close(self) -> None:
        """Let go, and remove the run's folder."""
        self.finish()
        if self.workers is not None:
            self.workers.end()
        if self._own_folder is not None:
            import shutil

            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    # -- the summary ------------------------------------------------------------------

    def note(self, what: str, name: str, seconds: float, *, told: Any = None) -> None:
        """Note something for the summary, which the first process writes."""
        event = {"what": what, "name": name, "seconds": seconds, "worker": self.worker or ""}
        if told is not None:
            event["what"] = _VERBS.get(told["outcome"], "failed")
        if self._shared_folder is None:
            self.told.append(event)
            return
        import json

        with open(os.path.join(self._shared_folder, "journal"), "ab", buffering=0) as journal:
            journal.write(json.dumps(event).encode() + b"\n")  # one write, so lines stay whole

    def events(self) -> list[dict[str, Any]]:
        """Return what all processes have noted."""
        if self._own_folder is None:
            return self.told
        import json

        try:
            with open(os.path.join(self._own_folder, "journal"), "rb") as journal:
                return self.told + [json.loads(line) for line in journal]
        except FileNotFoundError:
            return self.told


_VERBS = {"skip": "skipped", "xfail": "expected to fail"}

_RUN = pytest.StashKey[_Run]()


def _run_of(config: pytest.Config) -> _Run:
    run = config.stash.get(_RUN, None)
    if run is None:
        raise pytest.UsageError(
            "the plugin of atomcache is switched off, so no fixture can be shared. Take away "
            "'-p no:atomcache', or pass '-p atomcache.pytest' where no plugin is loaded by itself"
        )
    return run


# -- hooks -------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the plugin."""
    parser.getgroup("atomcache").addoption(
        "--atomcache-clear",
        action="store_true",
        help="empty the cache of the fixture persistent_cache before the tests run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, or join it."""
    config.stash[_RUN] = _Run(config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Empty the persistent cache, before there are workers that use it."""
    if session.config.getoption("--atomcache-clear") and not hasattr(
        session.config, "workerinput"
    ):
        _run_of(session.config).persistent_cache().clear()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of the run; xdist is about to start it."""
    _run_of(node.config).expect(node)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Note that a worker died."""
    if error is not None:
        _run_of(node.config).lost(node)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Remember the test that is being torn down."""
    _run_of(item.config).item = item


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Show that this worker gets on."""
    try:
        return (yield)
    finally:
        run = _run_of(item.config)
        if run.workers is not None:
            run.workers.beat()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Tell the others that this process is over."""
    run = _run_of(session.config)
    if not hasattr(session.config, "workerinput"):
        run.finish()  # before xdist ends workers that still run
    try:
        return (yield)
    finally:
        run.count_hits()
        run.finish()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what was built and what that saved."""
    lines = list(_summary(_run_of(terminalreporter.config).events()))
    if lines:
        terminalreporter.section("atomcache")
        for line in lines:
            terminalreporter.write_line(line)


def _summary(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each thing that was built or used, and one for all."""
    used: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["what"] == "used":
            used.setdefault(event["name"], []).append(event)
    took = 0.0
    for event in events:
        if event["what"] != "used":
            took += event["seconds"]
            by = f" by {event['worker']}" if event["worker"] else ""
            yield (
                f"{event['name']}: {event['what']}{by} in "
                f"{event['seconds']:.2f} s{_use(used.pop(event['name'], []))}"
            )
    for name, uses in used.items():
        yield f"{name}{_use(uses)}"
    saved = sum(event["seconds"] for event in events if event["what"] == "used")
    if took or saved:
        yield f"{took:.2f} s of building saved {saved:.2f} s"


def _use(uses: list[dict[str, Any]]) -> str:
    if not uses:
        return ""
    workers = " ".join(sorted({event["worker"] for event in uses}))
    saved = sum(event["seconds"] for event in uses)
    return f", given to {workers or 'tests'}, {saved:.2f} s saved"


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    run = config.stash.get(_RUN, None)
    if run is not None:
        run.close()


@pytest.fixture(scope="session")
def shared_cache(request: pytest.FixtureRequest) -> Cache:
    """Return a `Cache` that lives for one test run and is the same in every worker."""
    return _run_of(request.config).shared_cache()


@pytest.fixture(scope="session")
def persistent_cache(request: pytest.FixtureRequest) -> Cache:
    """Return a `Cache` that is kept between runs; ``--atomcache-clear`` empties it."""
    return _run_of(request.config).persistent_cache()
