"""Verifying finds every kind of damage, and removes what is damaged and nothing else."""

import errno
import os
import struct
from pathlib import Path

import pytest

from atomcache import Cache, _header
from atomcache._claim import claim_path, take
from atomcache._door import Door
from atomcache._keys import digest
from atomcache._layout import META, Layout
from atomcache._protocol import Protocol
from atomcache._verify import Verified, remove_damaged, verify
from atomcache._watch import Watch

from .crew import PATIENCE, leftovers, until

VALUE = {"name": "value", "numbers": [1, 2.5, None]}
PIECE = 1 << 20


def entry_of(cache, key="key", kind=b"v"):
    return Path(cache._layout.entry(digest(kind, key)))


def damages(cache, verified=None):
    return list(verify(cache._layout, verified))


def only(cache):
    [damage] = damages(cache)
    return damage


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def write(target):
    target.write_bytes(b"built")


def write_folder(target):
    (target / "in").mkdir(parents=True)
    (target / "in" / "file").write_bytes(b"built")


def through(cache, door):
    """Return the layout and protocol of a cache whose calls to the system go through `door`."""
    layout = Layout(door, str(cache.directory), False)
    return layout, Protocol(door, layout, Watch(door))


@pytest.fixture
def stored(cache):
    """Return a cache with one small value, and the value's file."""
    cache.set("key", VALUE)
    return cache, entry_of(cache)


@pytest.fixture
def built(cache):
    """Return a cache with one path, and the entry's folder."""
    cache.get_or_create_path("key", write, name="file")
    return cache, entry_of(cache, kind=b"p")


# -- what is whole ---------------------------------------------------------------------


def test_a_whole_cache_has_no_damage_and_is_counted(cache):
    cache.set("value", VALUE)
    cache.set("empty", b"", codec="bytes")
    cache.set("large", os.urandom(3 * PIECE), codec="bytes")
    cache.get_or_create("tagged", lambda: 1, max_age=60, tags=("a", "b"))
    cache.get_or_create_path("file", write, name="file")
    cache.get_or_create_path("folder", write_folder, name="folder", max_age=60)
    verified = Verified()
    assert damages(cache, verified) == []
    assert verified.entries == 6
    assert verified.size == sum(entry.size for entry in cache.entries())


def test_a_folder_that_is_not_there_is_an_empty_cache_and_is_not_made(tmp_path):
    cache = Cache(tmp_path / "none")
    verified = Verified()
    assert damages(cache, verified) == []
    assert verified == Verified(0, 0)
    assert not cache.directory.exists()


def test_verifying_is_no_use_of_an_entry(stored):
    cache, file = stored
    os.utime(file, (1000, 1000))
    assert damages(cache) == []
    assert file.stat().st_atime == 1000


def test_arrays_stored_apart_are_verified_and_their_padding_is(cache):
    np = pytest.importorskip("numpy")
    cache.set("key", [np.arange(5000), np.ones(4097)])
    file = entry_of(cache)
    whole = file.read_bytes()
    header = _header.parse(whole)
    rows = _header.read_rows(whole, header)
    assert len(rows) == 2
    assert damages(cache) == []
    inside = [_header.payload_start(header), rows[0][0] - 1, rows[0][0], rows[1][0] - 1]
    for position in (*inside, rows[1][0], len(whole) - 1):
        flip(file, position)
        assert "checksum of its payload" in only(cache).reason, position
        file.write_bytes(whole)
    file.write_bytes(whole + b"x")
    assert only(cache)


# -- what is not -----------------------------------------------------------------------


def test_a_change_of_any_byte_is_found(stored):
    cache, file = stored
    whole = file.read_bytes()
    for position in range(len(whole)):
        flip(file, position)
        damage = only(cache)
        assert damage.reason, f"byte {position} is not verified"
        assert (damage.path, damage.id, damage.kind) == (file, file.name, "value")
        file.write_bytes(whole)
    assert damages(cache) == []


