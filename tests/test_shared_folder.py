"""On a folder that two machines share, where locks and exclusive creation hold for neither.

The machines are two mounts of one SeaweedFS folder (`tests/mounts.py`).  What is promised there:
nobody ever gets a torn value, nobody waits for ever, a dead owner is replaced, and builds that
were done twice are told and not hidden.
"""

import contextlib
import hashlib
import os
import random
import signal
import time

import pytest

from atomcache import Cache, StorageError

from .crew import Hang, leftovers, until
from .mounts import ground, mounts  # noqa: F401

LEASE = 2.0
SLACK = 20.0
"""Seconds that a crowded machine may take for what an idle one does in milliseconds."""

LONG_AGO = 1_000_000_000

KINDS = ["value", "file", "folder"]
every_kind = pytest.mark.parametrize("kind", KINDS)


# -- values that tell who made them, and whether they are whole --------------------------


def made_by(who, key):
    """Return a text that says who built it, and by its sum whether all of it is there."""
    body = f"{who} {key} {os.urandom(20_000).hex()}"
    return f"{hashlib.sha256(body.encode()).hexdigest()} {body}"


def maker(text, key):
    """Return who built it, if it is one whole answer to `key`."""
    told, _, body = text.partition(" ")
    assert hashlib.sha256(body.encode()).hexdigest() == told, f"torn: {text[:99]!r}"
    who, of, _ = body.split(" ")
    assert of == key, f"what was built for {of} was given for {key}"
    return who


def fill(target, who, key):
    """Make a folder whose files all say the same."""
    target.mkdir()
    text = made_by(who, key)
    for name in "abc":
        (target / name).write_text(text)


def read(made, kind):
    """Return what a file says, or all files of a folder."""
    if kind == "file":
        return made.read_text()
    assert sorted(os.listdir(made)) == ["a", "b", "c"], "a part of the folder is missing"
    texts = {(made / name).read_text() for name in "abc"}
    assert len(texts) == 1, "files of two builds are mixed"
    return texts.pop()


def ask(cache, kind, key, who, before=lambda: None, *, anew=False):
    """Return who built what there is for `key`."""
    if kind == "value":

        def factory():
            before()
            return made_by(who, key)

        get = cache.refresh if anew else cache.get_or_create
        return maker(get(key, factory), key)

    def builder(target):
        before()
        if kind == "file":
            target.write_text(made_by(who, key))
        else:
            fill(target, who, key)

    get = cache.refresh_path if anew else cache.get_or_create_path
    return maker(read(get(key, builder, name=f"made-{kind}"), kind), key)


def look(folder, kind, key="key"):
    """Return who built what there is for `key`; `None` if there is nothing."""
    cache = Cache(folder)
    if kind == "value":
        text = cache.get(key)
    else:
        made = cache.get_path(key)
        text = None if made is None else read(made, kind)
    return None if text is None else maker(text, key)


def there_is_none(folder, key="key"):
    cache = Cache(folder)
    return cache.get(key) is None and cache.get_path(key) is None


def agreed(mounts, kind, key="key"):
    """Return who built `key`, once both machines see the same build."""

    def same():
        found = {look(mount, kind, key) for mount in mounts}
        return found.pop() if len(found) == 1 else None

    return until(same, f"both machines see one {key}")


def claims(mount):
    return [path for path in leftovers(mount) if path.endswith(".temp")]


def left(mounts):
    """Return claims and scratch that both machines see.

    A mount may go on showing for a minute what is not on the server: its own claim, where the
    other one made the same at the same time.  Nobody can remove that.
    """
    seen = [{os.path.relpath(path, mount) for path in leftovers(mount)} for mount in mounts]
    return set.intersection(*seen)


def let_time_pass(mounts):
    """Make claims look as if nobody had touched them for years, on both machines."""

    def old():
        names = [name for name in left(mounts) if name.endswith(".temp")]
        found = [os.path.join(mount, name) for mount in mounts for name in names]
        with contextlib.suppress(OSError):  # gone since, or about to go
            for claim in found:
                os.utime(claim, (LONG_AGO, LONG_AGO))
            return all(os.stat(claim).st_mtime == LONG_AGO for claim in found)

    until(old, "both machines see old claims")


def nothing_left(mounts, *reapers):
    """Wait until nothing is left behind; some of the machines may have to reap."""

    def clean():
        # A lock of a dead process is let go by FUSE a moment after the process is gone.
        for mount in reapers:
            with contextlib.suppress(StorageError):  # for what `left` leaves out
                Cache(mount).reap()
        return not left(mounts)

    try:
        until(clean, "nothing is left")
    except Hang as error:
        raise AssertionError(left(mounts)) from error


# -- processes ---------------------------------------------------------------------------


