"""What the power leaves of a cache when it fails: whole, absent or detected, never torn.

Workers publish paths and values onto a filesystem whose disk is recorded (see `power`); the
power then fails at many a moment of the recording, and what a restart finds is compared with
the workers' own log, which is kept on another disk.  The same check is applied to paths that
were not forced onto the disk, in which it must find the damage that it is there for.
"""

import functools
import json
import logging
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from atomcache import Cache
from atomcache._door import Door
from atomcache._keys import digest

from .crew import Crew, leftovers
from .power import Cuts, Disk, NoPower

FILESYSTEMS = {"ext4": 192 << 20, "xfs": 320 << 20}
"""Kinds of filesystems, and disks that are large enough for each.  Not btrfs: Linux 6.18
crashes (BUG in vfs_get_tree) when it replays the log that a cut leaves there."""

SURVIVORS = (0.5, 0.0, 1.0, 0.2, 0.8)
"""Shares of what was written since the last flush that a cut leaves."""

LEASE = 0.05
"""Nobody who asks after the cut can see that a claim's owner is dead; it is waited out."""

DURABLE, RENEWED, HASTY, FORGETFUL, VALUE = "durable", "renewed", "hasty", "forgetful", "value"


# -- content that tells whether it is whole ----------------------------------------------

SIZES = (1, 70_000, 4096, 1_000_000, 4095, 300_000, 100)


def manifest(key):
    """Return the names and sizes of the files that make up a path; one is a plain file."""
    number = key[1]
    if number % 3:
        return {"": SIZES[number % len(SIZES)]}
    return {f"{'inner/' * (n % 2)}{n}": SIZES[(number + n) % len(SIZES)] // 4 for n in range(4)}


@functools.lru_cache(1000)
def content(key, name, size, generation=b""):
    """Return what belongs into one file: its generation, then bytes that follow from it all."""
    return generation + random.Random(f"{key}{name}{generation}").randbytes(size)


def write(target, key, generation=b""):
    for name, size in manifest(key).items():
        file = target / name if name else target
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(key, name, size, generation))


def state(target, key):
    """Tell whether what was built at `target` is whole, absent or torn, and how."""
    if not target.parent.exists():
        return "absent"
    generations = set()
    for name, size in manifest(key).items():
        file = target / name if name else target
        try:
            found = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return f"torn: without {name or 'its file'}"
        generation = found[:8] if key[0] == RENEWED else b""
        if found != content(key, name, size, generation):
            return f"torn: {name} has {len(found)} bytes, or others than were written"
        generations.add(generation)
    return "whole" if len(generations) == 1 else "torn: of several generations"


def value_of(key):
    return {"key": str(key), "bytes": content(key, "", SIZES[key[1] % len(SIZES)])}


# -- the workers -------------------------------------------------------------------------


class DoorThatForgets(Door):
    """A library that publishes without forcing onto the disk what it publishes."""

    def sync_tree(self, path):
        pass


def publish(line, place, log, keys):
    """Ask for all keys in turn; log when each was asked for, and when it was returned."""
    diary = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(event, key, **more):
        os.write(diary, json.dumps([time.monotonic(), event, key, more]).encode() + b"\n")

    cache = Cache(place, lease=LEASE)
    forgetful = Cache(place, lease=LEASE)
    forgetful._open(DoorThatForgets())
    for key in keys:
        kind = key[0]
        built = []

        def build(target, key=key, built=built):
            built.append(target)
            write(target, key, os.urandom(8) if key[0] == RENEWED else b"")

        note("ask", key)
        if kind == VALUE:
            cache.get_or_create(key, lambda key=key: value_of(key))
            if key[1] % 2:  # as if time had passed: the kernel wrote it out by itself
                entry = cache._layout.entry(digest(b"v", key))
                cache._door.sync_tree(entry)
                cache._door.sync_folder(os.path.dirname(entry))
        elif kind == RENEWED:
            cache.get_or_create_path(key, build, name="built", max_age=0)
        elif kind == FORGETFUL:
            forgetful.get_or_create_path(key, build, name="built")
        else:
            cache.get_or_create_path(key, build, name="built", durable=kind == DURABLE)
        note("return", key, built=bool(built))
    os.close(diary)


