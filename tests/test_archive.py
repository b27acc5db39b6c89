"""A folder goes through an archive unharmed, and an archive of an enemy harms nothing."""

import io
import os
import stat
import tarfile
import tracemalloc

import pytest

from atomcache._archive import Unfit, pack, unpack

MB = 1 << 20


def through(target, folder, piece=None):
    folder.mkdir()
    data = b"".join(pack(str(target)))
    size = piece or len(data)
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    unpack(pieces, str(folder), target.name)
    return folder / target.name


def seen(target):
    """Return what a folder looks like: names, kinds, modes, times, links, contents."""
    found = {}
    for folder, folders, files in os.walk(target):
        for name in [*folders, *files, "."]:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            told = os.readlink(path) if os.path.islink(path) else ""
            if stat.S_ISREG(state.st_mode):
                with open(path, "rb") as file:
                    told = file.read()
            mode = "" if os.path.islink(path) else state.st_mode
            found[os.path.relpath(path, target)] = (mode, told)
    return found


@pytest.fixture
def target(tmp_path):
    """Make a folder with all that may be in one."""
    target = tmp_path / "made"
    (target / "empty").mkdir(parents=True)
    (target / "deep" / "deeper").mkdir(parents=True)
    (target / "plain").write_bytes(b"plain")
    (target / "nothing").write_bytes(b"")
    (target / "large").write_bytes(os.urandom(3 * MB + 17))
    (target / "run").write_bytes(b"#!/bin/sh\n")
    (target / "run").chmod(0o755)
    os.utime(target / "run", (1_234_567_890, 1_234_567_890))
    (target / "locked").write_bytes(b"r")
    (target / "locked").chmod(0o444)
    (target / "mine").write_bytes(b"m")
    (target / "mine").chmod(0o600)
    (target / "empty").chmod(0o700)
    for name in (b"\xff\xfe", "ü\n ?*".encode(), b"n" * 255, b"a\\b", b"-rf", b" "):
        with open(os.fsencode(target) + b"/" + name, "wb") as file:
            file.write(name)
    os.link(target / "plain", target / "deep" / "same")
    (target / "deep" / "link").symlink_to("../plain")
    (target / "deep" / "deeper" / "up").symlink_to("..")
    os.symlink("../deep/", target / "deep" / "slash")
    (target / "folder").symlink_to("deep/deeper")
    (target / "dangling").symlink_to("not there")
    return target


@pytest.mark.parametrize("piece", [None, 1000, 7 * 512])
def test_a_folder_comes_back_with_names_modes_and_links(target, tmp_path, piece):
    back = through(target, tmp_path / "back", piece)
    assert seen(back) == seen(target)
    assert os.path.samefile(back / "plain", back / "deep" / "same")
    assert (back / "run").stat().st_mtime == 1_234_567_890


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 512, b"x" * 10_240, os.urandom(MB)])
def test_a_file_comes_back(tmp_path, content):
    target = tmp_path / "report.pdf"
    target.write_bytes(content)
    target.chmod(0o640)
    back = through(target, tmp_path / "back", 999)
    assert back.read_bytes() == content
    assert stat.S_IMODE(back.stat().st_mode) == 0o640


def test_an_archive_is_one_that_other_programs_read(target):
    data = io.BytesIO(b"".join(pack(str(target))))
    with tarfile.open(fileobj=data) as archive:
        names = archive.getnames()
        assert names[0] == "made"
        assert "made/deep/deeper/up" in names
        assert {member.uid for member in archive} == {0}


def test_the_same_folder_makes_the_same_archive(target):
    assert b"".join(pack(str(target))) == b"".join(pack(str(target)))


def test_setuid_and_write_rights_of_others_are_taken_away(tmp_path):
    target = tmp_path / "made"
    target.write_bytes(b"x")
    target.chmod(0o6777)
    assert stat.S_IMODE(through(target, tmp_path / "back").stat().st_mode) == 0o755


def test_what_is_large_passes_in_constant_memory(tmp_path):
    target = tmp_path / "made"
    with open(target, "wb") as file:
        file.truncate(64 * MB)
    (tmp_path / "back").mkdir()
    tracemalloc.start()
    try:
        unpack(pack(str(target)), str(tmp_path / "back"), "made")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MB
    assert (tmp_path / "back" / "made").stat().st_size == 64 * MB


def link_out(target):
    (target / "link").symlink_to("../../elsewhere")


def link_from_root(target):
    (target / "link").symlink_to("/etc/passwd")


def fifo(target):
    os.mkfifo(target / "pipe")