def build(line, mount, kind, who, lease=LEASE):
    """Ask for the key; as builder say so, and wait for the word."""

    def say():
        line.tell(("building", time.monotonic()))
        line.hear("go on")

    cache = Cache(mount, lease=lease)
    asked = time.monotonic()
    got = ask(cache, kind, "key", who, say)
    return got, asked, cache.stats().process


def building(member):
    """Wait until a process builds; return since when, by the clock that all here share."""
    word, since = member.hear()
    assert word == "building"
    return since


def ask_for_many(line, mount, who, keys, seed):
    """Ask for all keys in some order; return who built them, and what was built here."""
    runs = []
    cache = Cache(mount, lease=LEASE)
    order = list(keys)
    random.Random(seed).shuffle(order)
    line.tell("ready")
    line.hear("go on")
    got = {}
    for kind, key in order:
        got[key] = ask(cache, kind, key, who, lambda key=key: runs.append(key))
    return got, runs, cache.stats().process


def ask_in_vain(line, mount, kind, who):
    """Ask with a factory that fails; return what was raised, and by how many runs."""
    runs = []

    def fail():
        runs.append(who)
        raise ValueError(f"the failure of {who}")

    cache = Cache(mount, lease=LEASE)
    line.tell("ready")
    line.hear("go on")
    with pytest.raises(ValueError, match="the failure of") as caught:
        ask(cache, kind, "key", who, fail)
    return str(caught.value), len(runs), cache.stats().process


def refresh_often(line, mount, kind, times):
    cache = Cache(mount, lease=LEASE)
    for number in range(times):
        # The path that is returned may be another machine's, or gone, by the time it is read.
        with contextlib.suppress(FileNotFoundError):
            assert ask(cache, kind, "key", f"r{number}", anew=True).startswith("r")


def read_until_told(line, mount, kind):
    """Read as often as possible; return how often there was something."""
    seen = 0
    line.tell("reading")
    while not line.connection.poll(0):
        # Where two names can't change places in one step there may be nothing for a moment.
        with contextlib.suppress(FileNotFoundError):
            seen += look(mount, kind) is not None
    return seen


@pytest.fixture
def both(mounts, crew):
    """Return a function that starts a process on one of the two machines."""

    def start(machine, function, *args):
        return crew.start(function, str(mounts["ab".index(machine)]), *args)

    return start


def at_once(members):
    """Let processes go on together; return what they returned."""
    for member in members:
        member.hear("ready")
    for member in members:
        member.tell("go on")
    return [member.result() for member in members]


# -- promises ----------------------------------------------------------------------------


