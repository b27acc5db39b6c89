"""What input files hold is part of the key, and looking at them costs next to nothing."""

import asyncio
import os
import pickle
import shutil
import threading
import time

import pytest

from atomcache import (
    Cache,
    InputError,
    MissingInputError,
    OptionError,
    _inputs,
    current_build,
)

from .crew import leftovers, sleepers, until

counts_sleepers = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)
needs_fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


def counted(cache, *inputs, **options):
    """Return a function that asks, and returns the number of the build that it got."""
    builds = []

    def factory():
        builds.append(1)
        return len(builds)

    return lambda: cache.get_or_create("key", factory, inputs=list(inputs), **options)


def rewrite(path, content):
    """Write a file again until its ctime tells, which has a coarse grain."""
    before = path.stat().st_ctime_ns

    def written():
        path.write_text(content)
        return path.stat().st_ctime_ns != before

    until(written, "the file's ctime changes")


@pytest.fixture
def hashed(monkeypatch):
    """Return the names of files that are hashed from now on."""
    names = []
    hash_file = _inputs._hash

    def count(name):
        names.append(name)
        return hash_file(name)

    monkeypatch.setattr(_inputs, "_hash", count)
    return names


@pytest.fixture
def later(monkeypatch):
    """Let all files have been changed long ago."""
    monkeypatch.setattr(_inputs, "time", lambda: time.time() + 10)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a few files, some of them below another."""
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.csv").write_text("1")
    (folder / "b.txt").write_text("2")
    (folder / "deep" / "c.csv").write_text("3")
    return folder


# -- what counts ---------------------------------------------------------------------


def way(folder, name):
    """Return an input that leads to ``data/deep/c.csv`` in one way."""
    return {
        "file": folder / "deep" / "c.csv",
        "folder": folder,
        "pattern": f"{folder}/deep/*.csv",
        "pattern of all folders": f"{folder}/**/*.csv",
    }[name]


every_way = pytest.mark.parametrize(
    "name", ["file", "folder", "pattern", "pattern of all folders"]
)


@every_way
def test_a_change_of_content_builds_anew(cache, folder, name):
    ask = counted(cache, way(folder, name))
    assert [ask(), ask()] == [1, 1]
    (folder / "deep" / "c.csv").write_text("4")
    assert [ask(), ask()] == [2, 2]
    (folder / "deep" / "c.csv").write_text("3")
    assert ask() == 1


@every_way
def test_new_times_alone_build_nothing(cache, folder, name):
    ask = counted(cache, way(folder, name))
    ask()
    os.utime(folder / "deep" / "c.csv", (1, 1))
    (folder / "a.csv").touch()
    assert ask() == 1
    content = (folder / "deep" / "c.csv").read_text()
    (folder / "deep" / "c.csv").unlink()
    (folder / "deep" / "c.csv").write_text(content)
    assert ask() == 1


@pytest.mark.parametrize("name", ["folder", "pattern", "pattern of all folders"])
def test_a_new_name_builds_anew(cache, folder, name):
    ask = counted(cache, way(folder, name))
    ask()
    (folder / "deep" / "c.csv").rename(folder / "deep" / "d.csv")
    assert ask() == 2
    (folder / "deep" / "d.csv").rename(folder / "deep" / "c.csv")
    assert ask() == 1


@pytest.mark.parametrize("name", ["folder", "pattern", "pattern of all folders"])
def test_a_file_that_comes_or_goes_builds_anew(cache, folder, name):
    ask = counted(cache, way(folder, name))
    ask()
    (folder / "deep" / "new.csv").write_text("")
    assert ask() == 2
    (folder / "deep" / "c.csv").unlink()
    assert ask() == 3


def test_files_that_swap_their_content_build_anew(cache, folder):
    ask = counted(cache, folder)
    ask()
    (folder / "a.csv").write_text("2")
    (folder / "b.txt").write_text("1")
    assert ask() == 2


def test_only_what_a_pattern_matches_counts(cache, folder):
    ask = counted(cache, f"{folder}/**/*.csv")
    ask()
    (folder / "b.txt").write_text("other")
    (folder / "deep" / "new.txt").write_text("other")
    assert ask() == 1
    (folder / "a.csv").write_text("other")
    assert ask() == 2


def test_empty_folders_count(cache, folder):
    (folder / "empty").mkdir()
    ask = counted(cache, folder)
    ask()
    (folder / "empty").rmdir()
    assert ask() == 2
    (folder / "other").mkdir()
    assert ask() == 3


def test_an_empty_folder_is_no_empty_file(cache, tmp_path):
    thing = tmp_path / "thing"
    thing.mkdir()
    ask = counted(cache, thing)
    ask()
    thing.rmdir()
    thing.write_text("")
    assert ask() == 2


def test_hidden_files_of_a_folder_count(cache, folder):
    ask = counted(cache, folder)
    ask()
    (folder / ".hidden").write_text("")
    assert ask() == 2


def test_neither_order_nor_repetition_of_inputs_counts(cache, folder):
    a, b = folder / "a.csv", folder / "b.txt"
    asked = [counted(cache, *inputs) for inputs in ([a, b], [b, a], [a, b, a])]
    assert [ask() for ask in asked] == [1, 1, 1]
    assert len(list(cache.entries())) == 1


def test_one_folder_is_one_input_however_it_is_spelt(cache, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for spelling in ("data", "data/", "./data", ".//data/.", "data/./"):
        counted(cache, spelling)()
    assert len(list(cache.entries())) == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows takes .. for the folder before it")
def test_a_name_that_goes_back_from_a_link_is_that_file(cache, folder, monkeypatch):
    """``link/../b.txt`` stands beside what the link leads to, and not beside the link."""
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder.parent / "far" / "deep")
    (folder.parent / "far" / "deep").mkdir(parents=True)
    beyond = folder.parent / "far" / "b.txt"
    beyond.write_text("beyond")
    ask = counted(cache, "b.txt", "link/../b.txt")
    assert [ask(), ask()] == [1, 1]
    beyond.write_text("new")
    assert ask() == 2
    (folder / "b.txt").write_text("new")
    assert ask() == 3


@pytest.mark.skipif(os.name != "posix", reason="Windows takes .. for the folder before it")
def test_a_factory_may_name_a_file_that_goes_back_from_a_link(cache, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder.parent / "far" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder.parent / "far" / "deep")
    beyond = folder.parent / "far" / "b.txt"
    beyond.write_text("beyond")

    def read():
        current_build().input("link/../b.txt")
        return beyond.read_text()

    assert cache.get_or_create("key", read) == "beyond"
    beyond.write_text("new")
    assert cache.get_or_create("key", read) == "new"


def test_relative_inputs_are_taken_from_the_current_folder(cache, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "copy")
    ask = counted(cache, "a.csv")
    monkeypatch.chdir(folder)
    assert ask() == 1
    monkeypatch.chdir(tmp_path / "copy")
    assert ask() == 1
    (tmp_path / "copy" / "a.csv").write_text("other")
    assert ask() == 2


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(cache, folder):
    odd = folder / "a[1]*.csv"
    odd.write_text("1")
    ask = counted(cache, odd)
    ask()
    odd.write_text("2")
    assert ask() == 2


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_no_text_count_like_others(cache, folder):
    with open(os.fsencode(folder) + b"/\xff", "w") as file:
        file.write("1")
    ask = counted(cache, folder)
    assert [ask(), ask()] == [1, 1]
    with open(os.fsencode(folder) + b"/\xff", "w") as file:
        file.write("2")
    assert ask() == 2


def test_a_link_counts_by_what_it_leads_to(cache, folder):
    link = folder.parent / "link"
    link.symlink_to(folder / "a.csv")
    ask = counted(cache, link)
    ask()
    (folder / "a.csv").write_text("other")
    assert ask() == 2
    link.unlink()
    link.symlink_to(folder / "b.txt")
    assert ask() == 3


def test_a_link_to_a_file_in_a_folder_counts_by_what_it_leads_to(cache, folder, tmp_path):
    (tmp_path / "far").write_text("1")
    (folder / "link").symlink_to(tmp_path / "far")
    ask = counted(cache, folder)
    assert [ask(), ask()] == [1, 1]
    (tmp_path / "far").write_text("2")
    assert ask() == 2
    (tmp_path / "far").unlink()
    assert ask() == 3


@pytest.mark.parametrize("kind", ["folder", "around", "dangling", "loop"])
def test_another_link_in_a_folder_counts_by_where_it_points_to(cache, folder, tmp_path, kind):
    (tmp_path / "far").mkdir()
    link = folder / "link"
    points_to = {"folder": tmp_path / "far", "around": folder.parent, "loop": link}
    link.symlink_to(points_to.get(kind, "nowhere"))
    ask = counted(cache, folder)
    assert [ask(), ask()] == [1, 1]
    (tmp_path / "far" / "new").write_text("1")
    assert ask() == 1
    link.unlink()
    assert ask() == 2
    link.symlink_to("nothing")
    assert ask() == 3
    link.unlink()
    link.write_text("nothing")
    assert ask() == 4


def test_a_link_to_a_folder_can_be_an_input_itself(cache, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    ask = counted(cache, tmp_path / "link")
    ask()
    (folder / "deep" / "c.csv").write_text("other")
    assert ask() == 2


def test_inputs_are_part_of_the_key_beside_the_key_itself(cache, folder):
    assert cache.get_or_create("a", lambda: 1, inputs=[folder]) == 1
    assert cache.get_or_create("b", lambda: 2, inputs=[folder]) == 2
    assert cache.get_or_create("a", lambda: 3) == 3
    assert cache.get_or_create("a", lambda: 4, inputs=[]) == 3
    assert cache.get_or_create("a", lambda: 5, inputs=[folder / "a.csv"]) == 5


def test_paths_and_refreshes_take_inputs(cache, folder):
    texts = iter("abcd")

    def build(target):
        target.write_text(next(texts))

    def ask(how="get_or_create_path"):
        made = getattr(cache, how)("key", build, name="made", inputs=[folder])
        return made.read_text()

    assert [ask(), ask()] == ["a", "a"]
    assert cache.get_path("key", inputs=[folder]).read_text() == "a"
    (folder / "a.csv").write_text("other")
    assert [ask(), ask("refresh_path"), ask()] == ["b", "c", "c"]
    assert cache.refresh("key", lambda: 1, inputs=[folder]) == 1
    assert cache.refresh("key", lambda: 2, inputs=[folder]) == 2
    assert cache.get("key", inputs=[folder]) == 2
    assert leftovers(cache.directory) == []


# -- what is wrong with inputs -------------------------------------------------------


@pytest.mark.parametrize("missing", ["nothing", "*.nothing", "**/nothing", "deep/x/*", "a.csv/x"])
def test_a_missing_input_is_an_error_that_names_it(cache, folder, missing):
    ask = counted(cache, folder / "a.csv", f"{folder}/{missing}")
    with pytest.raises(MissingInputError) as caught:
        ask()
    assert isinstance(caught.value, FileNotFoundError)
    assert f"{folder}/{missing}" in str(caught.value)
    assert "inputs" in str(caught.value)
    assert list(cache.entries()) == []


def test_a_pattern_that_matches_folders_only_matches_no_file(cache, folder):
    with pytest.raises(MissingInputError, match="matches no file"):
        counted(cache, f"{folder}/de*")()


def look_at(line, cache, given):
    """Return the error that asking raises; a process of its own can't hang the test."""
    try:
        cache.get_or_create("key", lambda: "built", inputs=[given])
    except InputError as error:
        return type(error), str(error)


