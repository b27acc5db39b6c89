"""Whatever the ground does under the cache: a hit, a clear error or a bypass, never a hang."""

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import atomcache
from atomcache import Cache, EntryNameError, LayoutError, OptionError, StorageError
from atomcache._keys import digest

from .crew import PATIENCE, leftovers, sleepers, until

NOBODY = 65534
KINDS = ["value", "path"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes, mounts and limits of POSIX")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="needs root, to mount or to become another user",
)
counts_sleepers = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)


def ask(cache, kind, key, text="built", **options):
    """Return what is cached under `key`, as text, whichever kind it is."""
    if kind == "value":
        return cache.get_or_create(key, lambda: text, **options)
    path = cache.get_or_create_path(
        key, lambda target: target.write_text(text), name="made.txt", **options
    )
    return path.read_text()


def ask_in_vain(cache, kind, key, **options):
    with pytest.raises(StorageError) as caught:
        ask(cache, kind, key, **options)
    return caught.value


def never():
    raise AssertionError("a factory was called where there should be a hit")


def entry_of(cache, key, kind="value"):
    return Path(cache._layout.entry(digest(b"v" if kind == "value" else b"p", key)))


def tree(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@contextlib.contextmanager
def mounted(place, options):
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=PATIENCE)


@pytest.fixture
def open_place(tmp_path_factory):
    """Return a folder below which other users can go, unlike pytest's own."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="ground-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


# -- read-only -------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path):
    """Return a cache that holds ``"old"``, value and path, on a read-only filesystem."""
    with mounted(tmp_path / "mount", "size=1m") as place:
        cache = Cache(place / "cache")
        for kind in KINDS:
            assert ask(cache, kind, "old", "old") == "old"
        command = ["mount", "-o", "remount,ro", str(place)]
        subprocess.run(command, check=True, timeout=PATIENCE)
        yield cache


@as_root
def test_a_hit_works_in_a_read_only_cache(read_only):
    assert read_only.get_or_create("old", never) == "old"
    assert read_only.get("old") == "old"
    assert read_only.get_or_create_path("old", never, name="made.txt").read_text() == "old"
    assert read_only.get_path("old").read_text() == "old"
    assert "old" in read_only
    assert len(list(read_only.entries())) == 2


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_a_miss_in_a_read_only_cache_raises_a_storage_error_that_names_key_place_and_remedy(
    read_only, kind
):
    error = ask_in_vain(read_only, kind, "a-new-key")
    assert error.errno == errno.EROFS
    for part in ("a-new-key", str(read_only.directory), "Choose a folder", "on_store_error"):
        assert part in str(error)
    assert leftovers(read_only.directory) == []


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_a_miss_in_a_read_only_cache_builds_without_storing_on_request(read_only, kind):
    before = tree(read_only.directory)
    for text in ("once", "twice"):
        assert ask(read_only, kind, "new", text, on_store_error="bypass") == text
    assert tree(read_only.directory) == before


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_an_expired_entry_in_a_read_only_cache_is_never_returned_as_fresh(read_only, kind):
    error = ask_in_vain(read_only, kind, "old", max_age=0)
    assert error.errno == errno.EROFS
    assert ask(read_only, kind, "old", "new", max_age=0, on_store_error="bypass") == "new"


@as_root
def test_changing_a_read_only_cache_raises_a_storage_error(read_only):
    for change in (
        lambda: read_only.set("new", 1),
        lambda: read_only.remove("old"),
        read_only.clear,
    ):
        with pytest.raises(StorageError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    read_only.set("new", 1, on_store_error="bypass")
    assert read_only.get("new") is None
    assert read_only.get("old") == "old"


@pytest.mark.parametrize(
    "act",
    [
        lambda cache: cache.get("key"),
        lambda cache: "key" in cache,
        lambda cache: cache.remove("key"),
        lambda cache: cache.remove_tagged("tag"),
        lambda cache: cache.clear(),
        lambda cache: cache.prune(max_entries=1),
        lambda cache: cache.reap(),
        lambda cache: list(cache.entries()),
        lambda cache: list(cache.builds()),
    ],
)
def test_what_builds_nothing_tells_of_a_folder_that_cannot_be_read_and_advises_no_bypass(
    tmp_path, act
):
    place = tmp_path / "loop"
    place.symlink_to(place)  # which not even root can read
    with pytest.raises(StorageError) as caught:
        act(Cache(place))
    assert caught.value.errno == errno.ELOOP
    assert str(place) in str(caught.value)
    assert "bypass" not in str(caught.value)


@as_root
def test_an_error_of_a_bypassing_factory_reaches_the_caller(read_only):
    def fail():
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        read_only.get_or_create("new", fail, on_store_error="bypass")


def bypass(place, then):
    """Run a process that bypasses a cache that can't be made; return the path it got."""
    code = f"""
import os, sys
from atomcache import Cache
open(sys.argv[1], "w").close()
cache = Cache(sys.argv[1] + "/cache", on_store_error="bypass")
path = cache.get_or_create_path("key", lambda target: target.write_text("x"), name="made")
assert path.read_text() == "x"
{then}
print(path)
"""
    return Path(run(code, place / "file").strip())


