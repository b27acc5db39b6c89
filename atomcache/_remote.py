"""Entries shared by machines through a bucket, by the protocol of the folder.

What it is for: the owner of a local claim, one per machine, asks here before it builds.  The
story is that of `_protocol`, with a store's own primitives::

    look      a plain get of data; if it is fresh, it comes down and nothing is built
    claim     a put of data.temp that succeeds only if there is none
    look      once more: somebody may have published before the claim was had
    build     run the factory, while a thread renews the claim: an update that succeeds only
              if nobody else has touched it
    publish   a put of data that succeeds only if nobody was first, nor has it changed
    wait      look at the claim, less and less often
    reap      a claim that has not changed for its whole lease, by our own clock, is taken
              over by an update that succeeds only for the first

An entry in the bucket is one object that holds what a reader judges it by, and a small content
too; a large one stands in an object of its own that is named in there, so that it can be
streamed and still be published in one step.  A removal is written down beside the entries, for the
other machines to drop their copies.

Who calls it: the protocol, under a local claim; `Cache`, to remove.  What may go wrong: while the
store can't be used, everything is built locally, with one warning.  Between machines, work may
be done twice; what is published is whole in any case.
"""

from __future__ import annotations

import json
import struct
import threading
from itertools import chain
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from ._bucket import PIECE, Bucket, StoreDown
from ._errors import DontStore, EntryNameError, OptionError
from ._failure import describe as describe_error
from ._failure import restore
from ._freshness import Want, fresh, holds
from ._header import HAS_INPUTS, NEVER, Damaged, parse, read_meta
from ._keys import describe
from ._layout import CLAIM
from ._log import logger
from ._publish import remove
from ._record import Record
from ._removals import Follower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from ._build import Build
    from ._claim import Claim
    from ._door import Door
    from ._header import Header
    from ._patience import Patience
    from ._protocol import Entry, Protocol
    from ._upkeep import Pruned

    T = TypeVar("T")

FOLDER = "v1"
"""The prefix of this layout of the bucket."""

REMOVED = f"{FOLDER}/removed/"