def test_a_file_of_another_length_is_damaged(stored):
    cache, file = stored
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert only(cache).reason, f"{length} bytes pass for whole"
    file.write_bytes(whole + b"\0")
    assert only(cache).reason


def test_the_key_is_told_if_the_header_is_whole(stored):
    cache, file = stored
    flip(file, -1)
    assert only(cache).key == "key"
    flip(file, 100)
    assert only(cache).key == ""


def test_the_entry_of_another_key_is_damage(stored):
    cache, file = stored
    cache.set("other", 1)
    file.write_bytes(entry_of(cache, "other").read_bytes())
    damage = only(cache)
    assert damage.path == file
    assert "another key" in damage.reason


def test_what_is_neither_file_nor_folder_is_damage(stored):
    cache, file = stored
    other = cache.directory / "other"
    file.rename(other)
    file.symlink_to(other)
    assert "neither a file nor a folder" in only(cache).reason
    file.unlink()
    os.mkfifo(file)  # opening it would wait for ever
    assert "neither a file nor a folder" in only(cache).reason


def test_a_path_that_is_gone_is_damage(built):
    cache, folder = built
    (folder / "file").unlink()
    damage = only(cache)
    assert "gone" in damage.reason
    assert (damage.key, damage.kind, damage.path) == ("key", "path", folder)


def test_a_path_of_another_size_is_damage(built):
    cache, folder = built
    (folder / "file").write_bytes(b"built and more")
    assert "14 bytes and had 5" in only(cache).reason


def test_a_folder_that_has_lost_a_file_is_damage(cache):
    path = cache.get_or_create_path("key", write_folder, name="folder")
    (path / "in" / "file").unlink()
    assert "0 bytes and had 5" in only(cache).reason


def test_a_symlink_in_the_place_of_what_was_built_is_damage(built):
    cache, folder = built
    (folder / "file").rename(cache.directory / "elsewhere")
    (folder / "file").symlink_to(cache.directory / "elsewhere")
    assert "neither" in only(cache).reason


def test_a_path_without_meta_is_damage(built):
    cache, folder = built
    (folder / META).unlink()
    assert "no meta" in only(cache).reason
    os.mkfifo(folder / META)
    assert "meta" in only(cache).reason


def test_a_change_of_any_byte_of_a_meta_is_found(built):
    cache, folder = built
    whole = (folder / META).read_bytes()
    for position in range(len(whole)):
        flip(folder / META, position)
        assert only(cache).reason, f"byte {position} is not verified"
        (folder / META).write_bytes(whole)


def test_a_meta_whose_time_would_hide_its_expiry_is_damage(cache):
    path = cache.get_or_create_path("key", write, name="file", max_age=60)
    meta = path.parent / META
    assert damages(cache) == []
    os.utime(meta, (meta.stat().st_atime, 0))
    assert "never expires" in only(cache).reason


def test_what_the_disk_cannot_read_is_damage(stored):
    cache, file = stored

    class BadDisk(Door):
        def read(self, fd, size):
            raise OSError(errno.EIO, "bad sector")

    layout, protocol = through(cache, BadDisk())
    [damage] = verify(layout)
    assert damage.reason == "the disk can't read it"
    layout.door.read = os.read
    assert remove_damaged(protocol, damage)
    assert not file.exists()


def test_what_may_not_be_read_is_no_damage_and_keeps_nothing_else_from_being_read(cache):
    cache.set("mine", VALUE)
    cache.set("damaged", VALUE)
    cache.set("yours", VALUE)
    flip(entry_of(cache, "damaged"), -1)

    class Theirs(Door):
        def open_unnoticed(self, path):
            if path == str(entry_of(cache, "yours")):
                raise PermissionError(errno.EACCES, "not yours", path)
            return super().open_unnoticed(path)

    layout, _ = through(cache, Theirs())
    verified = Verified()
    found = verify(layout, verified)
    assert next(found).key == "damaged"
    with pytest.raises(PermissionError, match="not yours"):
        next(found)
    assert verified.entries == 2


# -- memory ----------------------------------------------------------------------------


