"""Entries shared by machines through a bucket, by the protocol of the folder.

What it is for: the owner of a local claim, one per machine, asks here before it builds.  The
story is that of `_protocol`, with a store's own primitives::

    look      a plain get of data; if it is fresh, it comes down and nothing is built
    claim     a put of data.temp that succeeds only if there is none
    look      once more: somebody may have published before the claim was had
    build     run the factory, while a thread renews the claim: an update that succeeds only
              if nobody else has touched it
    publish   a put of data that succeeds only if nobody was first, nor has it changed
    release   an update of the claim that says that it is over, if it is still ours
    wait      look at the claim, less and less often
    reap      a claim that has not changed for its whole lease, by our own clock, is taken
              over by an update that succeeds only for the first

How an entry looks in the bucket is told in `_object`, whose turn it is to build in `_turn`, the
claim in `_bucket_claim`, publishing in `_upload`, and removals in `_removals`.

Who calls it: the protocol, under a local claim; `Asking`, for what is only looked for.  What may
go wrong: while the store can't be used, everything is built locally, with one warning.  Between
machines, work may be done twice; what is published is whole in any case.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from ._bring import Bringers
from ._bucket import Bucket, StoreDown
from ._bucket_claim import RemoteClaim
from ._errors import DontStore, EntryNameError
from ._following import Follower, drop, name_machine
from ._freshness import Want, fresh, holds
from ._header import HAS_INPUTS, Damaged
from ._log import logger
from ._object import GONE, Found, object_name
from ._outage import Outage
from ._publish import identify
from ._removals import Removals
from ._turn import Turns
from ._upload import BEATEN, REVOKED, Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ._build import Build
    from ._claim import Claim
    from ._door import Door
    from ._eviction import Pruned
    from ._patience import Patience
    from ._protocol import Entry, Protocol
    from ._watch import Watch


_MOST_BEHIND = 8
"""Results that go up at the same time in threads: each stays in memory meanwhile.  Whoever makes
one more sends it itself."""


class Gone(Exception):
    """What was to come down is not there any more."""


class Fetched:
    """What came down."""

    def __init__(self, made: Any) -> None:
        self.made = made


class Remote:
    """The bucket of one cache.

    Parameters
    ----------
    door
        For clocks and sleep.
    bucket
        The store.
    lease
        Seconds without a renewal after which another machine takes a claim over.
    read_only
        Only look: claim nothing, publish nothing.
    behind
        Whether what is built goes up in a thread, after its caller has it.
    """

    def __init__(
        self,
        door: Door,
        bucket: Bucket,
        lease: float,
        *,
        read_only: bool = False,
        behind: bool = False,
    ) -> None:
        self.door = door
        self.bucket = bucket
        self.lease = lease
        self.read_only = read_only
        self.behind = behind
        self.named: Callable[[], str] = lambda: ""
        self._machine = ""
        self._slots = threading.BoundedSemaphore(_MOST_BEHIND)
        self.outage = Outage(door)
        self.bringers = Bringers()
        self.watch: Watch | None = None
        self.turns = Turns(self)
        self.uploads = Uploads(self)
        self.removals = Removals(self)
        self.follower: Follower | None = None
        self._follows = False

    @property
    def machine(self) -> str:
        """What tells this machine from all others."""
        self._machine = self._machine or self.named()
        return self._machine

    def follow(self) -> None:
        """See from now on what other machines remove."""
        if not self._follows and self.follower is not None:
            self._follows = True
            self.follower.start()

    def make(
        self,
        entry: Entry,
        claim: Claim,
        build: Build,
        started: float,
        patience: Patience,
        run: Callable[[], Any],
    ) -> Any:
        """Return what `run` makes or what another machine made, under a local claim."""
        if not self.outage.usable():
            return run()
        self.begin(entry)

        def run_apart() -> Any:
            with self.bucket.budget(bounded=False):  # a factory may ask for other keys
                return run()

        with self.bucket.budget():
            return self._make(entry, claim, build, started, patience, run_apart)

    def _make(
        self,
        entry: Entry,
        claim: Claim,
        build: Build,
        started: float,
        patience: Patience,
        run: Callable[[], Any],
    ) -> Any:
        try:
            mine = self._fetch_or_claim(entry, claim, build, started, patience)
        except StoreDown as error:
            self.outage.note(error)
            return run()
        finally:
            patience.end()
        if mine is None:
            return run()
        if not isinstance(mine, RemoteClaim):
            return mine.made
        return self._build(entry, claim, build, mine, started, run)

    def _fetch_or_claim(
        self, entry: Entry, claim: Claim, build: Build, started: float, patience: Patience
    ) -> Fetched | RemoteClaim | None:
        """Return what came down, or a claim to build under, or nothing: build without one."""
        while True:
            found: Found | RemoteClaim | None = self.look(entry, started)
            if found is None:
                if self.read_only:
                    return None
                found = self.turns.take(entry, claim, started, patience)
            if found is None or isinstance(found, RemoteClaim):
                return found
            try:
                return Fetched(self.fetch(entry, claim.scratch, build, found))
            except Gone:  # replaced or removed while it came down; if not, it is of no use
                entry.unusable = found.etag
            except Damaged as why:
                logger().warning(
                    "a damaged entry of the bucket is built anew: %s: %s", entry.what(), why
                )
                entry.unusable = found.etag
            except OSError as error:  # the folder's trouble, which the protocol knows how to take
                logger().warning("%s can't be kept as it comes down: %s", entry.what(), error)
                return None

    # -- look ------------------------------------------------------------------------

    def look(self, entry: Entry, started: float) -> Found | None:
        """Return the entry as it stands in the bucket, if it is good enough."""
        answer = self.bucket.get(object_name(entry.digest))
        self.outage.end()
        if answer is None:
            entry.replaces, entry.replaced_blob = "", ""
            return None
        entry.replaces, entry.replaced_blob = answer[1], ""
        if answer[0] == GONE:
            return None
        try:
            found = Found(*answer, entry.digest)
        except Damaged as why:
            logger().warning(
                "a damaged entry of the bucket is built anew: %s: %s", entry.what(), why
            )
            return None
        entry.replaced_blob = found.blob
        return found if self._is_fresh(entry, found, started) else None

    def _is_fresh(self, entry: Entry, found: Found, started: float) -> bool:
        if found.etag == entry.unusable:
            return False
        since = started if entry.anew else 0.0
        want = Want(started, since=since)
        if not fresh(self.door, found.header, entry.options.max_age, want):
            return False
        if found.header.flags & HAS_INPUTS and not holds(found.meta):
            return False
        return entry.fits(found.header, found.meta)

    def fetch(self, entry: Entry, scratch: str, build: Build, found: Found) -> Any:
        """Bring an entry down into the scratch, verified; what is damaged counts as missing."""
        checksum = xxh3_128()
        build.fetched = True

        def pieces() -> Iterator[bytes]:
            came = iter([found.content])
            if found.blob:
                stream = self.bucket.stream(found.blob)
                if stream is None:
                    raise Gone
                came = stream
            for piece in came:
                checksum.update(piece)
                yield piece

        coming = pieces()
        try:
            made = entry.receive(scratch, found.head, coming)
            for _ in coming:  # an archive may end before its last piece does
                pass
            if checksum.hexdigest() != found.total:
                raise Damaged("the checksum of its content is wrong")
        except BaseException:
            build.fetched = False
            entry.forget_received(scratch)
            raise
        build.ended = found.header.created
        build.took = found.header.took
        entry.shared = found.header.created
        return made

    def begin(self, entry: Entry) -> None:
        """Note when an entry begins to be got, for `published` to tell what came between."""
        if self.follower is not None:
            entry.looked = self.follower.state()

    def published(self, protocol: Protocol, entry: Entry) -> None:
        """Look again, if need be, whether the bucket has what is now published here too.

        Whoever drops what other machines have removed can't drop what was not there yet; so this
        is only to be asked if this machine looked meanwhile, or does now.
        """
        entry.stands = identify(self.door, entry.path)
        if entry.shared is None or self.follower is None:
            return
        begun, ended = now = self.follower.state()
        if now == entry.looked and begun <= ended:
            return
        try:
            if not self.holds(entry.digest, entry.shared):
                protocol.remove(entry.path)
        except StoreDown as error:
            self.outage.note(error)

    # -- build, publish --------------------------------------------------------------

    def _build(
        self,
        entry: Entry,
        claim: Claim,
        build: Build,
        mine: RemoteClaim,
        started: float,
        run: Callable[[], Any],
    ) -> Any:
        began = self.door.monotonic()
        mine.start_renewing()
        try:
            self.uploads.tell_tags(entry, entry.tags_of(None))
            build.tagged = lambda tags: self.uploads.tell_tags(entry, tags)
            made = run()
        except DontStore:
            mine.end()
            raise
        except Exception as error:
            mine.end(failure=error)
            raise
        except BaseException:
            mine.end()
            raise
        if not claim.is_mine():
            return made  # a child forked by the factory
        build.took = self.door.monotonic() - began
        build.ended = self.door.time()
        try:
            head, content, _ = entry.send(made, build.took, build)
        except BaseException as error:  # such as a value that its codec can't store
            mine.end(failure=error if isinstance(error, Exception) else None)
            raise
        if self.behind and self._slots.acquire(blocking=False):
            build.behind = lambda published: self._send_behind(
                entry, build, mine, head, published=published
            )
            return made
        fate = self.uploads.publish(entry, build, mine, head, content)
        if fate == BEATEN:
            return self._take_theirs(entry, claim, build, started, made)
        build.lost_claim = fate == REVOKED
        return made

    def _take_theirs(
        self, entry: Entry, claim: Claim, build: Build, started: float, made: Any
    ) -> Any:
        """Return what another machine has published meanwhile; if it has not yet, what we made."""
        took = build.took or 0.0
        if self.watch is not None:
            self.watch.duplicate(entry.key, entry.what(), entry.path, took)
        try:
            found = self.look(entry, started)
            if found is not None:
                entry.set_aside(claim.scratch)
                try:
                    return self.fetch(entry, claim.scratch, build, found)
                except (Gone, Damaged, OSError) as why:
                    logger().info("what was published meanwhile can't be had: %s", why)
                    entry.take_back(claim.scratch)
        except StoreDown as error:
            self.outage.note(error)
        build.lost_claim = True
        return made

    def _send_behind(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, *, published: bool
    ) -> None:
        """Send what is published here already, when the local claim is gone."""
        try:
            if not published:
                mine.end()
                return
            with self.bucket.budget():
                content = entry.content()
                fate = self.uploads.publish(entry, build, mine, head, content, behind=True)
        finally:
            self._slots.release()
        if fate == BEATEN and self.watch is not None:
            self.watch.duplicate(entry.key, entry.what(), entry.path, build.took or 0.0)
        if fate == REVOKED and identify(self.door, entry.path) == entry.stands:
            # nobody else has it, so a later removal would not reach it
            drop(entry.layout, entry.path)

    def name_of(self, digest: bytes) -> str | None:
        """Return under which name the bucket holds a path, if it does."""
        from ._path import check_name

        if not self.outage.usable():
            return None
        try:
            answer = self.bucket.get(object_name(digest))
            if answer is None or answer[0] == GONE:
                return None
            found = Found(*answer, digest)
            return check_name(found.meta.get("name"))
        except StoreDown as error:
            self.outage.note(error)
        except (Damaged, EntryNameError) as why:  # a name is a path that is written to
            logger().warning("a damaged entry of the bucket is left out: %s", why)
        return None

    def holds(self, digest: bytes, created: float) -> bool:
        """Tell whether the bucket's entry is the one that was made then."""
        answer = self.bucket.get(object_name(digest))
        try:
            return answer is not None and Found(*answer, digest).header.created == created
        except Damaged:
            return False

    def has(self, entry: Entry) -> bool:
        """Tell whether the bucket has an entry that is good enough, of whatever name."""
        if not self.outage.usable():
            return False
        try:
            return self.look(entry, self.door.time()) is not None
        except StoreDown as error:
            self.outage.note(error)
            return False

    def prune(self, max_bytes: int | None, max_age: float | None) -> Pruned:
        """Remove the oldest entries of the bucket beyond some limits."""
        from ._bucket_upkeep import prune

        return self.outage.insist(lambda: prune(self, max_bytes, max_age))


def open_remote(protocol: Protocol, given: dict[str, Any]) -> Remote:
    """Return the bucket that the parameters of a `Cache` name."""
    bucket = Bucket(given["remote"], given["remote_timeout"], given["remote_options"])
    remote = Remote(
        protocol.door,
        bucket,
        protocol.lease,
        read_only=given["read_only"],
        behind=given["write"] == "async",
    )
    remote.watch = protocol.watch
    protocol.watch.requests = bucket.asked
    layout = protocol.layout
    remote.named = lambda: name_machine(layout)
    remote.follower = Follower(remote, protocol)
    return remote