@needs_fifos
@pytest.mark.parametrize(
    "given", ["fifo", "", "f*", "**/f*"], ids=["itself", "in a folder", *"*2"]
)
def test_a_fifo_is_an_error_and_no_hang(crew, cache, tmp_path, given):
    place = tmp_path / "data"
    place.mkdir()
    os.mkfifo(place / "fifo")
    kind, text = crew.start(look_at, cache, str(place / given)).result()
    assert issubclass(kind, InputError)
    assert str(place / given) in text
    assert "inputs" in text


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file that nobody can read")
def test_a_file_that_can_not_be_read_is_an_error_that_names_it(cache):
    with pytest.raises(InputError, match=r"'/proc/self/mem' can't be read"):
        counted(cache, "/proc/self/mem")()


def look_without_rights(line, cache, given, place):
    """Look where the mode counts for this user: nobody, if we are root."""
    os.chdir(place)  # the folders above are private
    if os.geteuid() == 0:
        import encodings.unicode_escape  # noqa: F401  # what nobody may not be able to read
        import glob  # noqa: F401

        import atomcache._listing  # noqa: F401

        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    return look_at(line, cache, given)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of POSIX")
@pytest.mark.parametrize("given", ["closed.csv", "closed", "."], ids=["file", "folder", "below"])
def test_what_this_user_may_not_read_is_an_error_that_names_it(crew, tmp_path, given):
    place = tmp_path / "data"
    place.mkdir()
    place.chmod(0o755)
    (place / "closed.csv").write_text("1")
    (place / "closed").mkdir()
    if given != ".":
        (place / "closed.csv").chmod(0)
    (place / "closed").chmod(0)
    try:
        member = crew.start(look_without_rights, Cache(tmp_path / "cache"), given, str(place))
        kind, text = member.result()
    finally:
        (place / "closed").chmod(0o700)
    assert kind is InputError
    assert "closed" in text
    assert "can't be read" in text


