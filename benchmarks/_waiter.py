"""One of the processes that `waiting.py` starts; not to be run by hand.

What it is for: it asks one competitor for one key and says how that went.  It loads next
to nothing of its own, so that whatever a competitor imports inside the measured call is
seen, and counted against it.

How it runs: ``_waiter.py COMPETITOR FOLDER BUILD LEAVE ANNOUNCE``.  It prepares (imports,
constructs), writes a line to stdout, and sleeps until its stdin ends.  Then it asks, writes
a report to stdout and sleeps until the pipe `LEAVE` ends, so that neither reports nor exits
take the processor from those who still wait.  Each factory call writes its pid and the time
to the pipe `ANNOUNCE`.

The competitors are functions that prepare and return the call to be measured.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Factory = Callable[[], bytes]

VALUE_SIZE = 4096


# -- the limit: the smallest loop that is correct where locks can be trusted --------------


def bare_limit(folder: str, factory: Factory) -> Factory:
    """Exclusive creation claims, `flock` proves life, waiters sleep in a shared lock."""
    data = os.path.join(folder, "data")
    claim = data + ".temp"

    def ask() -> bytes:
        while True:
            found = _read(data)
            if found is not None:
                return found
            try:
                fd = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                _wait(claim)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not _leads_to(claim, fd):
                    continue  # taken for dead before it was locked
                found = _read(data)
                if found is not None:
                    os.unlink(claim)
                    return found
                value = factory()
                os.write(fd, value)
                os.rename(claim, data)
                return value
            finally:
                os.close(fd)

    return ask


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _wait(claim: str) -> None:
    """Sleep until the owner is done; remove the claim if it is dead instead."""
    try:
        fd = os.open(claim, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        fcntl.flock(fd, fcntl.LOCK_UN)
        if _leads_to(claim, fd):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(claim, fd):
                os.unlink(claim)
    except BlockingIOError:
        pass  # somebody else is removing it
    finally:
        os.close(fd)


def _leads_to(path: str, fd: int) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


# -- the others ---------------------------------------------------------------------------


def atomcache(folder: str, factory: Factory) -> Factory:
    """Prepare `Cache.get_or_create` with its defaults, in a folder yet to be made."""
    from atomcache import Cache

    cache = Cache(os.path.join(folder, "cache"))
    return lambda: cache.get_or_create("page", factory)


def filelock_recipe(folder: str, factory: Factory) -> Factory:
    """Lock, look, build: the recipe in the documentation of pytest-xdist."""
    import importlib

    lock_class = importlib.import_module("filelock").FileLock
    data = os.path.join(folder, "data")

    def ask() -> bytes:
        with lock_class(data + ".lock"):
            found = _read(data)
            if found is None:
                found = factory()
                with open(data, "wb") as file:
                    file.write(found)
            return found

    return ask


_factory: list[Factory] = []


def page(key: str) -> bytes:
    """Build: what the competitors memoize that are decorators."""
    return _factory[0]()


def dogpile(folder: str, factory: Factory) -> Factory:
    """Prepare `get_or_create` of a dogpile.cache region over a dbm file."""
    import importlib

    region = (
        importlib.import_module("dogpile.cache")
        .make_region()
        .configure("dogpile.cache.dbm", arguments={"filename": os.path.join(folder, "dbm")})
    )
    return lambda: region.get_or_create("page", factory)


def _diskcache(folder: str, factory: Factory, *, barrier: bool) -> Factory:
    import importlib

    diskcache = importlib.import_module("diskcache")
    _factory.append(factory)
    cache = diskcache.Cache(os.path.join(folder, "cache"))
    cached = cache.memoize()(page)
    if barrier:  # as in diskcache's case study of a landing page
        cached = cache.memoize()(diskcache.barrier(cache, diskcache.Lock)(cached))
    return lambda: cached("page")


def diskcache_memoize(folder: str, factory: Factory) -> Factory:
    """Prepare `diskcache.Cache.memoize`."""
    return _diskcache(folder, factory, barrier=False)


def diskcache_barrier(folder: str, factory: Factory) -> Factory:
    """Prepare `diskcache.barrier` with a `diskcache.Lock`, memoized inside and outside."""
    return _diskcache(folder, factory, barrier=True)


def joblib_memory(folder: str, factory: Factory) -> Factory:
    """Prepare `joblib.Memory.cache`."""
    import importlib

    _factory.append(factory)
    memory = importlib.import_module("joblib").Memory(folder, verbose=0)
    cached = memory.cache(page)
    return lambda: cached("page")


def cachier(folder: str, factory: Factory) -> Factory:
    """Prepare `cachier.cachier` with its pickle core."""
    import importlib

    _factory.append(factory)
    cached = importlib.import_module("cachier").cachier(cache_dir=folder)(page)
    return lambda: cached("page")


COMPETITORS = {
    "bare limit": bare_limit,
    "atomcache": atomcache,
    "FileLock recipe": filelock_recipe,
    "dogpile.cache dbm": dogpile,
    "diskcache barrier": diskcache_barrier,
    "diskcache.memoize": diskcache_memoize,
    "joblib.Memory": joblib_memory,
    "cachier": cachier,
}


def main() -> None:
    """Prepare, wait for the signal, ask, report."""
    competitor, folder, build, leave, announce = sys.argv[1:]
    began: list[float] = []
    ended: list[float] = []
    early: list[str] = []
    loaded: set[str] = set()

    def factory() -> bytes:
        began.append(time.monotonic())
        os.write(int(announce), b"%d %r\n" % (os.getpid(), began[-1]))
        early.extend(name for name in sys.modules if name not in loaded)
        value = b"%15d\n" % os.getpid() * (VALUE_SIZE // 16)
        time.sleep(float(build))
        ended.append(time.monotonic())
        return value

    ask = COMPETITORS[competitor](folder, factory)
    loaded.update(sys.modules)
    os.write(1, b"ready\n")
    os.read(0, 1)

    answer = b""
    error = ""
    spent = time.process_time()
    try:
        answer = ask()
    except Exception as trouble:
        error = repr(trouble)
    returned = time.monotonic()
    spent = time.process_time() - spent

    builder = answer[:16]
    if not error and (len(answer) != VALUE_SIZE or answer != builder * (VALUE_SIZE // 16)):
        error = "a torn answer"
    imported = [name for name in sys.modules if name not in loaded]
    if began:
        imported = [name for name in imported if name not in early]
    report = (
        os.getpid(),
        returned,
        spent,
        began,
        ended,
        int(builder or 0),
        early,
        imported,
        error,
    )
    os.write(1, repr(report).encode() + b"\n")
    os.read(int(leave), 1)
    os._exit(0)


if __name__ == "__main__":
    main()