class Counting(Door):
    """Knows the largest read."""

    largest = 0

    def read(self, fd, size):
        self.largest = max(self.largest, size)
        return os.read(fd, size)


def test_a_large_value_is_read_in_pieces(cache):
    cache.set("key", os.urandom(5 * PIECE + 1), codec="bytes")
    door = Counting()
    assert list(verify(through(cache, door)[0])) == []
    assert 0 < door.largest <= PIECE


def test_a_header_that_lies_about_its_length_is_not_believed(stored):
    cache, file = stored
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, 44, 2**32 - 1)  # the size of the meta
    assert _header.glance(content).meta_size == 2**32 - 1
    file.write_bytes(content)
    os.truncate(file, 2**26)
    door = Counting()
    [damage] = verify(through(cache, door)[0])
    assert damage.reason
    assert door.largest <= PIECE


# -- while others use the cache --------------------------------------------------------


class Interrupted(Door):
    """Does something once, just before the call of a given name."""

    def __init__(self, name, step):
        super().__init__()
        inner = getattr(self, name)

        def call(*args):
            nonlocal step
            now, step = step, None
            if now is not None:
                now()
            return inner(*args)

        setattr(self, name, call)


@pytest.mark.parametrize("call", ["lstat", "open_unnoticed", "read", "lseek"])
def test_a_value_that_is_removed_or_replaced_meanwhile_is_no_damage(stored, call):
    cache, file = stored
    flip(file, -1)
    assert list(verify(through(cache, Interrupted(call, file.unlink))[0])) == []
    cache.set("key", VALUE)
    flip(file, -1)
    door = Interrupted(call, lambda: cache.set("key", [VALUE, VALUE]))
    verified = Verified()
    assert list(verify(through(cache, door)[0], verified)) == []
    assert verified.entries == 1
    assert cache.get("key") == [VALUE, VALUE]


@pytest.mark.parametrize("call", ["lstat", "open_unnoticed", "read", "listdir"])
def test_a_path_that_is_removed_or_replaced_meanwhile_is_no_damage(cache, call):
    path = cache.get_or_create_path("key", write_folder, name="folder")
    verified = Verified()

    def replace():
        cache.refresh_path("key", write_folder, name="folder")

    assert list(verify(through(cache, Interrupted(call, replace))[0], verified)) == []
    assert verified.entries == 1

    def remove():
        assert cache.remove("key")

    assert list(verify(through(cache, Interrupted(call, remove))[0])) == []
    assert not path.exists()


# -- removing --------------------------------------------------------------------------


def test_what_is_damaged_is_removed_and_built_anew(stored):
    cache, file = stored
    flip(file, -1)
    assert remove_damaged(cache._protocol, only(cache))
    assert not file.exists()
    assert leftovers(cache.directory) == []
    assert cache.get_or_create("key", lambda: "new") == "new"
    assert damages(cache) == []


def test_who_subscribed_is_told_of_a_removal(stored):
    cache, file = stored
    events = []
    cache.on(events.append)
    flip(file, -1)
    damage = only(cache)
    assert events == []
    assert remove_damaged(cache._protocol, damage)
    assert [(event.kind, event.key) for event in events] == [("corrupt", "key")]
    assert events[0].details == {"path": str(file), "reason": damage.reason}


def test_a_damaged_path_is_removed_and_built_anew(built):
    cache, folder = built
    (folder / "file").write_bytes(b"")
    assert remove_damaged(cache._protocol, only(cache))
    assert not folder.exists()
    assert leftovers(cache.directory) == []
    path = cache.get_or_create_path("key", write, name="file")
    assert path.read_bytes() == b"built"
    assert damages(cache) == []


def test_what_is_gone_already_is_not_removed_twice(stored):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    file.unlink()
    assert not remove_damaged(cache._protocol, damage)
    assert leftovers(cache.directory) == []


def test_a_new_entry_in_its_place_stays(stored):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    cache.set("key", "new")
    assert not remove_damaged(cache._protocol, damage)
    assert cache.get("key") == "new"
    assert leftovers(cache.directory) == []