def plans(count):
    """Return the keys that each of three workers asks for: two the same, one its own."""
    shared = [
        key
        for n in range(count)
        for key in ((DURABLE, n), (VALUE, n), *([(RENEWED, n % 5)] if n % 2 else []))
    ]
    alone = [key for n in range(count) for key in ((HASTY, n), (FORGETFUL, n))]
    return [shared, shared, alone]


# -- the cuts ----------------------------------------------------------------------------


class Finding:
    """What one cut left of one entry: `entry` says what of it was told to whom before."""

    def __init__(self, cut, key, told, found) -> None:
        self.cut = cut
        self.key = key
        self.told = told
        self.found = found

    def __repr__(self):
        return f"cut {self.cut}: {self.key} ({self.told}): {self.found}"


def moments(records, events, count, seed):
    """Choose the records after which the power fails, half of them just before a return.

    The last return is always one of these, so that there is something to lose.
    """
    returns = [at for at, event, *_ in events if event == "return"]
    dice = random.Random(seed)
    inside = [n for n, record in enumerate(records) if returns[0] < record[0] < returns[-1]]
    chosen = dice.sample(inside, count - count // 2)
    for at in [*dice.sample(returns[1:-1], count // 2 - 1), returns[-1]]:
        chosen.append(max(n for n, record in enumerate(records) if record[0] < at))
    return sorted(chosen)


def told_before(events, moment):
    """Return what was said of each key by then: asked for, handed out, or built and returned."""
    told = {}
    for at, event, key, more in events:
        if at < moment:
            rank = 1 if event == "ask" else 2 if not more["built"] else 3
            key = tuple(key)
            told[key] = max(told.get(key, 0), rank)
    return {key: (None, "asked", "returned", "built")[rank] for key, rank in told.items()}


def examine(cut, cache, told, logged):
    """Compare a cache after a restart with what was told before the cut."""
    for key, known in told.items():  # as other programs would find it, without the library
        if key[0] != VALUE:
            folder = Path(cache._layout.entry(digest(b"p", key)))
            yield Finding(cut, key, known, state(folder / "built", key))
    for key in told:
        if key[0] in (VALUE, DURABLE, RENEWED):
            yield Finding(cut, key, "afterwards", ask_again(cache, key, logged))


def ask_again(cache, key, logged):
    """Ask the library after the restart; tell how it came to its answer."""
    rebuilt = []
    logged.clear()
    if key[0] != VALUE:
        generation = b"restored" if key[0] == RENEWED else b""
        path = cache.get_or_create_path(
            key,
            lambda target: rebuilt.append(1) or write(target, key, generation),
            name="built",
            durable=False,
        )
        found = state(path, key)
        return found if found != "whole" else "rebuilt" if rebuilt else "a hit"
    entry = cache._layout.entry(digest(b"v", key))
    there = os.path.lexists(entry)
    value = cache.get_or_create(key, lambda: rebuilt.append(1) or value_of(key))
    if value != value_of(key):
        return "torn: another value than was stored"
    if not rebuilt:
        return "a hit"
    if not there:
        return "rebuilt"
    if any(entry in message for message in logged):
        return "detected"
    return "not told of: there was an entry, rebuilt without a word"


class After:
    """All that was found after all cuts of one filesystem's disk."""

    def __init__(self, kind, findings, left) -> None:
        self.kind = kind
        self.findings = findings
        self.left = left

    def of(self, kind, *told):
        return [each for each in self.findings if each.key[0] == kind and each.told in told]

    def __str__(self):
        counts = Counter(
            (each.key[0], each.told, each.found.partition(":")[0]) for each in self.findings
        )
        lines = [f"  {n:6} {' '.join(what)}" for what, n in sorted(counts.items())]
        return "\n".join([f"{self.kind}:", *lines, f"  {len(self.left):6} left over after reap"])


def torn(findings):
    return [each for each in findings if each.found.startswith("torn")]


def play(folder, place, keys):
    """Let the workers publish; return the events of their log in the order of time."""
    logs = [folder / f"log-{n}" for n in range(3)]
    with Crew() as crew:
        for log, plan in zip(logs, plans(keys), strict=True):
            crew.start(publish, place, log, plan)
        crew.results()
    events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return sorted(events, key=lambda event: event[0])


def cut_power(folder, kind, count, keys):
    """Record a disk while workers publish; cut its power `count` times and look."""
    logged, findings, left = [], [], []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    log = logging.getLogger("atomcache")
    with Disk(folder, kind, FILESYSTEMS[kind]) as disk:
        events = play(folder, disk.place / "cache", keys)
    records = disk.records()  # with those of the unmounting, which come after all cuts
    cuts = Cuts(disk, records)
    log.addHandler(handler)
    try:
        for cut, last in enumerate(moments(records, events, count, kind)):
            place = cuts.restart(last, SURVIVORS[cut % len(SURVIVORS)], cut)
            told = told_before(events, records[last + 1][0])
            cache = Cache(place / "cache", lease=LEASE)
            door = Door()
            door._boot = "the kernel that was started after the cut"
            cache._open(door)
            findings += examine(cut, cache, told, logged)
            cache.reap()
            left += leftovers(cache.directory)
            cuts.end()
    finally:
        log.removeHandler(handler)
        cuts.end()
    return After(kind, findings, left)


@pytest.fixture(scope="module", params=FILESYSTEMS)
def after(request, thorough):
    """Return what was found after the power failed on one kind of filesystem."""
    kind = request.param
    count, keys = (100, 120) if thorough else (10, 30)
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        try:
            with Disk(folder, kind, FILESYSTEMS[kind]):
                pass
        except (NoPower, OSError) as error:
            pytest.skip(f"no recorded disk with {kind} can be mounted here: {error}")
    with tempfile.TemporaryDirectory(prefix="power-") as folder:
        found = cut_power(Path(folder), kind, count, keys)
    print(found)
    return found


# -- the promises ------------------------------------------------------------------------


def test_a_durable_path_that_was_returned_is_never_torn_by_a_power_cut(after):
    findings = after.of(DURABLE, "returned", "built")
    assert len(findings) > 50
    assert torn(findings) == []


def test_a_durable_path_is_there_after_a_power_cut_if_its_builder_returned(after):
    findings = after.of(DURABLE, "built")
    assert len(findings) > 50
    assert [each for each in findings if each.found != "whole"] == []


def test_a_durable_path_that_nobody_was_handed_yet_is_whole_or_absent(after):
    findings = after.of(DURABLE, "asked")
    assert torn(findings) == []


def test_a_path_that_was_being_renewed_is_one_generation_or_absent(after):
    findings = after.of(RENEWED, "asked", "returned", "built")
    assert len(findings) > 10
    assert torn(findings) == []


def test_a_value_is_whole_after_a_power_cut_or_detected_and_told_of(after):
    findings = after.of(VALUE, "afterwards")
    assert len(findings) > 50
    assert {each.found for each in findings} <= {"a hit", "rebuilt", "detected"}


def test_after_a_power_cut_the_library_gives_whoever_asks_a_whole_path(after):
    findings = after.of(DURABLE, "afterwards") + after.of(RENEWED, "afterwards")
    assert len(findings) > 50
    assert {each.found for each in findings} <= {"a hit", "rebuilt"}


# -- the controls ------------------------------------------------------------------------


def test_the_cuts_leave_both_whole_and_damaged_values(after):
    assert {each.found for each in after.of(VALUE, "afterwards")} >= {"a hit", "detected"}


def test_the_check_finds_what_a_power_cut_tears_where_durable_is_off(after):
    assert torn(after.of(HASTY, "returned", "built"))


def test_the_check_finds_a_library_that_forgets_to_force_paths_onto_the_disk(after):
    assert torn(after.of(FORGETFUL, "returned", "built"))