@pytest.mark.parametrize(
    "inputs",
    ["file", b"file", 5, [5], [b"file"], [""], ["a\0b"], [None], None, [["file"]]],
    ids=repr,
)
def test_inputs_of_the_wrong_type_are_refused(cache, tmp_path, inputs):
    for ask in (
        lambda: cache.get_or_create("key", lambda: 1, inputs=inputs),
        lambda: cache.get("key", inputs=inputs),
        lambda: cache.set("key", 1, inputs=inputs),
        lambda: cache.memoize(inputs=inputs),
        lambda: cache.memoize(inputs=lambda a: inputs)(named)(1),
        lambda: Cache(tmp_path / "other", inputs=inputs),
    ):
        with pytest.raises(OptionError, match="inputs"):
            ask()


def named(a):
    return a


def test_a_single_path_is_refused(cache, folder):
    with pytest.raises(OptionError, match="inputs"):
        cache.get_or_create("key", lambda: 1, inputs=folder)


def test_a_function_is_refused_on_a_call(cache):
    with pytest.raises(OptionError, match="decorator"):
        cache.get_or_create("key", lambda: 1, inputs=lambda: ["file"])


# -- decorated functions -------------------------------------------------------------


def test_inputs_may_be_a_function_of_the_arguments(cache, folder):
    calls = []

    @cache.memoize(inputs=lambda name, *, times=1: [folder / name])
    def total(name, *, times=1):
        calls.append(name)
        return int((folder / name).read_text()) * times

    assert [total("a.csv"), total("b.txt"), total("a.csv"), total("a.csv", times=5)] == [
        1,
        2,
        1,
        5,
    ]
    assert calls == ["a.csv", "b.txt", "a.csv"]
    (folder / "a.csv").write_text("7")
    assert not total.cached("a.csv")
    assert total.cached("b.txt")
    assert [total("a.csv"), total("b.txt")] == [7, 2]
    assert calls == ["a.csv", "b.txt", "a.csv", "a.csv"]
    assert total.peek("a.csv") == cache.get(total.key("a.csv")) == 7
    assert total.refresh("a.csv") == 7
    assert total.forget("a.csv")
    assert not total.forget("a.csv")
    (folder / "a.csv").write_text("1")
    assert total.cached("a.csv")
    [*entries] = cache.entries()
    assert {entry.function for entry in entries} == {f"{__name__}.{total.__qualname__}"}
    assert total.forget_all() == len(entries) == 3
    with pytest.raises(MissingInputError, match="nothing"):
        total.key("nothing")