INLINE = 262_144
"""Bytes of content up to which an entry is one object: one request less per hit."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
PAUSE_SHARE = 4
"""A waiter pauses a quarter of the time waited so far, within these bounds (seconds): it is late
by a quarter at most, and asks some twenty times in the first minute."""

RENEWALS = 3
"""How often a claim is renewed per lease."""

FIRST_REST = 5.0
LONGEST_REST = 120.0
"""Seconds for which a store that failed is left alone; twice as long after each failure."""

QUIET = 600.0
"""Seconds between two warnings, of a store that comes and goes."""

_MOST_SEEN = 10_000

_AT_ONCE = 1000
"""Objects that one request of a store removes."""

_DIGEST = 20

_LATEST = 1e11
"""A time that no clock shows (seconds since the epoch)."""

_MAGIC = b"atomcache remote 1\n"
_LENGTH = struct.Struct("<I")


class Found:
    """An entry as it stands in the bucket.

    Attributes
    ----------
    etag
        Names its version.
    head
        What stands before the payload in the entry's local file.
    header
        The same, parsed.
    content
        What comes after the head; empty if it is in an object of its own.
    blob, total
        That object's name, if there is one, and the content's checksum.
    meta
        What the head says for people and listings.
    """

    def __init__(self, data: bytes, etag: str, digest: bytes) -> None:
        self.etag = etag
        start = len(_MAGIC) + _LENGTH.size
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise Damaged("it does not begin as an entry of this format")
        (size,) = _LENGTH.unpack_from(data, len(_MAGIC))
        try:
            about = json.loads(data[start : start + size])
            head_end = start + size + int(about["head"])
            self.blob = str(about["blob"])
            self.total = str(about["sum"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Damaged("its first part can't be read") from error
        self.head = data[start + size : head_end]
        self.content = data[head_end:]
        self.header: Header = parse(self.head)
        if self.header.digest != digest:
            raise Damaged("it is the entry of another key")
        if self.blob and not self.blob.startswith(f"{object_name(digest)}."):
            raise Damaged("its content is said to be elsewhere")
        created, expires = self.header.created, self.header.expires
        if not (0 <= created < _LATEST and (0 <= expires < _LATEST or expires == NEVER)):
            raise Damaged("its times make no sense")
        try:
            self.meta = read_meta(self.head, self.header)
        except ValueError as error:
            raise Damaged("what it says of itself can't be read") from error


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
        self._rest_until = 0.0
        self._rest = 0.0
        self._quiet_until = 0.0
        self._resting = threading.Lock()
        self._seen: dict[str, tuple[str, float]] = {}
        self.machine = ""
        self.followers: Follower | None = None

    def follow(self) -> None:
        """See from now on what other machines remove."""
        follower, self.followers = self.followers, None
        if follower is not None:
            follower.start()

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
        if not self.usable():
            return run()
        try:
            mine = self._fetch_or_claim(entry, claim, build, started, patience)
        except StoreDown as error:
            self.fail(error)
            return run()
        finally:
            patience.end()
        if mine is None:
            return run()
        if not isinstance(mine, RemoteClaim):
            return mine.made
        return self._build(entry, claim, build, mine, run)

    def _fetch_or_claim(
        self, entry: Entry, claim: Claim, build: Build, started: float, patience: Patience
    ) -> Fetched | RemoteClaim | None:
        """Return what came down, or a claim to build under, or nothing: build without one."""
        while True:
            found: Found | RemoteClaim | None = self._look(entry, started)
            if found is None:
                if self.read_only or entry.only_look:
                    return None
                found = self._claim(entry, claim, started, patience)
            if isinstance(found, RemoteClaim):
                return found
            try:
                return Fetched(self._fetch(entry, claim, build, found))
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

    def _look(self, entry: Entry, started: float) -> Found | None:
        """Return the entry as it stands in the bucket, if it is good enough."""
        answer = self.bucket.get(object_name(entry.digest))
        self._works()
        if answer is None:
            entry.replaces, entry.replaced_blob = "", ""
            return None
        entry.replaces, entry.replaced_blob = answer[1], ""
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

    def _fetch(self, entry: Entry, claim: Claim, build: Build, found: Found) -> Any:
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
            made = entry.receive(claim.scratch, found.head, coming)
            for _ in coming:  # an archive may end before its last piece does
                pass
            if checksum.hexdigest() != found.total:
                raise Damaged("the checksum of its content is wrong")
        except BaseException:
            build.fetched = False
            entry.forget_received(claim.scratch)
            raise
        build.ended = found.header.created
        build.took = found.header.took
        return made

    # -- claim, or wait --------------------------------------------------------------

    def _claim(
        self, entry: Entry, claim: Claim, started: float, patience: Patience
    ) -> RemoteClaim | Found:
        """Return a claim of this machine, or what another machine has published."""
        name = object_name(entry.digest) + CLAIM
        began = self.door.monotonic()
        tokens: set[str] = set()  # of the attempts that we have waited for
        gone, tries = True, 0
        while True:
            mine = RemoteClaim(self, name, entry, claim)
            if gone and mine.take(None):
                return self._look_again(entry, started, mine)
            other = self.bucket.get(name)
            gone = other is None
            if other is None:
                found = self._look(entry, started)
                if found is not None:
                    return found
                tries += 1
                if tries > 1:  # many are at it, or the store contradicts itself
                    self._wait(entry, patience, self.door.monotonic() - began, {})
                continue
            data, etag = other
            record = read_record(data)
            over = record.get("state") in ("failed", "revoked")
            if record.get("state") == "failed" and record.get("token") in tokens:
                error = restore(str(record.get("failure", "")))
                if error is not None and entry.options.on_error == "raise":
                    raise error
            may_be_silent = max(self.lease, _seconds(record.get("lease")))
            if over or self._silent(name, etag) >= may_be_silent:
                if mine.take(etag):
                    return self._look_again(entry, started, mine)
                continue
            tokens.add(str(record.get("token")))
            self._wait(entry, patience, self.door.monotonic() - began, record)

    def _silent(self, name: str, etag: str) -> float:
        """Return for how many seconds a claim has not changed, by our own clock.

        It is kept from call to call: those with a short `timeout` would never see a whole lease.
        """
        now = self.door.monotonic()
        seen = self._seen.get(name)
        if seen is None or seen[0] != etag:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            seen = self._seen[name] = etag, now
        return now - seen[1]

    def _look_again(self, entry: Entry, started: float, mine: RemoteClaim) -> RemoteClaim | Found:
        try:
            found = self._look(entry, started)
        except BaseException:
            mine.end()
            raise
        if found is None:
            return mine
        mine.end()
        return found

    def _wait(
        self, entry: Entry, patience: Patience, waited: float, record: dict[str, Any]
    ) -> None:
        left = patience.left()
        if left is not None and left <= 0:
            raise patience.ended(_owner(record))
        patience.begin()
        pause = min(max(waited / PAUSE_SHARE, FIRST_PAUSE), LONGEST_PAUSE)
        pause *= 0.5 + self.door.random()
        self.door.sleep(pause if left is None else min(pause, left))

    # -- build, publish --------------------------------------------------------------

    def _build(
        self,
        entry: Entry,
        claim: Claim,
        build: Build,
        mine: RemoteClaim,
        run: Callable[[], Any],
    ) -> Any:
        began = self.door.monotonic()
        mine.start_renewing()
        try:
            self._tell_tags(entry)
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
        if not self.behind:
            self._publish(entry, build, mine, head, content)
            return made

        def publish(published: bool) -> None:
            """Send what is published here already, when the local claim is gone."""
            if not published:
                mine.end()
                return
            build.lost_claim = False
            self._publish(entry, build, mine, head, entry.content())
            if build.lost_claim:  # so nobody else has it: a removal would not reach ours
                remove(self.door, entry.path, entry.layout.new_scratch(entry.path))

        build.behind = publish
        return made

    def _tell_tags(self, entry: Entry) -> None:
        """Say what tags a build carries, for `remove_tagged` elsewhere to revoke it."""
        try:
            self._put_tags(entry, entry.tags_of(None))
        except StoreDown as error:
            self.fail(error)

    def _put_tags(self, entry: Entry, tags: set[str]) -> None:
        for tag in tags:
            self.bucket.put(tag_name(tag, entry.digest), b"")

    def _publish(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, content: Iterator[Any]
    ) -> None:
        """Put what was built into the bucket, unless somebody was first; let go of the claim."""
        try:
            revoked = not self.behind and build.revoked()
            if revoked or not mine.confirm() or not self._put(entry, build, mine, head, content):
                build.lost_claim = True
        except StoreDown as error:
            self.fail(error)
        finally:
            mine.end()

    def _put(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, content: Iterator[Any]
    ) -> bool:
        """Return whether what was built is now the entry, or can't be: nobody was first."""
        name = object_name(entry.digest)
        prepared = self._prepare(entry, head, content)
        if prepared is None:
            return True
        data, blob = prepared
        self._put_tags(entry, entry.tags_of(build) - entry.tags_of(None))
        won = None
        if mine.confirm():  # it takes a while until all of a large content is there
            if entry.replaces:
                won = self.bucket.put_if(name, data, entry.replaces)
            else:
                won = self.bucket.put_new(name, data)
            if won is None and self._is_there(name, data):
                won = "its answer was lost"
        if won is None:
            if blob:
                self.bucket.delete(blob)
            return False
        if not mine.confirm():  # removed, or taken over, in the very moment of publishing
            self.bucket.delete(name, *([blob] if blob else []))
            return False
        if entry.replaced_blob:
            self.bucket.delete(entry.replaced_blob)
        if entry.anew:  # for others to drop the old one
            self._log({"digest": entry.digest.hex()})
        return True

    def _is_there(self, name: str, data: bytes) -> bool:
        found = self.bucket.get(name)
        return found is not None and found[0] == data

    def _prepare(
        self, entry: Entry, head: bytes, content: Iterator[Any]
    ) -> tuple[bytes, str] | None:
        """Return an entry's object, and the name of the one that its content went to."""
        from ._archive import Unfit

        blob = ""
        checksum = xxh3_128()

        def summed() -> Iterator[Any]:
            for part in content:
                for start in range(0, len(part), PIECE):
                    piece = part[start : start + PIECE]
                    checksum.update(piece)
                    yield piece

        pieces = summed()
        body = bytearray()
        try:
            for piece in pieces:
                body += piece
                if len(body) > INLINE:
                    blob = f"{object_name(entry.digest)}.{self.door.urandom(8).hex()}"
                    self.bucket.put(blob, chain([bytes(body)], pieces))
                    body.clear()
        except Unfit as why:
            logger().warning("%s is not shared with other machines: %s", entry.what(), why)
            return None
        about = {"head": len(head), "blob": blob, "sum": checksum.hexdigest()}
        told = json.dumps(about).encode()
        return b"".join([_MAGIC, _LENGTH.pack(len(told)), told, head, body]), blob

    def replace(self, entry: Entry, value: Any) -> None:
        """Put a value into the bucket, whatever is there, and have others drop the old one."""
        if self.read_only or not self.usable():
            return
        head, content, _ = entry.send(value, 0.0, None)
        try:
            prepared = self._prepare(entry, head, content)
            if prepared is None:
                return
            name = object_name(entry.digest)
            self._put_tags(entry, entry.tags_of(None))
            old = self.bucket.get(name)
            self.bucket.put(name, prepared[0])
            blob = "" if old is None else self._parts(old, entry.digest)[0]
            if blob:
                self.bucket.delete(blob)
            self._log({"digest": entry.digest.hex()})
        except StoreDown as error:
            self.fail(error)

    def name_of(self, digest: bytes) -> str | None:
        """Return under which name the bucket holds a path, if it does."""
        from ._path import check_name

        if not self.usable():
            return None
        try:
            answer = self.bucket.get(object_name(digest))
            if answer is None:
                return None
            found = Found(*answer, digest)
            return check_name(found.meta.get("name"))
        except StoreDown as error:
            self.fail(error)
        except (Damaged, EntryNameError) as why:  # a name is a path that is written to
            logger().warning("a damaged entry of the bucket is left out: %s", why)
        return None

    # -- remove ----------------------------------------------------------------------

    def remove(self, digest: bytes) -> None:
        """Remove an entry from the bucket, and from the other machines' folders by and by."""
        if self.read_only:
            return
        self._try(lambda: self._remove(digest, log=True))

    def remove_tagged(self, tag: str) -> None:
        """Remove all entries that carry a tag."""
        if self.read_only:
            return

        def remove() -> None:
            prefix = tag_name(tag, b"")
            for each in list(self.bucket.list(prefix)):
                digest = digest_of(each.name.rpartition("/")[2])
                if digest is not None:
                    self._remove(digest, log=False)
                self.bucket.delete(each.name)
            self._log({"tag": tag})

        self._try(remove)

    def clear(self) -> None:
        """Remove everything."""
        if self.read_only:
            return

        def clear() -> None:
            names = [each.name for each in self.bucket.list(f"{FOLDER}/")]
            # Claims first: whoever finds its claim gone does not publish, or takes it back.
            names.sort(key=lambda name: not name.endswith(CLAIM))
            names = [name for name in names if not name.startswith(REMOVED)]
            for start in range(0, len(names), _AT_ONCE):
                self.bucket.delete(*names[start : start + _AT_ONCE])
            self._log({"all": True})

        self._try(clear)

    def holds(self, digest: bytes, created: float) -> bool:
        """Tell whether the bucket's entry is the one that was made then."""
        answer = self.bucket.get(object_name(digest))
        try:
            return answer is not None and Found(*answer, digest).header.created == created
        except Damaged:
            return False

    def prune(self, max_bytes: int | None, max_age: float | None) -> Pruned:
        """Remove the oldest entries of the bucket beyond some limits."""
        from ._bucket_upkeep import prune

        return self._try(lambda: prune(self, max_bytes, max_age))

    def removed_since(self, when: float, known: set[str]) -> tuple[list[dict[str, Any]], set[str]]:
        """Return what was removed since a time but for what is known, and what is known now."""
        told, names = [], set()
        for each in self.bucket.list(REMOVED, f"{REMOVED}{int(when * 1000):015d}"):
            names.add(each.name)
            answer = None if each.name in known else self.bucket.get(each.name)
            record = {} if answer is None else read_record(answer[0])
            if record and record.get("by") != self.machine:
                told.append(record)
        return told, names

    def _remove(self, digest: bytes, *, log: bool) -> None:
        """Remove an entry; first the claim is revoked, so that no build brings it back."""
        name = object_name(digest)
        for _ in range(5):
            claimed = self.bucket.get(name + CLAIM)
            if claimed is None:
                break
            record = {**read_record(claimed[0]), "state": "revoked"}
            if self.bucket.put_if(name + CLAIM, write_record(record), claimed[1]):
                break
        answer = self.bucket.get(name)
        if answer is not None:
            blob, tags = self._parts(answer, digest)
            marks = [tag_name(tag, digest) for tag in tags]
            self.bucket.delete(name, *([blob] if blob else []), *marks)
        if log:
            self._log({"digest": digest.hex()})

    def _parts(self, answer: tuple[bytes, str], digest: bytes) -> tuple[str, list[str]]:
        """Return the object that holds an entry's content, if any, and its tags."""
        try:
            found = Found(*answer, digest)
        except Damaged as why:
            logger().info("the content of a damaged entry is left in the bucket: %s", why)
            return "", []
        return found.blob, found.meta["tags"]

    def _log(self, what: dict[str, Any]) -> None:
        now = self.door.time()
        name = f"{REMOVED}{int(now * 1000):015d}-{self.door.urandom(6).hex()}"
        self.bucket.put(name, write_record({**what, "at": now, "by": self.machine}))

    # -- when the store is down ------------------------------------------------------

    def usable(self) -> bool:
        """Tell whether the store is worth a try: not for a while after it failed."""
        return self.door.monotonic() >= self._rest_until

    def fail(self, error: StoreDown) -> None:
        """Leave the store alone for a while; warn once until it works again."""
        now = self.door.monotonic()
        with self._resting:
            if now >= self._rest_until:  # or several threads met the same failure
                self._rest = min(max(2 * self._rest, FIRST_REST), LONGEST_REST)
                self._rest_until = now + self._rest
            quiet = now < self._quiet_until
            if not quiet:
                self._quiet_until = now + QUIET
        tell = logger().info if quiet else logger().warning
        tell("the bucket can't be used, so everything is built and kept locally: %s", error)

    def _works(self) -> None:
        if self._rest:
            logger().info("the bucket can be used again")
            self._rest = 0.0

    def _try(self, step: Callable[[], T]) -> T:
        """Do what has to be told to others, or raise."""
        from ._errors import StorageError

        try:
            return step()
        except StoreDown as error:
            self.fail(error)
            raise StorageError(
                5, f"the bucket can't be changed: {error}. Try again when it can be reached", ""
            ) from error


