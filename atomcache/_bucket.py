"""The one narrow door to an object store.

What it is for: the few requests that sharing entries through a bucket needs, each counted: a
plain get, a put that succeeds only if nothing is there or if nothing has changed since, a streamed
put and get, a removal, a listing.  obstore speaks to S3, Google, Azure, and what is like them.

Who calls it: `Remote`; the simulator in the tests stands another one in its place.  What may go
wrong: `StoreDown` for whatever keeps the store from being used: no answer within the time limit,
answers so slow that a call's budget is spent, a process that was forked; `OptionError` for what
is no store.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from . import _forks
from ._errors import OptionError
from ._store import first_line, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PIECE = 5 << 20
"""Bytes of the parts in which large objects go up: the smallest that S3 takes, because each has
to be there within a time limit."""

_AT_ONCE = 2
"""Parts that are on their way at the same time.  They share the line, so each may take as many
times the time limit of a request: what counts is that one of them arrives within that."""

_PAGE = 1000
"""Objects that one answer of a listing names."""

_LARGEST = 64 << 20
"""Bytes that are read into memory at once; nothing that this library makes has more."""

_LONGEST = 3600.0
"""Seconds in which a large object has to be up or down; a store that falls silent meanwhile
fails after the time limit of one request."""

_used_in = 0
"""The process whose threads serve the requests: obstore has one set of them per process."""


class Listed(NamedTuple):
    """An object as listings show it."""

    name: str
    size: int
    modified: float


class StoreDown(Exception):
    """The object store can't be used; the cause says why."""


class _Parts:
    """The pieces of a large object, and for how long the store has asked for no more of them."""

    def __init__(self, content: Iterator[Any]) -> None:
        self._content = content
        self._given: float | None = None  # None: the next piece is being made
        self.size = 0
        self.failed: BaseException | None = None
        self.given_up = False

    def silent(self) -> float:
        """Return for how many seconds the store has been at what it was given last."""
        given = self._given
        return 0.0 if given is None else time.monotonic() - given

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                self._given = None
                piece = None if self.given_up else next(self._content, None)
                self._given = time.monotonic()
                if piece is None:
                    break
                self.size += len(piece)
                yield piece
        except GeneratorExit:  # the store failed and wants no more
            raise
        except BaseException as error:
            self.failed = error
            raise
        if self.given_up:
            raise StoreDown("it was given up")