def test_fixed_inputs_count_for_every_call(cache, folder):
    calls = []

    @cache.builder(inputs=[folder])
    def copy(target, name):
        calls.append(name)
        shutil.copy(folder / name, target)

    assert [copy("a.csv").read_text(), copy("a.csv").read_text()] == ["1", "1"]
    (folder / "a.csv").write_text("7")
    assert copy("a.csv").read_text() == "7"
    assert copy.peek("a.csv") == cache.get_path(copy.key("a.csv"))
    assert calls == ["a.csv", "a.csv"]
    assert copy.forget_all() == 2


def test_methods_may_take_inputs_of_their_object(cache, folder):
    class Table:
        def __init__(self, path):
            self.path = path

        @cache.memoize(ignore=("self",), inputs=lambda self: [self.path])
        def total(self):
            return int(self.path.read_text())

    tables = [Table(folder / "a.csv"), Table(folder / "b.txt")]
    assert [table.total() for table in tables] == [1, 2]
    (folder / "a.csv").write_text("7")
    assert [table.total() for table in tables] == [7, 2]
    assert tables[0].total.cached()


# -- the other methods of the cache --------------------------------------------------


def test_get_set_and_remove_take_inputs(cache, folder):
    cache.set("key", "old", inputs=[folder])
    assert cache.get("key") is None
    assert cache.get("key", inputs=[folder]) == "old"
    (folder / "a.csv").write_text("other")
    assert cache.get("key", "nothing", inputs=[folder]) == "nothing"
    assert not cache.remove("key", inputs=[folder])
    cache.set("key", "new", inputs=[folder])
    assert cache.remove("key", inputs=[folder])
    assert cache.get("key", inputs=[folder]) is None
    (folder / "a.csv").write_text("1")
    assert cache.get("key", inputs=[folder]) == "old"
    with pytest.raises(MissingInputError):
        cache.get("key", inputs=[folder / "nothing"])