class RemoteClaim:
    """A claim in the bucket that this machine wants, or has.

    Parameters
    ----------
    remote
        Whose it is.
    name
        The object's name.
    entry, claim
        What it is for, and the local claim that goes with it.
    """

    def __init__(self, remote: Remote, name: str, entry: Entry, claim: Claim) -> None:
        self._remote = remote
        self._bucket = remote.bucket
        self._door = remote.door
        self._name = name
        self._etag = ""
        self._told_at = 0.0
        self._count = 0
        self._lost = False
        self._ended = threading.Event()
        self._changing = threading.Lock()
        self._record = {
            "token": claim.token,
            "host": self._door.host(),
            "pid": self._door.getpid(),
            "started": self._door.time(),
            "lease": remote.lease,
            "key": describe(entry.key, 200),
            "state": "building",
        }

    def take(self, etag: str | None) -> bool:
        """Claim; `etag` is that of a dead claim to be taken over."""
        told = self._door.monotonic()
        data = write_record({**self._record, "count": self._count})
        if etag is None:
            mine = self._bucket.put_new(self._name, data)
        else:
            mine = self._bucket.put_if(self._name, data, etag)
        mine = mine or self._put_again(data)
        if mine is None:
            return False
        self._etag, self._told_at = mine, told
        return True

    def start_renewing(self) -> None:
        """Renew it from now on, in a thread."""
        threading.Thread(target=self._renew, name="atomcache", daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(self._remote.lease / RENEWALS):
            try:
                if not self.confirm():
                    return
            except StoreDown as error:
                logger().info("a claim could not be renewed: %s: %s", self._name, error)

    def confirm(self, **changes: Any) -> bool:
        """Renew the claim; `False` if it is another's by now, or was revoked."""
        with self._changing:
            if self._lost:
                return False
            self._count += 1
            told = self._door.monotonic()
            data = write_record({**self._record, **changes, "count": self._count})
            mine = self._bucket.put_if(self._name, data, self._etag) or self._put_again(data)
            if mine is None:
                self._lost = True
                return False
            self._etag, self._told_at = mine, told
            self._lost = bool(changes)  # nothing more is to be said
            return True

    def _put_again(self, data: bytes) -> str | None:
        """Change a claim that is another's or, if a store's answer was lost, still ours."""
        found = self._bucket.get(self._name)
        record = {} if found is None else read_record(found[0])
        if found is None or record.get("token") != self._record["token"]:
            return None
        if record.get("state") != "building":  # revoked
            return None
        return self._bucket.put_if(self._name, data, found[1])

    def end(self, failure: Exception | None = None) -> None:
        """Give the claim up; a failure stays there for those who wait to see."""
        self._ended.set()
        try:
            if failure is not None:
                self.confirm(state="failed", failure=describe_error(failure))
            else:
                self.let_go()
        except StoreDown as error:
            logger().info("a claim is left for others to take over: %s: %s", self._name, error)

    def let_go(self) -> None:
        """Remove the claim while it is certainly ours.

        A store removes whatever is there.  Nobody else takes it over before it has been silent for
        a whole lease, so within a part of that it is ours.
        """
        if self._lost:
            return
        silent = self._door.monotonic() - self._told_at
        if silent > self._remote.lease / RENEWALS and not self.confirm():
            return
        with self._changing:  # not while it is being renewed
            self._lost = True
            self._bucket.delete(self._name)


def open_remote(protocol: Protocol, given: dict[str, Any]) -> Remote:
    """Return the bucket that the parameters of a `Cache` name."""
    from ._options import seconds

    timeout = seconds("remote_timeout", given["remote_timeout"])
    if not timeout:
        raise OptionError("remote_timeout must be more than 0 seconds")
    if given["write"] not in ("sync", "async"):
        raise OptionError(f"write must be 'sync' or 'async', not {describe(given['write'])}")
    if not isinstance(given["read_only"], bool):
        raise OptionError(f"read_only must be True or False, not {describe(given['read_only'])}")
    bucket = Bucket(given["remote"], timeout, given["remote_options"])
    remote = Remote(
        protocol.door,
        bucket,
        protocol.lease,
        read_only=given["read_only"],
        behind=given["write"] == "async",
    )
    remote.machine = xxh3_128(
        f"{protocol.door.host()}\0{protocol.layout.directory}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    remote.followers = Follower(remote, protocol)
    return remote


def object_name(digest: bytes) -> str:
    """Return the name of an entry's object."""
    name = digest.hex()
    return f"{FOLDER}/{name[:2]}/{name}"


def tag_name(tag: str, digest: bytes) -> str:
    """Return the name of the empty object that says of an entry that it carries a tag."""
    from hashlib import blake2b

    return f"{tags_folder()}{blake2b(tag.encode(), digest_size=16).hexdigest()}/{digest.hex()}"


def tags_folder() -> str:
    """Return the prefix of all labels."""
    return f"{FOLDER}/tags/"


def write_record(record: dict[str, Any]) -> bytes:
    """Return what stands in a claim."""
    return json.dumps(record).encode()


def read_record(data: bytes) -> dict[str, Any]:
    """Return what a claim says; nothing, for what is none."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _seconds(told: object) -> float:
    """Return a lease as another machine told it, if it makes sense."""
    return float(told) if isinstance(told, int | float) and 0 < told <= 86_400 else 0.0


def _owner(record: dict[str, Any]) -> Record | None:
    """Return what a claim says, as that of a folder does; `None` if it can't be understood."""
    told = {name: str(record.get(name, "")) for name in ("token", "pid", "host", "started")}
    local = {"what": "", "boot": "", "device": "0", "locked": "0", "lease": "1"}
    try:
        return Record({**told, **local})
    except ValueError:
        return None


def digest_of(name: str) -> bytes | None:
    """Return the digest that a name from the bucket stands for, if it is one."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == _DIGEST else None