def test_what_a_bypass_built_is_removed_when_the_process_ends(tmp_path):
    made = bypass(tmp_path, "")
    assert made.name == "made"
    assert not made.parent.exists()


def test_a_forked_child_that_ends_leaves_what_its_parent_bypassed(tmp_path):
    bypass(
        tmp_path,
        """
child = os.fork()
if not child:
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert path.read_text() == "x", "the child removed it"
""",
    )


def bypass_in_a_worker(line, directory):
    cache = Cache(directory, on_store_error="bypass")
    return cache.get_or_create_path("key", lambda target: target.write_text("x"), name="made")


def test_what_a_bypass_built_is_removed_when_a_worker_of_multiprocessing_ends(tmp_path, crew):
    (tmp_path / "file").touch()
    worker = crew.start(bypass_in_a_worker, tmp_path / "file" / "cache")
    made = worker.result()
    worker.process.join(PATIENCE)
    left = made.parent.exists()
    shutil.rmtree(made.parent, ignore_errors=True)
    assert not left


def run(code, *args, timeout=PATIENCE):
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(atomcache.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- another user ----------------------------------------------------------------------


def become_nobody():
    """Give up root for good, having imported what nobody may not be able to read."""
    import encodings.unicode_escape  # noqa: F401
    import importlib
    import json  # noqa: F401
    import logging  # noqa: F401
    import pkgutil
    import tempfile  # noqa: F401

    for module in pkgutil.iter_modules(atomcache.__path__):
        importlib.import_module(f"atomcache.{module.name}")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def ask_as_nobody(line, cache, kind, key, **options):
    become_nobody()
    try:
        return ask(cache, kind, key, "by nobody", **options)
    except StorageError as error:
        return error.errno, str(error)


def ask_as_root(line, cache):
    def factory():
        line.tell("building")
        line.hear("go on")
        return "by root"

    return cache.get_or_create("key", factory)


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_read_only_gets_hits_and_a_clear_error_for_a_miss(open_place, crew, kind):
    before = os.umask(0o022)
    try:
        cache = Cache(open_place / "cache", shared=True)
        assert ask(cache, kind, "old", "by root") == "by root"
    finally:
        os.umask(before)
    assert crew.start(ask_as_nobody, cache, kind, "old").result() == "by root"
    number, text = crew.start(ask_as_nobody, cache, kind, "a-new-key").result()
    assert number == errno.EACCES
    for part in ("a-new-key", str(cache.directory), "this user can write", "on_store_error"):
        assert part in text
    bypassing = Cache(cache.directory, shared=True, on_store_error="bypass")
    assert crew.start(ask_as_nobody, bypassing, kind, "new").result() == "by nobody"
    assert leftovers(cache.directory) == []
    assert len(list(cache.entries())) == 1


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_the_private_cache_of_another_user_is_a_clear_error_or_bypassed(open_place, crew, kind):
    cache = Cache(open_place / "cache")
    assert ask(cache, kind, "old", "by root") == "by root"
    number, text = crew.start(ask_as_nobody, cache, kind, "old").result()
    assert number == errno.EACCES
    assert str(cache.directory) in text
    bypassing = Cache(cache.directory, on_store_error="bypass")
    assert crew.start(ask_as_nobody, bypassing, kind, "old").result() == "by nobody"


@as_root
@counts_sleepers
def test_who_may_read_only_waits_for_the_build_of_another_user(open_place, crew):
    before = os.umask(0o022)
    try:
        cache = Cache(open_place / "cache", shared=True)
        cache.set("other", 0)
        builder = crew.start(umasked_build, cache)
        builder.hear("building")
    finally:
        os.umask(before)
    waiter = crew.start(ask_as_nobody, cache, "value", "key")
    claim = f"{entry_of(cache, 'key')}.temp"
    until(lambda: sleepers(claim) == 1 or waiter.connection.poll(0), "the waiter sleeps or ends")
    builder.tell("go on")
    assert crew.results() == ["by root", "by root"]


def umasked_build(line, cache):
    os.umask(0o022)
    cache._layout.make_room(str(entry_of(cache, "key")))
    return ask_as_root(line, cache)


# -- no space --------------------------------------------------------------------------

LARGE = 1 << 20


def fill(file):
    """Write into a file until the disk is full."""
    with contextlib.suppress(OSError):
        while True:
            os.write(file, bytes(4096))
    with contextlib.suppress(OSError):
        while True:
            os.write(file, b"\0")


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "mount", "size=256k") as place:
        yield place