class Bucket:
    """Objects under one prefix of an object store.

    Parameters
    ----------
    store
        What obstore makes, or its address, such as ``"s3://bucket/prefix"``.
    timeout
        Seconds for which the store may be silent during a request, and which small requests may
        take in all, where its own settings don't say otherwise; and the budget of a call.
    options
        Further settings for the store of an address, as `obstore.store.from_url` takes them.
    """

    def __init__(
        self, store: Any, timeout: float, options: Mapping[str, Any] | None = None
    ) -> None:
        try:
            import obstore
            from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
        except ImportError as error:
            raise OptionError("remote= needs obstore: pip install obstore") from error
        self._obstore: Any = obstore
        self._taken = (AlreadyExistsError, PreconditionError)
        self._errors = (BaseError, OSError, ValueError, NotImplementedError)
        self.requests = 0
        self._counts_for = os.getpid()
        self._timeout = timeout
        self._budget = threading.local()
        given = dict(options or {})
        self._store = open_store(store, timeout, timeout, given)
        self._down = open_store(store, timeout, _LONGEST, given)
        self._up = open_store(store, timeout * _AT_ONCE, _LONGEST, given)

    def asked(self) -> int:
        """Return how many requests this process has made, not those of one it was forked from."""
        if self._counts_for != os.getpid():
            self._counts_for, self.requests = os.getpid(), 0
        return self.requests

    @contextmanager
    def budget(self, *, bounded: bool = True) -> Iterator[None]:
        """Bound how long the small requests of the calling thread may take in all, or do not."""
        before = getattr(self._budget, "left", None)
        self._budget.left = self._timeout if bounded else None
        try:
            yield
        finally:
            self._budget.left = before

    def renew_budget(self) -> None:
        """Forget what the requests of the calling thread took."""
        if getattr(self._budget, "left", None) is not None:
            self._budget.left = self._timeout

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return an object's content and what names its version; `None` if there is none."""

        def get() -> tuple[bytes, str]:
            found = self._obstore.get(self._store, name)
            content = b"" if found.meta["size"] > _LARGEST else bytes(found.bytes())
            return content, _version(found.meta)

        answer: tuple[bytes, str] | None = self._ask(get, FileNotFoundError)
        return answer

    def written(self, name: str) -> float | None:
        """Return when an object was written, by the store's clock; `None` if there is none."""
        found = self._ask(lambda: self._obstore.head(self._store, name), FileNotFoundError)
        return None if found is None else float(found["last_modified"].timestamp())

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Yield an object's content in pieces; `None` if there is none."""
        found = self._ask(lambda: self._obstore.get(self._down, name), FileNotFoundError)
        return None if found is None else self._pieces(found)

    def _pieces(self, found: Any) -> Iterator[bytes]:
        """Yield what comes, as it comes: a store that sends little, for ever, is of no use."""
        stream = found.stream(min_chunk_size=1)
        waited, size = 0.0, 0
        while True:
            began = time.monotonic()
            try:
                piece = next(stream, None)
            except self._errors as error:
                raise StoreDown(first_line(error)) from error
            if piece is None:
                return
            waited += time.monotonic() - began
            size += len(piece)
            if size >= PIECE:
                waited, size = 0.0, 0
            elif waited > self._timeout:
                raise StoreDown("what it sends comes too slowly")
            yield piece

    def put(self, name: str, content: bytes | Iterator[Any]) -> str:
        """Store an object, whatever is there; in parts, if it comes in pieces and is large."""
        if isinstance(content, bytes):
            return _version(self._ask(lambda: self._obstore.put(self._store, name, content)))
        first = bytearray()
        for piece in content:
            first += piece
            if len(first) > PIECE:
                return self._put_parts(name, chain([bytes(first)], content))
        whole = bytes(first)
        return _version(self._ask(lambda: self._obstore.put(self._down, name, whole), small=False))

    def _put_parts(self, name: str, content: Iterator[Any]) -> str:
        """Store an object in parts; a store that takes none of them for too long is given up.

        obstore would first wait as long again to call the upload off; a thread is left with that.
        """
        parts = _Parts(content)
        put: list[Any] = []
        over = threading.Event()

        def send() -> None:
            try:
                put.append(
                    self._ask(
                        lambda: self._obstore.put(
                            self._up, name, parts, chunk_size=PIECE, max_concurrency=_AT_ONCE
                        ),
                        small=False,
                    )
                )
            except BaseException as error:
                # What went wrong with the content is not the store's fault.
                parts.failed = parts.failed or error
            finally:
                over.set()

        try:
            threading.Thread(target=send, name="atomcache", daemon=True).start()
        except RuntimeError:  # no more threads to be had
            send()
        longest = self._timeout * _AT_ONCE
        try:
            while not over.wait(max(0.001, longest - parts.silent())):
                if parts.silent() >= longest:
                    raise StoreDown("it has stopped to take what goes up")
        finally:
            parts.given_up = not over.is_set()
            self.requests += 1 + -(-parts.size // PIECE)  # the parts, and what joins them
        if parts.failed is not None:
            raise parts.failed
        return _version(put[0])

    def put_new(self, name: str, content: bytes) -> str | None:
        """Store an object if there is none of that name; `None` if there is."""
        put = self._ask(
            lambda: self._obstore.put(self._store, name, content, mode="create"), *self._taken
        )
        return None if put is None else _version(put)

    def put_if(self, name: str, content: bytes, version: str) -> str | None:
        """Replace that version of an object; `None` if there is another one by now, or none."""
        e_tag, _, number = version.partition("\n")
        known = {"e_tag": e_tag, "version": number}
        mode = {what: value for what, value in known.items() if value}
        put = self._ask(
            lambda: self._obstore.put(self._store, name, content, mode=mode),
            FileNotFoundError,  # as S3 says it
            *self._taken,
        )
        return None if put is None else _version(put)

    def delete(self, *names: str) -> None:
        """Remove objects, as far as they are there."""

        def delete(*some: str) -> bool:
            self._obstore.delete(self._store, list(some))
            return True

        done = self._ask(lambda: delete(*names), FileNotFoundError)
        if done is None and len(names) > 1:  # some stores stop at the first that is not there
            for name in names:
                self._ask(lambda name=name: delete(name), FileNotFoundError)

    def list(self, prefix: str, after: str | None = None) -> Iterator[Listed]:
        """Yield the objects under a prefix, in the order of their names."""
        self.check_process()
        self.requests += 1
        try:
            pages = self._obstore.list(self._store, prefix, offset=after, chunk_size=_PAGE)
            for number, some in enumerate(pages):
                self.requests += number > 0
                for each in some:
                    yield Listed(each["path"], each["size"], each["last_modified"].timestamp())
        except self._errors as error:
            raise StoreDown(first_line(error)) from error

    def _ask(self, step: Any, *nothing: type[Exception], small: bool = True) -> Any:
        """Do one request; `None` for errors that only say that there is nothing to be done."""
        self.check_process()
        left = getattr(self._budget, "left", None)
        if left is not None and left <= 0 and small:
            raise StoreDown("it answers so slowly that its time limit is spent")
        self.requests += 1
        began = time.monotonic()
        try:
            return step()
        except nothing:
            return None
        except self._errors as error:
            raise StoreDown(first_line(error)) from error
        finally:
            if left is not None and small:
                self._budget.left = left - (time.monotonic() - began)

    def check_process(self) -> None:
        """Refuse a forked child: the store's threads did not come along, and it would hang."""
        global _used_in
        self.asked()
        if not _used_in:
            _used_in = os.getpid()
        if _forks.unfit or _used_in != os.getpid():
            raise StoreDown(
                "this process was forked from one that had used a store; start processes by "
                "spawn or forkserver"
            )


def _version(meta: Any) -> str:
    """Return what names an object's version: S3 and Azure go by the first, Google by the other."""
    return f"{meta.get('e_tag') or ''}\n{meta.get('version') or ''}"