def test_the_ground_lies(mounts):
    """Hold the tests below to their assumption, which a later SeaweedFS may change."""
    here, there = (mount / "created" for mount in mounts)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    one, other = os.open(here, flags), os.open(there, flags)  # both "exclusively"
    try:
        import fcntl

        for each in (one, other):
            fcntl.flock(each, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert os.fstat(one).st_dev != os.fstat(other).st_dev
    finally:
        os.close(one)
        os.close(other)


@pytest.mark.parametrize("seeds", ["aaaaaa", "abcdef"], ids=["in step", "mixed"])
def test_all_get_whole_answers_and_every_build_is_told(mounts, both, seeds):
    keys = [(kind, f"{kind}-{number}") for kind in KINDS for number in range(6)]
    names = ["a1", "b1", "a2", "b2", "a3", "b3"]
    results = at_once(
        [
            both(name[0], ask_for_many, name, keys, seed)
            for name, seed in zip(names, seeds, strict=True)
        ]
    )
    for kind, key in keys:
        assert {got[key] for got, _, _ in results} <= set(names)
        assert agreed(mounts, kind, key) in names
    for _, runs, counts in results:
        assert counts.builds + counts.duplicates == len(runs), "a build was hidden"
        assert (counts.failures, counts.errors, counts.corrupt) == (0, 0, 0)
    assert {run for _, runs, _ in results for run in runs} == {key for _, key in keys}
    let_time_pass(mounts)
    nothing_left(mounts, *mounts)


@every_kind
def test_a_dead_owner_on_the_other_machine_is_replaced(mounts, both, kind):
    dead = both("a", build, kind, "dead")
    building(dead)
    dead.kill()
    until(lambda: claims(mounts[1]), "the claim of the dead is seen")
    heir = both("b", build, kind, "heir")
    since = building(heir)
    heir.tell("go on")
    got, asked, counts = heir.result()
    assert since - asked <= 2 * LEASE + SLACK
    assert (got, counts.takeovers, counts.builds) == ("heir", 1, 1)
    assert agreed(mounts, kind) == "heir"
    nothing_left(mounts)


@every_kind
def test_a_dead_owner_on_the_same_machine_is_replaced_without_waiting_for_its_lease(
    mounts, both, kind
):
    dead = both("a", build, kind, "dead", 3600.0)
    building(dead)
    dead.kill()
    heir = both("a", build, kind, "heir", 3600.0)
    building(heir)
    heir.tell("go on")
    assert heir.result()[0] == "heir"
    assert agreed(mounts, kind) == "heir"
    nothing_left(mounts)


@every_kind
def test_who_was_stopped_past_its_lease_publishes_too_late_and_gets_what_is_there(
    mounts, both, kind
):
    late = both("a", build, kind, "late")
    building(late)
    os.kill(late.pid, signal.SIGSTOP)
    heir = both("b", build, kind, "heir")
    building(heir)
    heir.tell("go on")
    assert heir.result()[0] == "heir"
    until(lambda: look(mounts[0], kind) == "heir", "the other machine sees it")
    os.kill(late.pid, signal.SIGCONT)
    late.tell("go on")
    got, _, counts = late.result()
    assert got == "heir"
    assert (counts.builds, counts.duplicates) == (0, 1)
    assert agreed(mounts, kind) == "heir"
    nothing_left(mounts)


def test_an_owner_that_lives_keeps_its_claim_for_longer_than_a_lease(mounts, both):
    kind = "folder"
    builder = both("a", build, kind, "builder")
    began = building(builder)
    second = both("b", build, kind, "second")
    until(lambda: time.monotonic() - began > 3 * LEASE, "three leases have passed")
    builder.tell("go on")
    assert builder.result()[0] == "builder"
    got, _, counts = second.result()
    assert (got, counts.builds, counts.takeovers) == ("builder", 0, 0)
    nothing_left(mounts)


@every_kind
def test_a_builder_that_lives_keeps_its_scratch_when_the_other_machine_reaps(mounts, both, kind):
    builder = both("a", build, kind, "builder")
    building(builder)
    until(lambda: leftovers(mounts[1]), "the other machine sees that it builds")
    assert Cache(mounts[1]).reap() == 0
    builder.tell("go on")
    got, _, counts = builder.result()
    assert (got, counts.builds, counts.duplicates) == ("builder", 1, 0)
    nothing_left(mounts)


@every_kind
def test_a_factory_that_fails_fails_for_all_and_the_next_who_asks_builds(mounts, both, kind):
    names = ["a1", "b1", "a2", "b2"]
    results = at_once([both(name[0], ask_in_vain, kind, name) for name in names])
    for error, runs, counts in results:
        assert error.removeprefix("the failure of ") in names
        assert (counts.failures, counts.builds) == (runs, 0)
    assert ask(Cache(mounts[1]), kind, "key", "next") == "next"
    assert agreed(mounts, kind) == "next"
    nothing_left(mounts)


@every_kind
def test_what_one_machine_removes_is_gone_for_the_other_and_built_anew(mounts, kind):
    here, there = (Cache(mount, lease=LEASE) for mount in mounts)
    assert ask(here, kind, "key", "first") == "first"
    assert agreed(mounts, kind) == "first"
    assert there.remove("key") is True
    until(lambda: there_is_none(mounts[0]), "the other machine sees that it is gone")
    assert ask(here, kind, "key", "second") == "second"
    assert agreed(mounts, kind) == "second"
    nothing_left(mounts)


@every_kind
def test_a_removal_during_a_build_on_the_other_machine_leaves_a_whole_answer_or_none(
    mounts, both, kind
):
    builder = both("a", build, kind, "builder")
    building(builder)
    Cache(mounts[1]).remove("key")
    builder.tell("go on")
    assert builder.result()[0] == "builder"
    assert look(mounts[0], kind) in (None, "builder")
    for mount in mounts:
        assert ask(Cache(mount, lease=LEASE), kind, "key", "next") in ("builder", "next")
    agreed(mounts, kind)
    nothing_left(mounts)


@pytest.mark.parametrize(("kind", "machines"), [("value", "ab"), ("file", "a")])
def test_readers_see_whole_answers_while_machines_refresh(mounts, both, kind, machines):
    assert ask(Cache(mounts[0]), kind, "key", "first") == "first"
    agreed(mounts, kind)
    readers = [both(machine, read_until_told, kind) for machine in "ab"]
    for reader in readers:
        reader.hear("reading")
    for member in [both(machine, refresh_often, kind, 10) for machine in machines]:
        member.result()
    for reader in readers:
        reader.tell("enough")
        assert reader.result() > 0
    assert agreed(mounts, kind).startswith("r")
    let_time_pass(mounts)
    nothing_left(mounts, *mounts)


@every_kind
def test_what_the_dead_left_is_reaped_at_once_by_their_machine_and_later_by_another(
    mounts, both, kind
):
    for reaper in (0, 1):
        dead = both("a", build, kind, "dead")
        building(dead)
        dead.kill()
        until(lambda: claims(mounts[1]), "the claim of the dead is seen")
        if reaper == 1:
            left = sorted(leftovers(mounts[1]))
            assert Cache(mounts[1]).reap() == 0, "it may live"
            assert sorted(leftovers(mounts[1])) == left
            let_time_pass(mounts)
        nothing_left(mounts, mounts[reaper])