@as_root
def test_a_value_that_does_not_fit_on_the_disk_raises_a_storage_error_and_leaves_nothing(
    small_disk,
):
    cache = Cache(small_disk / "cache")
    cache.set("old", "old")
    with pytest.raises(StorageError) as caught:
        cache.get_or_create("large", lambda: bytes(LARGE))
    assert caught.value.errno == errno.ENOSPC
    for part in ("large", str(cache.directory), "Make room", "on_store_error"):
        assert part in str(caught.value)
    with pytest.raises(StorageError):
        cache.set("large", bytes(LARGE))
    assert leftovers(cache.directory) == []
    assert cache.get_or_create("old", never) == "old"
    assert ask(cache, "value", "small") == "built"


@as_root
def test_a_value_that_does_not_fit_on_the_disk_is_returned_unstored_on_request(small_disk):
    cache = Cache(small_disk / "cache", on_store_error="bypass")
    calls = []
    assert cache.get_or_create("large", lambda: calls.append(1) or bytes(LARGE)) == bytes(LARGE)
    assert calls == [1]
    assert leftovers(cache.directory) == []
    assert cache.get("large") is None


@as_root
def test_a_path_that_does_not_fit_on_the_disk_tells_so_and_leaves_nothing(small_disk):
    cache = Cache(small_disk / "cache")
    with pytest.raises(OSError, match="No space left") as caught:
        cache.get_or_create_path("large", lambda t: t.write_bytes(bytes(LARGE)), name="made")
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(cache.directory) == []
    assert ask(cache, "path", "small") == "built"


@as_root
def test_a_path_that_does_not_fit_on_the_disk_is_built_elsewhere_on_request(small_disk):
    cache = Cache(small_disk / "cache", on_store_error="bypass")
    path = cache.get_or_create_path("large", lambda t: t.write_bytes(bytes(LARGE)), name="made")
    assert path.read_bytes() == bytes(LARGE)
    assert leftovers(cache.directory) == []


def fill_the_disk(target):
    file = os.open(target, os.O_CREAT | os.O_WRONLY)
    fill(file)
    os.close(file)


@as_root
def test_a_path_whose_meta_does_not_fit_raises_a_storage_error_and_leaves_nothing(small_disk):
    cache = Cache(small_disk / "cache")
    with pytest.raises(StorageError) as caught:
        cache.get_or_create_path("large", fill_the_disk, name="made")
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(cache.directory) == []
    assert cache.get_path("large") is None