def zigzag(target):
    (target / "link").symlink_to("deep/../../..")


@pytest.mark.parametrize("spoil", [link_out, link_from_root, fifo, zigzag])
def test_what_would_be_refused_is_not_packed(target, spoil):
    spoil(target)
    with pytest.raises(Unfit):
        list(pack(str(target)))


def test_what_vanishes_while_it_is_packed_is_unfit(target):
    pieces = pack(str(target))
    next(pieces)
    next(pieces)  # now it has been listed
    (target / "run").unlink()
    with pytest.raises(Unfit, match="run"):
        list(pieces)


# -- archives of an enemy ----------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, link="", content=b"evil", mode=0o644):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, io.BytesIO(content)


FOLDER = ("made", tarfile.DIRTYPE)


@pytest.mark.parametrize(
    "members",
    [
        [("../made",)],
        [("/made",)],
        [("../../evil",)],
        [("/tmp/evil",)],
        [("other",)],
        [FOLDER, ("other",)],
        [FOLDER, ("made/../evil",)],
        [FOLDER, ("made/..", tarfile.DIRTYPE)],
        [FOLDER, ("made//evil",)],
        [FOLDER, ("made/./evil",)],
        [FOLDER, ("made2/evil",)],
        [FOLDER, ("made/absent/evil",)],
        [("made/evil",)],
        [("made", tarfile.SYMTYPE, "/etc")],
        [("made", tarfile.SYMTYPE, "elsewhere")],
        [("made", tarfile.LNKTYPE, "/etc/passwd")],
        [("made", tarfile.LNKTYPE, "made")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "/etc/passwd")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "../out")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "..")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "a/../../..")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "")],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "."), ("made/link/evil",)],
        [FOLDER, ("made/link", tarfile.SYMTYPE, "evil"), ("made/link",)],
        [FOLDER, ("made/link", tarfile.LNKTYPE, "../outside")],
        [FOLDER, ("made/link", tarfile.LNKTYPE, "/etc/passwd")],
        [
            FOLDER,
            ("made/a", tarfile.DIRTYPE),
            ("made/a/up", tarfile.SYMTYPE, "../x"),
            ("made/up", tarfile.LNKTYPE, "made/a/up"),
        ],
        [FOLDER, ("made/null", tarfile.CHRTYPE)],
        [FOLDER, ("made/disk", tarfile.BLKTYPE)],
        [FOLDER, ("made/pipe", tarfile.FIFOTYPE)],
        [FOLDER, ("made/odd", b"Z")],
        [("made",), ("made/evil",)],
        [("made",), ("made",)],
        [],
    ],
)
def test_an_archive_that_leads_out_is_refused_and_nothing_is_written_outside(tmp_path, members):
    outside, folder = tmp_path / "outside", tmp_path / "scratch"
    outside.write_bytes(b"good")
    folder.mkdir()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for each in members:
            archive.addfile(*member(*each))
    with pytest.raises(Unfit):
        unpack(iter([data.getvalue()]), str(folder), "made")
    assert sorted(os.listdir(tmp_path)) == ["outside", "scratch"]
    assert outside.read_bytes() == b"good"
    assert set(os.listdir(folder)) <= {"made"}
    assert not [each for each in folder.rglob("*") if each.is_symlink() and ".." in each.parts]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 700, 5000])
def test_a_truncated_archive_is_refused(tmp_path, size):
    target = tmp_path / "made"
    target.write_bytes(os.urandom(9000))
    data = b"".join(pack(str(target)))
    (tmp_path / "back").mkdir()
    with pytest.raises(Unfit):
        unpack(iter([data[:size]]), str(tmp_path / "back"), "made")


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(Unfit):
        unpack(iter([os.urandom(4096)]), str(tmp_path), "made")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_would_fill_the_memory_is_refused_before_it_is_read(tmp_path, kind):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = kind, 300 * MB
    read = []

    def pieces():
        yield info.tobuf(tarfile.USTAR_FORMAT)
        for _ in range(300):
            read.append(MB)
            yield bytes(MB)

    with pytest.raises(Unfit, match="header"):
        unpack(pieces(), str(tmp_path), "made")
    assert len(read) < 3


def test_the_longest_names_and_links_pass(tmp_path):
    deep = tmp_path / "made"
    for _ in range(12):
        deep = deep / ("n" * 250)
        deep.mkdir(parents=True)
    (tmp_path / "made" / "link").symlink_to("a" * 4000)
    back = through(tmp_path / "made", tmp_path / "back")
    assert seen(back) == seen(tmp_path / "made")