def test_inputs_may_be_a_default_of_the_cache(tmp_path, folder):
    cache = Cache(tmp_path / "cache", inputs=[folder])
    cache.set("key", "old")
    assert "key" in cache
    assert cache.get("key") == cache.get_or_create("key", named) == "old"
    (folder / "a.csv").write_text("other")
    assert "key" not in cache
    assert cache.get("key") is None
    assert not cache.remove("key")
    (folder / "a.csv").write_text("1")
    assert cache.remove("key")


@pytest.mark.parametrize("kind", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_a_cache_sent_elsewhere_keeps_its_inputs(tmp_path, folder, kind):
    cache = Cache(tmp_path / "cache", inputs=kind([str(folder)]))
    cache.set("key", "old")
    assert pickle.loads(pickle.dumps(cache)).get("key") == "old"


@pytest.mark.parametrize("given", ["folder", "folder through a link", "pattern"])
@pytest.mark.parametrize("place", ["below", "deeper", "itself"])
def test_a_cache_among_its_own_inputs_does_not_count(folder, given, place):
    cache = Cache(folder / {"below": "cache", "deeper": "deep/er/cache", "itself": "."}[place])
    (folder.parent / "link").symlink_to(folder)
    inputs = {"folder": folder, "folder through a link": folder.parent / "link"}
    ask = counted(cache, inputs.get(given, f"{folder}/**/*.csv"))
    assert [ask(), ask()] == [1, 1]
    cache.get_or_create_path("other", lambda target: target.write_text("1"), name="other.csv")
    assert ask() == 1
    (folder / "deep" / "c.csv").write_text("new")
    assert ask() == 2


def test_a_factory_that_names_a_folder_around_the_cache_is_told_so(folder):
    cache = Cache(folder / "deep" / "cache")
    with pytest.raises(InputError, match=r"the cache is in it.*elsewhere"):
        cache.get_or_create("key", lambda: current_build().input(folder))
    cache.get_or_create("key", lambda: current_build().input(folder / "a.csv"))


def test_what_stands_beside_the_entries_of_a_cache_counts(folder):
    cache = Cache(folder / "deep")
    ask = counted(cache, folder)
    ask()
    (folder / "deep" / "c.csv").write_text("new")
    assert ask() == 2


@pytest.mark.parametrize("pattern", [False, True])
def test_what_a_cache_has_built_can_be_an_input(cache, pattern):
    def build(target, content="1"):
        target.mkdir()
        (target / "made.csv").write_text(content)

    made = cache.get_or_create_path("made", build, name="made")
    ask = counted(cache, f"{made}/*.csv" if pattern else made)
    assert [ask(), ask()] == [1, 1]
    cache.refresh_path("made", lambda target: build(target, "2"), name="made")
    assert ask() == 2


# -- what a look costs ---------------------------------------------------------------


def many(folder, number=1000):
    folder.mkdir()
    for n in range(number):
        (folder / str(n)).write_text(str(n))
    return folder


def look_again(line, cache, inputs):
    """Look in another process; return what was found, and how many files were hashed."""
    names = []
    hash_file = _inputs._hash
    _inputs._hash = lambda name: (names.append(name), hash_file(name))[1]
    try:
        return cache.get("key", inputs=inputs), len(names)
    finally:
        _inputs._hash = hash_file


def test_a_second_look_at_unchanged_files_hashes_none(crew, cache, tmp_path, hashed, later):
    place = many(tmp_path / "many")
    ask = counted(cache, place)
    ask()
    assert len(hashed) == 1000
    assert ask() == ask() == 1
    assert len(hashed) == 1000
    [table] = (cache.directory / "v1" / "inputs").iterdir()
    assert crew.start(look_again, cache, [place]).result() == (1, 0)
    (place / "7").write_text("other")
    assert ask() == 2
    assert len(hashed) > 1000
    assert {os.path.basename(name) for name in hashed[1000:]} == {"7"}
    assert list(table.parent.iterdir()) == [table]


@pytest.fixture
def stats(monkeypatch):
    """Return the names that the system is asked about from now on, without times of opening."""
    names = []

    def counting(step):
        def asked(name, *given, **how):
            if isinstance(name, str):
                names.append(name)
            return step(name, *given, **how)

        return asked

    monkeypatch.setattr(os, "stat", counting(os.stat))
    monkeypatch.setattr(os, "lstat", counting(os.lstat))
    return names


@pytest.mark.parametrize("given", ["folder", "pattern", "paths", "links"])
def test_a_second_look_costs_one_stat_for_each_unchanged_file(
    cache, tmp_path, hashed, later, stats, given
):
    files = sorted(many(tmp_path / "many", 50).iterdir())
    (tmp_path / "links").mkdir()
    for file in files:
        (tmp_path / "links" / file.name).symlink_to(file)
    inputs = {
        "folder": [tmp_path / "many"],
        "pattern": [f"{tmp_path}/many/*"],
        "paths": files,
        "links": [tmp_path / "links"],
    }[given]
    ask = counted(cache, *inputs)
    ask()
    del hashed[:], stats[:]
    assert ask() == 1
    assert hashed == []
    in_folders = [
        name for name in stats if name.startswith(f"{tmp_path}/") and "cache" not in name
    ]
    asked_of = [os.path.basename(name) for name in in_folders]
    assert sorted(name for name in asked_of if name.isdigit()) == sorted(f.name for f in files)
    assert len([name for name in asked_of if not name.isdigit()]) <= 1


def test_a_hit_costs_one_stat_for_a_file_that_its_factory_named(cache, folder, later, stats):
    file = str(folder / "a.csv")

    def read():
        current_build().input(file)
        return 1

    cache.get_or_create("key", read)
    del stats[:]
    assert cache.get_or_create("key", read) == 1
    assert stats.count(file) == 1


def test_a_damaged_table_costs_hashes_and_changes_nothing(crew, cache, folder, hashed, later):
    ask = counted(cache, folder)
    ask()
    [table] = (cache.directory / "v1" / "inputs").iterdir()
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    assert crew.start(look_again, cache, [folder]).result() == (1, 3)
    table.unlink()
    assert crew.start(look_again, cache, [folder]).result() == (1, 3)


def test_files_changed_just_now_are_hashed_each_time(cache, folder, hashed):
    cache.set("key", 1, inputs=[folder])
    assert len(hashed) == 3
    cache.get("key", inputs=[folder])
    assert len(hashed) == 6
    assert not (cache.directory / "v1" / "inputs").exists()


def test_files_with_old_times_that_were_changed_just_now_are_hashed_each_time(
    cache, folder, hashed
):
    os.utime(folder / "a.csv", (1, 1))
    cache.set("key", 1, inputs=[folder / "a.csv"])
    cache.get("key", inputs=[folder / "a.csv"])
    assert len(hashed) == 2


def test_files_from_the_future_are_hashed_each_time(cache, folder, hashed, later):
    soon = time.time() + 1000
    os.utime(folder / "a.csv", (soon, soon))
    cache.set("key", 1, inputs=[folder / "a.csv"])
    cache.get("key", inputs=[folder / "a.csv"])
    assert len(hashed) == 2


@pytest.mark.parametrize("named_by", ["call", "factory"])
def test_a_file_that_was_new_when_its_reading_began_is_hashed_each_time(
    cache, folder, hashed, monkeypatch, named_by
):
    """It may have been changed while it was read, within one tick of the clock of its times."""
    file = folder / "a.csv"
    clock = [time.time()]
    hash_file = _inputs._hash

    def slowly(name):
        found = hash_file(name)
        clock[0] += 60
        return found

    monkeypatch.setattr(_inputs, "_hash", slowly)
    monkeypatch.setattr(_inputs, "time", lambda: clock[0])

    for number in (1, 2):
        clock[0] = time.time()
        if named_by == "call":
            cache.get("key", inputs=[file])
        else:
            cache.refresh("key", lambda: current_build().input(file))
        assert len(hashed) == number


@pytest.mark.skipif(os.name != "posix", reason="ctime is that of the change on POSIX only")
def test_a_change_that_keeps_size_and_mtime_is_noticed(crew, cache, folder, later):
    file = folder / "a.csv"
    ask = counted(cache, folder)
    ask()
    before = file.stat()
    rewrite(file, "9")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert crew.start(look_again, cache, [folder]).result()[0] is None
    assert ask() == 2


def test_a_file_put_in_the_place_of_another_is_noticed(cache, folder, later):
    file = folder / "a.csv"
    ask = counted(cache, folder)
    ask()
    before = file.stat()
    other = folder.parent / "other"
    other.write_text("9")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert ask() == 2


def test_clear_removes_the_tables_and_does_not_count_them(cache, folder, later):
    counted(cache, folder)()
    place = cache.directory / "v1" / "inputs"
    assert len(list(place.iterdir())) == 1
    assert len(list(cache.entries())) == 1
    assert cache.clear() == 1
    assert not place.exists()
    assert cache.clear() == 0
    assert counted(cache, folder)() == 1


def test_reap_sweeps_abandoned_scratch_of_tables(crew, cache, folder, later):
    counted(cache, folder)()
    [table] = (cache.directory / "v1" / "inputs").iterdir()
    scratch = table.with_name(f"{table.name}.temp.0123456789abcdef")
    scratch.write_text("half")
    assert cache.reap() == 1
    assert list(table.parent.iterdir()) == [table]
    assert cache.reap() == 0
    assert crew.start(look_again, cache, [folder]).result() == (1, 0)


# -- inputs that change --------------------------------------------------------------


class Meddler:
    """A key that changes a file whenever it is written down: after the look, before a build."""

    def __init__(self, file, times):
        self.file = file
        self.left = times

    def __atomcache_key__(self):
        if self.left:
            self.left -= 1
            self.file.write_text(f"changed, and {self.left} changes to come")
        return "meddler"


def ask_value(cache, key, factory, **options):
    return cache.get_or_create(key, factory, **options)


def ask_path(cache, key, factory, **options):
    def build(target):
        target.write_text(factory())

    return cache.get_or_create_path(key, build, name="made", **options).read_text()


def ask_async(cache, key, factory, **options):
    async def afactory():
        return factory()

    return asyncio.run(cache.aget_or_create(key, afactory, **options))


def ask_async_path(cache, key, factory, **options):
    async def build(target):
        target.write_text(factory())

    made = asyncio.run(cache.aget_or_create_path(key, build, name="made", **options))
    return made.read_text()


def ask_thread(cache, key, factory, **options):
    return asyncio.run(cache.aget_or_create(key, factory, **options))


def ask_memoized(cache, key, factory, **options):
    @cache.memoize(**options)
    def call(key):
        return factory()

    return call(key)


def ask_async_memoized(cache, key, factory, **options):
    @cache.memoize(**options)
    async def call(key):
        return factory()

    return asyncio.run(call(key))


BY_KEY = [ask_value, ask_path, ask_async, ask_async_path, ask_thread]
BY_CALL = [ask_memoized, ask_async_memoized]
ways_to_ask = pytest.mark.parametrize("ask", BY_KEY + BY_CALL)


@ways_to_ask
def test_every_way_to_ask_takes_inputs(cache, folder, ask):
    file = folder / "a.csv"
    builds = []

    def factory():
        builds.append(1)
        return file.read_text()

    assert [ask(cache, "key", factory, inputs=[folder]) for _ in range(2)] == ["1", "1"]
    file.write_text("2")
    assert [ask(cache, "key", factory, inputs=[folder]) for _ in range(2)] == ["2", "2"]
    assert len(builds) == 2
    with pytest.raises(MissingInputError, match="nothing"):
        ask(cache, "key", factory, inputs=[folder / "nothing"])


@pytest.mark.parametrize("ask", BY_KEY)
def test_inputs_that_change_before_the_build_begins_start_the_call_over(cache, folder, ask):
    file = folder / "a.csv"
    builds = []

    def factory():
        builds.append(1)
        return file.read_text()

    key = Meddler(file, 1)
    assert ask(cache, key, factory, inputs=[file]) == "changed, and 0 changes to come"
    assert ask(cache, key, factory, inputs=[file]) == "changed, and 0 changes to come"
    assert builds == [1]
    [entry] = cache.entries()
    file.write_text("1")
    assert ask(cache, key, factory, inputs=[file]) == "1"
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("ask", BY_KEY)
def test_inputs_that_keep_changing_are_an_error(cache, folder, ask):
    file = folder / "a.csv"
    builds = []
    with pytest.raises(InputError, match="changed 10 times") as caught:
        ask(cache, Meddler(file, 1000), lambda: builds.append(1), inputs=[file])
    assert str(file) in str(caught.value)
    assert builds == []
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


@ways_to_ask
def test_what_was_built_while_an_input_changed_is_returned_and_not_stored(cache, folder, ask):
    file = folder / "a.csv"
    builds = []

    def factory():
        builds.append(1)
        if len(builds) < 3:
            file.write_text(f"changed by build {len(builds)}")
        return f"build {len(builds)}"

    def answer():
        return ask(cache, "key", factory, inputs=[folder])

    assert answer() == "build 1"
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []
    assert answer() == "build 2"
    assert answer() == answer() == "build 3"
    assert len(list(cache.entries())) == 1
    file.write_text("1")
    assert answer() == "build 4"


def test_a_change_that_is_undone_during_the_build_is_noticed_by_content_only(cache, folder):
    def factory():
        (folder / "a.csv").write_text("9")
        (folder / "a.csv").write_text("1")
        return "built"

    assert cache.get_or_create("key", factory, inputs=[folder]) == "built"
    assert cache.get("key", inputs=[folder]) == "built"


@ways_to_ask
@pytest.mark.parametrize("whole", [False, True], ids=["file of several", "only file"])
def test_what_was_built_while_an_input_went_away_is_returned_and_not_stored(
    cache, folder, ask, whole
):
    def factory():
        (folder / "a.csv").unlink()
        return "built"

    inputs = [folder / "a.csv"] if whole else [folder]
    assert ask(cache, "key", factory, inputs=inputs) == "built"
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


def test_an_input_that_goes_away_before_the_build_is_an_error_that_names_it(cache, folder):
    class Remover:
        def __atomcache_key__(self):
            (folder / "a.csv").unlink(missing_ok=True)
            return "remover"

    builds = []
    with pytest.raises(MissingInputError, match=r"a\.csv"):
        cache.get_or_create(Remover(), lambda: builds.append(1), inputs=[folder / "a.csv"])
    assert builds == []
    assert leftovers(cache.directory) == []


def test_a_failure_is_the_factorys_though_an_input_changed(cache, folder):
    def factory():
        (folder / "a.csv").unlink()
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        cache.get_or_create("key", factory, inputs=[folder / "a.csv"])


def build_from(line, cache, file):
    def factory():
        line.tell("building")
        line.hear("go on")
        return file.read_text(), os.getpid()

    return cache.get_or_create("key", factory, inputs=[file])


def only_claim(cache):
    """Return the one claim in a cache folder."""
    [claim] = [path for path in leftovers(cache.directory) if path.endswith(".temp")]
    return claim


def builder_and_waiter(crew, cache, file):
    builder = crew.start(build_from, cache, file)
    builder.hear("building")
    waiter = crew.start(build_from, cache, file)
    until(lambda: sleepers(only_claim(cache)) == 1, "the waiter sleeps")
    return builder, waiter


@counts_sleepers
def test_an_heir_whose_inputs_changed_while_it_slept_starts_over(crew, cache, folder):
    file = folder / "a.csv"
    builder, waiter = builder_and_waiter(crew, cache, file)
    file.write_text("new")
    builder.kill()
    waiter.hear("building")
    waiter.tell("go on")
    assert waiter.result() == ("new", waiter.pid)
    assert cache.get("key", inputs=[file]) == ("new", waiter.pid)
    file.write_text("1")
    assert cache.get("key", inputs=[file]) is None
    assert leftovers(cache.directory) == []


@counts_sleepers
def test_who_waited_for_a_build_whose_input_changed_builds_from_the_new_one(crew, cache, folder):
    file = folder / "a.csv"
    builder, waiter = builder_and_waiter(crew, cache, file)
    file.write_text("new")
    builder.tell("go on")
    assert builder.result() == ("new", builder.pid)
    waiter.hear("building")
    assert cache.get("key", inputs=[file]) is None
    waiter.tell("go on")
    assert waiter.result() == cache.get("key", inputs=[file]) == ("new", waiter.pid)
    assert leftovers(cache.directory) == []


@counts_sleepers
def test_of_processes_with_the_same_inputs_one_builds(crew, cache, folder):
    file = folder / "a.csv"
    builder, waiter = builder_and_waiter(crew, cache, file)
    builder.tell("go on")
    assert crew.results() == [("1", builder.pid)] * 2


def test_a_loop_hashes_no_file_in_its_own_thread(cache, folder, monkeypatch):
    threads = []
    hash_file = _inputs._hash

    def watch(name):
        threads.append(threading.get_ident())
        return hash_file(name)

    async def build():
        return "built"

    monkeypatch.setattr(_inputs, "_hash", watch)
    ask = cache.aget_or_create("key", build, inputs=[folder / "a.csv"])
    assert asyncio.run(ask) == "built"
    assert threads
    assert threading.get_ident() not in threads