@as_root
def test_a_path_whose_meta_does_not_fit_is_kept_elsewhere_on_request(small_disk):
    cache = Cache(small_disk / "cache", on_store_error="bypass")
    path = cache.get_or_create_path("large", fill_the_disk, name="made")
    assert path.name == "made"
    assert path.stat().st_size > 0
    assert cache.directory not in path.parents
    assert leftovers(cache.directory) == []


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_full_disk_hits_work_and_a_miss_is_a_storage_error_or_bypassed(small_disk, kind):
    cache = Cache(small_disk / "cache")
    assert ask(cache, kind, "old", "old") == "old"
    ballast = os.open(small_disk / "ballast", os.O_CREAT | os.O_WRONLY)
    fill(ballast)
    os.close(ballast)
    assert ask(cache, kind, "old", "wrong") == "old"
    error = ask_in_vain(cache, kind, "new")
    assert error.errno == errno.ENOSPC
    assert leftovers(cache.directory) == []
    assert ask(cache, kind, "new", "apart", on_store_error="bypass") == "apart"
    assert leftovers(cache.directory) == []
    (small_disk / "ballast").unlink()
    assert ask(cache, kind, "new", "stored") == "stored"


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_for_another_file_is_a_storage_error_or_bypassed(tmp_path, kind):
    with mounted(tmp_path / "mount", "size=1m,nr_inodes=32") as place:
        cache = Cache(place / "cache")
        assert ask(cache, kind, "old", "old") == "old"
        for free in range(4):
            number = 0
            with contextlib.suppress(OSError):
                while True:
                    (place / f"ballast{number}").touch()
                    number += 1
            for _ in range(free):
                number -= 1
                (place / f"ballast{number}").unlink()
            assert ask(cache, kind, "old", "wrong") == "old"
            key = f"a-key-in-a-shard-of-its-own-{free}"
            try:
                said = ask(cache, kind, key)
            except OSError as error:  # the builder's own error, if it got so far
                said = error.errno
            assert said == errno.ENOSPC or (said == "built" and free > 1)
            assert leftovers(cache.directory) == []
            assert ask(cache, kind, key, on_store_error="bypass") == "built"
            assert leftovers(cache.directory) == []
            for each in place.glob("ballast*"):
                each.unlink()


def build_too_much(line, directory):
    def factory():
        line.tell("building")
        line.hear("go on")
        return bytes(LARGE)

    try:
        return len(Cache(directory).get_or_create("large", factory))
    except StorageError as error:
        return error.errno


@as_root
@counts_sleepers
def test_nobody_hangs_who_waits_for_a_value_that_does_not_fit(small_disk, crew):
    directory = small_disk / "cache"
    builder = crew.start(build_too_much, directory)
    builder.hear("building")
    waiters = [crew.start(build_too_much, directory) for _ in range(3)]
    claim = f"{entry_of(Cache(directory), 'large')}.temp"
    until(lambda: sleepers(claim) == 3, "all waiters sleep")
    builder.tell("go on")
    assert builder.result() == errno.ENOSPC
    for waiter in waiters:
        tell(waiter)  # should the failure have found no room in the claim
        assert last_answer(waiter) == errno.ENOSPC
    assert leftovers(directory) == []


# -- too many open files ---------------------------------------------------------------

STARVE = """
import errno, os, resource, sys
from atomcache import Cache, StorageError
directory, kind, free, mode = sys.argv[1:]

def ask(cache, key, text="built", **options):
    if kind == "value":
        return cache.get_or_create(key, lambda: text, **options)
    path = cache.get_or_create_path(key, lambda t: os.mkdir(t), name="made", **options)
    assert os.path.isdir(path), path
    return "built"

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
cache = Cache(directory)
if mode == "warm":
    import logging, json, tempfile
    tempfile.gettempdir()
    ask(cache, "old")
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(int(free)):
    os.close(taken.pop())
said = None
try:
    said = ask(cache, "new")
except StorageError as error:
    assert error.errno == errno.EMFILE, error
    said = str(error)
try:
    apart = ask(cache, "newer", on_store_error="bypass")
finally:
    for each in taken:
        os.close(each)
cache.reap()  # a folder can't be removed without opening it: others may have to
left = sorted(name for _, folders, files in os.walk(directory) for name in folders + files
              if ".temp" in name)
assert not left, left
assert apart == "built", apart
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
assert len(held) == len(taken) + int(free), "descriptors were lost"
for each in held:
    os.close(each)
assert ask(cache, "later") == "built"
print(said)
"""


@pytest.mark.parametrize(  # a path asked for first of all can't even import its module
    ("kind", "mode"), [("value", "cold"), ("value", "warm"), ("path", "warm")]
)
@pytest.mark.parametrize("free", range(6))
def test_too_many_open_files_is_a_storage_error_or_bypassed_and_loses_nothing(
    tmp_path, kind, free, mode
):
    said = run(STARVE, tmp_path / "cache", kind, free, mode).strip()
    assert said == "built" or "limit of open files" in said
    if free == 0:
        assert "new" in said
        assert str(tmp_path) in said