def test_a_new_value_that_comes_at_the_last_moment_is_put_back(stored):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    door = Interrupted("rename", lambda: cache.set("key", "new"))
    assert not remove_damaged(through(cache, door)[1], damage)
    assert cache.get("key") == "new"
    assert leftovers(cache.directory) == []


def test_a_new_path_that_comes_at_the_last_moment_is_put_back(built, tmp_path):
    cache, folder = built
    other = Cache(tmp_path / "other")
    other.get_or_create_path("key", write, name="file")
    (folder / "file").unlink()
    damage = only(cache)

    def replace():
        folder.rename(tmp_path / "old")
        entry_of(other, kind=b"p").rename(folder)

    door = Interrupted("rename", replace)
    assert not remove_damaged(through(cache, door)[1], damage)
    assert cache.get_path("key").read_bytes() == b"built"
    assert leftovers(cache.directory) == []


def test_what_is_put_back_does_not_undo_a_removal(stored):
    """Somebody sets, we take that away by mistake, somebody removes: it must stay removed."""
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    door = Interrupted("rename", lambda: cache.set("key", "new"))
    put_back = door.link

    def link(*args):
        assert not cache.remove("key")  # nothing is there at the moment
        return put_back(*args)

    door.link = link
    assert not remove_damaged(through(cache, door)[1], damage)
    assert "key" not in cache
    assert leftovers(cache.directory) == []


def test_a_path_that_is_put_back_does_not_undo_a_removal(built, tmp_path):
    cache, folder = built
    other = Cache(tmp_path / "other")
    other.get_or_create_path("key", write, name="file")
    (folder / "file").unlink()
    damage = only(cache)

    class Busy(Door):
        renames = 0

        def rename(self, source, target):
            self.renames += 1
            if self.renames == 1:
                folder.rename(tmp_path / "old")
                entry_of(other, kind=b"p").rename(folder)
            if self.renames == 2:
                assert not cache.remove("key")
            os.rename(source, target)

    door = Busy()
    assert not remove_damaged(through(cache, door)[1], damage)
    assert door.renames >= 2
    assert "key" not in cache
    assert leftovers(cache.directory) == []


def build(line, cache):
    def factory():
        line.tell("building")
        line.hear("go on")
        return "new"

    return cache.get_or_create("key", factory)


def test_what_somebody_builds_anew_is_left_to_them(stored, crew):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    builder = crew.start(build, cache)
    builder.hear("building")
    assert not remove_damaged(cache._protocol, damage)
    assert file.exists()
    builder.tell("go on")
    assert builder.result() == "new"
    assert damages(cache) == []
    assert cache.get("key") == "new"


def test_a_claim_that_a_dead_builder_left_is_no_hindrance(stored, crew):
    cache, file = stored
    flip(file, -1)
    builder = crew.start(build, cache)
    builder.hear("building")
    builder.kill()
    assert leftovers(cache.directory)
    assert remove_damaged(cache._protocol, only(cache))
    assert not file.exists()
    assert leftovers(cache.directory) == []


def test_who_asks_while_a_damaged_entry_is_removed_waits_and_builds(stored, crew):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    asking = []

    def ask():
        asking.append(crew.start(get, cache))
        asking[0].hear("asking")

    assert remove_damaged(through(cache, Interrupted("rename", ask))[1], damage)
    assert asking[0].result() == "new"
    assert cache.get("key") == "new"
    assert leftovers(cache.directory) == []


def get(line, cache):
    line.tell("asking")
    return cache.get_or_create("key", lambda: "new", timeout=PATIENCE)


def test_an_owner_that_does_not_sign_is_not_disturbed(stored):
    cache, file = stored
    flip(file, -1)
    damage = only(cache)
    claim = take(cache._door, cache._layout, str(file), 30.0)
    try:
        assert not remove_damaged(cache._protocol, damage)
        assert os.path.exists(claim_path(str(file)))
    finally:
        claim.release()
    assert until(lambda: remove_damaged(cache._protocol, damage))
