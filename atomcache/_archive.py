"""A file or folder as one stream of bytes, and back.

What it is for: a path entry crosses a network as a tar archive, with the names, modes, times
and links that it has.  It is packed and unpacked in pieces, so that memory does not grow with
it.

What comes in is other people's, and Python's own filter for archives of data is not enough: it
has been got round by links several times.  So nothing is unpacked through a link: a name has to
stand in a folder that came before it, and a link has to climb first and then go down, staying
inside.  Modes are kept, but for setuid and for what others may write.  What would be refused is
not packed either.

Who calls it: `Remote`.  What may go wrong: `Unfit` for what must not be unpacked or can't be
packed; `OSError` as the system gives it, when unpacking.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_PIECE = 1 << 20

_LARGEST_HEADER = 1 << 18
"""Bytes: many times the longest name and link that a system takes."""

_MORE_OF_ITSELF = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Types of headers that go on in what follows them."""


class Unfit(Exception):
    """What must not be unpacked, or can't be packed; it says why."""


def pack(target: str) -> Iterator[bytes]:
    """Yield a file or folder as an archive."""
    try:
        yield from _packed(target)
    except (OSError, tarfile.TarError) as error:
        raise Unfit(f"{target} can't be packed: {error}") from error


def _packed(target: str) -> Iterator[bytes]:
    check = _Check(os.path.basename(target))
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive:  # it knows of hard links
        ahead = [(target, check.name)]
        while ahead:
            path, name = ahead.pop()
            member = archive.gettarinfo(path, name)
            if member is None:
                raise Unfit(f"{path} can't be packed: it is a special file")
            check(member)
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if member.isreg():
                yield from _content(path, member.size)
            elif member.isdir():
                inside = sorted(os.listdir(path), reverse=True)
                ahead += [(os.path.join(path, each), f"{name}/{each}") for each in inside]
    yield bytes(2 * tarfile.BLOCKSIZE)


def _content(path: str, size: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        missing = size
        while missing:
            piece = file.read(min(missing, _PIECE))
            if not piece:
                raise Unfit(f"{path} can't be packed: it changes meanwhile")
            missing -= len(piece)
            yield piece
    yield bytes(-size % tarfile.BLOCKSIZE)


def unpack(pieces: Iterator[bytes], folder: str, name: str) -> None:
    """Make, in a folder, the one file or folder of this name that an archive holds."""
    if not hasattr(tarfile, "data_filter"):
        raise Unfit("this Python can't unpack archives safely; use 3.11.4 or newer")
    check = _Check(name)

    def checked(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in archive:
            check(member)
            yield member
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all

    try:
        with tarfile.open(
            fileobj=_Stream(pieces), mode="r|", bufsize=_PIECE, tarinfo=_Member
        ) as archive:
            archive.extractall(folder, checked(archive), filter=_kept)  # noqa: S202
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise Unfit(f"the archive can't be unpacked: {error}") from error
    if not check.kinds:
        raise Unfit("the archive is empty")


class _Check:
    """Refuses members of an archive that could do harm, one after the other.

    Parameters
    ----------
    name
        Of what the archive holds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kinds: dict[str, bytes] = {}

    def __call__(self, member: tarfile.TarInfo) -> None:
        """Raise `Unfit` unless a member can be unpacked where those before it were."""
        above, _, last = member.name.rpartition("/")
        if member.name in self.kinds:
            raise Unfit(f"the archive holds {member.name!r} twice")
        if member.name != self.name and self.kinds.get(above) != tarfile.DIRTYPE:
            raise Unfit(f"the archive holds {member.name!r} beside {self.name!r}")
        if last in ("", ".", "..") or "\0" in last or (os.sep != "/" and os.sep in last):
            raise Unfit(f"the archive holds the name {member.name!r}")
        if member.issym():
            self._check_link(member)
        elif member.islnk():
            if self.kinds.get(member.linkname) != tarfile.REGTYPE:
                raise Unfit(f"{member.name!r} is a link to {member.linkname!r}, which is no file")
        elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            raise Unfit(f"{member.name!r} is a special file")
        kind = tarfile.REGTYPE if member.isreg() or member.islnk() else member.type
        self.kinds[member.name] = kind

    def _check_link(self, member: tarfile.TarInfo) -> None:
        parts = member.linkname.rstrip("/").split("/")
        climbs = 0
        while climbs < len(parts) and parts[climbs] == "..":
            climbs += 1
        inside = climbs < member.name.count("/")
        if member.name == self.name or not inside or {"", ".."} & set(parts[climbs:]):
            raise Unfit(f"{member.name!r} is a link to {member.linkname!r}, which may lead out")


def _kept(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Return what is unpacked: what Python deems safe, folders with their modes too."""
    return tarfile.data_filter(member, folder).replace(mode=member.mode & 0o755, deep=False)


class _Member(tarfile.TarInfo):
    """A header of an archive, refused where it announces more of itself than anybody has.

    Such a part is read into memory at once; it holds long names, and what other programs add.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _MORE_OF_ITSELF and member.size > _LARGEST_HEADER:
            raise Unfit(f"the archive has a header of {member.size} bytes")
        return member


class _Stream(io.RawIOBase):
    """Pieces of bytes, to be read like a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer, as far as the next piece does."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