def test_a_hit_keeps_no_file_open(tmp_path):
    cache = Cache(tmp_path / "cache")
    for kind in KINDS:
        ask(cache, kind, "key")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    try:
        for _ in range(300):
            for kind in KINDS:
                assert ask(cache, kind, "key", "wrong") == "built"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


# -- deleted under us ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_folder_deleted_between_calls_is_made_anew(cache, kind):
    for text in ("first", "second", "third"):
        assert ask(cache, kind, "key", text) == text
        assert ask(cache, kind, "key", "wrong") == text
        shutil.rmtree(cache.directory)
    assert ("key" in cache) is False
    assert list(cache.entries()) == []
    assert cache.reap() == 0
    assert cache.clear() == 0
    assert cache.remove("key") is False
    cache.set("key", "set")
    assert cache.get("key") == "set"
    assert (cache.directory / "CACHEDIR.TAG").exists()


def test_a_value_is_stored_although_its_factory_deleted_the_cache_folder(cache):
    calls = []

    def factory():
        calls.append(1)
        shutil.rmtree(cache.directory)
        return "built"

    assert cache.get_or_create("key", factory) == "built"
    assert cache.get_or_create("key", never) == "built"
    assert calls == [1]
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_path_whose_folder_was_deleted_during_the_build_is_built_again(cache, when):
    calls = []

    def build(target):
        calls.append(1)
        if when == "after":
            target.write_text("built")
        if len(calls) == 1:
            shutil.rmtree(cache.directory)
        if when == "before":
            target.write_text("built")

    path = cache.get_or_create_path("key", build, name="made")
    assert path.read_text() == "built"
    assert calls == [1, 1]
    assert cache.directory in path.parents
    assert leftovers(cache.directory) == []


def test_a_path_whose_folder_is_deleted_in_each_build_is_a_storage_error_or_bypassed(cache):
    calls = []

    def build(target):
        calls.append(1)
        if len(calls) < 9:
            shutil.rmtree(cache.directory, ignore_errors=True)
        target.write_text("built")

    with pytest.raises(StorageError) as caught:
        cache.get_or_create_path("key", build, name="made")
    assert caught.value.errno == errno.ENOENT
    assert "key" in str(caught.value)
    assert str(cache.directory) in str(caught.value)
    assert 1 < len(calls) < 9
    calls.clear()

    def build_apart(target):
        calls.append(target)
        shutil.rmtree(cache.directory, ignore_errors=True)
        target.write_text("built")

    path = cache.get_or_create_path("key", build_apart, name="made", on_store_error="bypass")
    assert path.read_text() == "built"
    assert cache.directory not in path.parents


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_folder_that_becomes_a_file_during_the_build_is_an_error_or_bypassed(cache, kind):
    def become_a_file():
        shutil.rmtree(cache.directory)
        cache.directory.write_text("not a folder")
        return "built"

    def ask_once(**options):
        if kind == "value":
            return cache.get_or_create("key", become_a_file, **options)
        build = lambda target: (target.write_text("built"), become_a_file())  # noqa: E731
        path = cache.get_or_create_path("key", build, name="made", **options)
        return path.read_text()

    with pytest.raises(StorageError) as caught:
        ask_once()
    assert caught.value.errno == errno.ENOTDIR
    assert cache.directory.read_text() == "not a folder"
    cache.directory.unlink()
    if kind == "value":
        assert ask_once(on_store_error="bypass") == "built"


def build_when_told(line, cache, kind):
    def factory(target=None):
        line.tell("building")
        line.hear("go on")
        if target is None:
            return os.getpid()
        target.write_text(str(os.getpid()))
        return None

    if kind == "value":
        return cache.get_or_create("key", factory)
    return int(cache.get_or_create_path("key", factory, name="made").read_text())


@counts_sleepers
@pytest.mark.parametrize("kind", KINDS)
def test_those_who_wait_get_the_result_although_the_cache_folder_was_deleted(crew, cache, kind):
    builder = crew.start(build_when_told, cache, kind)
    builder.hear("building")
    for _ in range(4):
        crew.start(build_when_told, cache, kind)
    claim = f"{entry_of(cache, 'key', kind)}.temp"
    until(lambda: sleepers(claim) == 4, "all waiters sleep")
    shutil.rmtree(cache.directory)
    builder.tell("go on")
    for each in crew.members:  # whoever builds anew, because its path went with the folder
        tell(each)
    answers = [last_answer(member) for member in crew.members]
    assert len(set(answers)) == 1
    if kind == "value":
        assert answers[0] == builder.pid
    assert leftovers(cache.directory) == []


def tell(member):
    """Have a process go on if it should come to build; it may have ended by now."""
    with contextlib.suppress(BrokenPipeError):
        member.tell("go on")


def last_answer(member):
    """Return what a process returned, whatever it said before."""
    while True:
        assert member.connection.poll(PATIENCE), "a process hangs"
        kind, word = member.connection.recv()
        assert kind != "raised", word[1]
        if kind == "returned":
            return word


# -- strange things in the way ---------------------------------------------------------


def a_file(place):
    place.write_text("precious")


def a_dangling_link(place):
    place.symlink_to(place.parent / "nowhere")


def a_loop(place):
    place.symlink_to(place)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("obstacle", [a_file, a_dangling_link, a_loop])
@pytest.mark.parametrize("where", ["", "cache", "cache/v1", "shard"])
def test_something_else_in_the_place_of_a_folder_is_a_storage_error_or_bypassed(
    tmp_path, kind, obstacle, where
):
    base = tmp_path / "base"
    cache = Cache(base / "cache")
    place = entry_of(cache, "key", kind).parent if where == "shard" else base / where
    place.parent.mkdir(parents=True, exist_ok=True)
    obstacle(place)
    before = tree(tmp_path)
    error = ask_in_vain(cache, kind, "key")
    assert error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENOENT)
    assert str(base) in str(error)
    assert "on_store_error" in str(error)
    assert ask(cache, kind, "key", on_store_error="bypass") == "built"
    extra = set(tree(tmp_path)) - set(before)
    assert not {each for each in extra if ".temp" in each}
    if obstacle is a_file:
        assert place.read_text() == "precious"


PLANTED = """
import os, sys
from atomcache import Cache, StorageError
from atomcache._keys import digest
directory, what, suffix, kind, goal = sys.argv[1:]
cache = Cache(directory)
path = cache._layout.entry(digest(kind[0].encode(), "key")) + suffix
os.makedirs(os.path.dirname(path))
if what == "fifo":
    os.mkfifo(path)
elif what == "folder":
    os.mkdir(path)
elif what == "link":
    os.symlink(goal, path)
elif what == "dangling":
    os.symlink(goal + "-that-is-not-there", path)
elif what == "socket":
    import socket
    socket.socket(socket.AF_UNIX).bind(path)
def ask(**options):
    if kind == "value":
        return cache.get_or_create("key", lambda: "built", **options)
    made = cache.get_or_create_path("key", lambda t: t.write_text("built"), name="made", **options)
    return made.read_text()
try:
    said = ask()
except StorageError as error:
    said = "refused"
print(said, ask(on_store_error="bypass"))
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", ".temp"], ids=["entry", "claim"])
@pytest.mark.parametrize("what", ["fifo", "folder", "link", "dangling", "socket"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_nothing_planted_in_the_place_of_an_entry_or_claim_makes_a_caller_hang_or_touch_it(
    what, suffix, kind
):
    import tempfile

    with tempfile.TemporaryDirectory() as place:  # short, for the name of the socket
        goal = Path(place, "goal")
        goal.write_text("precious")
        code = PLANTED.replace("import os, sys", "import os, sys, warnings\n", 1)
        code = code.replace("warnings\n", "warnings; warnings.simplefilter('ignore')\n", 1)
        said = run(code, Path(place, "c"), what, suffix, kind, goal, timeout=20)
        assert said.split() in (["built", "built"], ["refused", "built"])
        assert goal.read_text() == "precious"
        assert sorted(os.listdir(place)) == ["c", "goal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 200] * 25)], ids=["name", "path"])
def test_a_folder_whose_name_is_too_long_is_a_storage_error_or_bypassed(tmp_path, kind, name):
    cache = Cache(tmp_path / name)
    error = ask_in_vain(cache, kind, "key")
    assert error.errno == errno.ENAMETOOLONG
    assert "shorter path" in str(error)
    assert ask(cache, kind, "key", on_store_error="bypass") == "built"
    assert leftovers(tmp_path) == []


# -- names and keys --------------------------------------------------------------------

BAD_NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "/etc/passwd",
    "../up",
    "down/",
    "a\0b",
    ".atomcache",
    "x" * 256,
    "é" * 128,
    "\ud800",
    "a\udfff" * 3,
    b"bytes",
    5,
    None,
    Path("x"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_built(cache, name):
    with pytest.raises(EntryNameError):
        cache.get_or_create_path("key", never, name=name)
    assert not cache.directory.exists()
    ask(cache, "path", "key")
    before = tree(cache.directory.parent)
    with pytest.raises(EntryNameError):
        cache.get_or_create_path("key", never, name=name)
    assert tree(cache.directory.parent) == before


GOOD_NAMES = [
    "x" * 255,
    "é" * 127,
    "-rf",
    " ",
    "a\nb",
    "*",
    "😀.txt",
    "...",
    "CON",
    "a\\b",
    "\udc80",
    "x.temp",
]


@pytest.mark.parametrize("name", GOOD_NAMES, ids=lambda name: ascii(name)[:20])
def test_every_name_that_a_file_can_have_is_kept(cache, name):
    path = cache.get_or_create_path("key", lambda t: t.write_text("built"), name=name)
    assert path.name == name
    assert path.read_text() == "built"
    assert cache.get_or_create_path("key", never, name=name) == path
    assert cache.get_path("key") == path
    assert len(list(cache.entries())) == 1


def test_a_key_asked_for_under_another_name_is_refused(cache):
    ask(cache, "path", "key")
    with pytest.raises(EntryNameError, match=r"made\.txt"):
        cache.get_or_create_path("key", never, name="other.txt")
    assert leftovers(cache.directory) == []


KEYS = [
    "",
    b"",
    (),
    "../../../escape",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "nul\0nul",
    b"nul\0nul",
    "\n",
    "😀",
    "\ud800",
    "\udfff\ud800",
    ("\ud800",),
    "key",
    "KEY",
    "Key",
    b"key",
    "key ",
    "key.temp",
    "CON",
    "x" * 1_000_000,
    b"x" * 1_000_000,
    "é",
    "e\u0301",
    0,
    False,
    0.0,
    -0.0,
    None,
    "0",
    [],
    {},
    frozenset(),
]


def test_keys_of_any_length_and_characters_are_each_an_entry_inside_the_folder(tmp_path):
    cache = Cache(tmp_path / "deep" / "cache")
    for number, key in enumerate(KEYS):
        assert ask(cache, "value", key, f"value {number}") == f"value {number}"
        assert ask(cache, "path", key, f"path {number}") == f"path {number}"
    for number, key in enumerate(KEYS):
        assert cache.get_or_create(key, never) == f"value {number}"
        assert ask(cache, "path", key, "wrong") == f"path {number}"
    assert len(list(cache.entries())) == 2 * len(KEYS)
    assert sorted(os.listdir(tmp_path)) == ["deep"]
    assert sorted(os.listdir(tmp_path / "deep")) == ["cache"]
    assert sorted(os.listdir(cache.directory)) == [".gitignore", "CACHEDIR.TAG", "v1"]
    for shard in set(os.listdir(cache.directory / "v1")) - {"stats", "upkeep"}:
        for name in os.listdir(cache.directory / "v1" / shard):
            assert re.fullmatch(r"[0-9a-f]{40}", name)
            assert name[:2] == shard
    for key in KEYS:
        assert cache.remove(key) is True
    assert list(cache.entries()) == []


@pytest.mark.parametrize("key", ["../up", "nul\0", "\ud800", "x" * 1_000_000], ids=ascii)
def test_an_error_for_a_strange_key_can_be_told_and_stays_short(tmp_path, key):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    error = ask_in_vain(cache, "value", key)
    assert len(str(error)) < 3000
    str(error).encode()


# -- another layout --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bypass", [False, True])
def test_a_folder_of_another_layout_is_a_clear_error_and_stays_as_it_is(cache, kind, bypass):
    (cache.directory / "v2").mkdir(parents=True)
    (cache.directory / "v2" / "precious").write_text("precious")
    options = {"on_store_error": "bypass"} if bypass else {}
    with pytest.raises(LayoutError, match=r"v2.*v1") as caught:
        ask(cache, kind, "key", **options)
    assert str(cache.directory) in str(caught.value)
    with pytest.raises(LayoutError):
        cache.set("key", 1)
    assert tree(cache.directory) == ["v2", "v2/precious"]


def test_a_folder_that_merely_looks_like_another_layout_is_used(cache):
    for name in ("v", "v2.txt", "version", "src"):
        (cache.directory / name).mkdir(parents=True)
    assert ask(cache, "value", "key") == "built"


# -- options ---------------------------------------------------------------------------

LENGTHS = [-1, -0.5, float("nan"), float("-inf"), timedelta(seconds=-1), "1", b"1", True, [], 1j]
BAD_OPTIONS = {
    "max_age": [*LENGTHS, 10**400],
    "timeout": [*LENGTHS, 10**400],
    "on_error": ["", "Raise", "ignore", None, True, 1, ["raise"], {}],
    "on_store_error": ["", "raise ", "retry", None, False, 0, ["bypass"]],
    "codec": ["", "Data", "yaml", None, 5, object(), type, [], {}],
    "durable": [0, 1, None, "yes", []],
    "tags": ["tag", b"tag", 5, None, [""], [1], ["ok", None]],
    "maxage": [1],
    "unknown": [None],
    "lease": [5.0],
    "secret": [b"0123456789abcdef"],
}
CASES = [(name, value) for name, values in BAD_OPTIONS.items() for value in values]
CALLS = {
    "get_or_create": lambda cache, **o: cache.get_or_create("key", never, **o),
    "get_or_create_path": lambda cache, **o: cache.get_or_create_path(
        "key", never, name="made.txt", **o
    ),
    "get": lambda cache, **o: cache.get("key", **o),
    "get_path": lambda cache, **o: cache.get_path("key", **o),
    "set": lambda cache, **o: cache.set("key", 1, **o),
}


@pytest.mark.parametrize("hit", [False, True], ids=["miss", "hit"])
@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda each: ascii(each)[:20])
def test_a_wrong_option_is_an_option_error_at_the_call_also_on_a_hit(cache, name, value, hit):
    if hit:
        for kind in KINDS:
            ask(cache, kind, "key")
    for call in CALLS.values():
        with pytest.raises(OptionError) as caught:
            call(cache, **{name: value})
        assert name in str(caught.value)
    if hit:
        assert cache.get("key") == "built"
    else:
        assert not cache.directory.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [case for case in CASES if case[0] not in ("lease", "secret")],
    ids=lambda each: ascii(each)[:20],
)
def test_a_wrong_default_option_is_an_option_error_when_the_cache_is_made(tmp_path, name, value):
    with pytest.raises(OptionError, match=name):
        Cache(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("directory", ""),
        ("directory", None),
        ("directory", 5),
        ("directory", b"bytes"),
        ("directory", "a\0b"),
        ("directory", "\ud800"),
        ("allow", 5),
        ("allow", int),
        ("allow", [5]),
        ("allow", ["int"]),
        ("secret", "0123456789abcdef"),
        ("secret", b"short"),
        ("secret", 5),
        ("shared", 1),
        ("shared", None),
        ("lease", 0),
        ("lease", -1),
        ("lease", None),
        ("lease", "30"),
        ("lease", True),
        ("lease", float("nan")),
        ("lease", float("inf")),
        ("lease", 86_401),
        ("lease", 10**400),
    ],
    ids=lambda each: ascii(each)[:20],
)
def test_a_wrong_parameter_is_an_option_error_when_the_cache_is_made(tmp_path, name, value):
    parameters = {"directory": tmp_path / "cache", name: value}
    with pytest.raises(OptionError, match=name):
        Cache(**parameters)


def test_a_bucket_in_the_place_of_a_folder_is_an_option_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="remote="):
        Cache("s3://bucket/prefix")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", None, 5, b"x"], ids=ascii)
def test_an_application_name_that_is_not_a_plain_folder_name_is_an_option_error(name):
    with pytest.raises(OptionError, match="name"):
        Cache.for_app(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factory_that_can_not_be_called_is_an_option_error(cache, kind):
    ask_with = {
        "value": lambda: cache.get_or_create("key", None),
        "path": lambda: cache.get_or_create_path("key", None, name="made"),
    }
    with pytest.raises(OptionError, match="callable"):
        ask_with[kind]()
    assert not cache.directory.exists()


def test_a_folder_with_other_things_in_it_is_not_marked_as_a_cache(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    Cache(tmp_path).set("key", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "v1"]
