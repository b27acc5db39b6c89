"""Where things stand in the cache folder, and how the folder is made.

::

    <directory>/
      CACHEDIR.TAG, .gitignore          backup tools and git skip the cache
      v1/ab/abcdef...                   a value
      v1/ab/abcdef.../report.pdf        a path, with its meta beside it
      v1/ab/abcdef....temp              the claim of whoever is building
      v1/ab/abcdef....temp.<token>      a builder's scratch, or what was moved out of the way
      v1/ab/abcdef....held              those who hold a path have it locked
      v1/ab/abcdef....failed            its time: when rebuilding a stale entry failed
      v1/inputs/abcdef...               hashes of input files, remembered
      v1/stats/<process>                what each process counted
      v1/upkeep/                        how full it is, when it was cleaned, and who is at it

Everything of one key stands in one folder, so that every rename is atomic.

Who calls it: `Cache` for names; whoever finds a folder missing calls `make_room`.  What
may go wrong: `LayoutError` for a folder that another version of the library laid out;
`OSError` as the system gives it.
"""

from __future__ import annotations

import os

from ._door import NOTE
from ._errors import LayoutError
from ._keys import DIGEST_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._door import Door

VERSION = "v1"

META = ".atomcache"
"""Name of the meta file in a path entry's folder; no built thing may be called so."""

CLAIM = ".temp"
"""What a claim's name adds to its entry's."""

FAILURE = ".failed"
"""What the mark of a failed rebuild adds to its entry's name."""

HELD = ".held"
"""What the file of those who hold an entry adds to its name."""

_NAME_LENGTH = 2 * DIGEST_SIZE
_HEXADECIMAL = frozenset("0123456789abcdef")

_FILES = {
    # https://bford.info/cachedir/ fixes the first line of CACHEDIR.TAG.
    "CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This folder is a cache made by atomcache; it can be deleted at any time.\n",
    ".gitignore": b"*\n",
}


class Layout:
    """Names in one cache folder.

    Parameters
    ----------
    door
        The way to the operating system.
    directory
        The cache folder, absolute.
    shared
        Whether other users may use the cache: modes as the umask allows, rather than
        for this user only.
    """

    def __init__(self, door: Door, directory: str, shared: bool) -> None:
        self.door = door
        self.directory = directory
        self.root = os.path.join(directory, VERSION)
        self.inputs = os.path.join(self.root, "inputs")
        self.upkeep = os.path.join(self.root, "upkeep")
        self.statistics = os.path.join(self.root, "stats")
        self.shared = shared
        self.folder_mode = 0o777 if shared else 0o700
        self.file_mode = 0o666 if shared else 0o600
        self._prefix = self.root + os.sep

    def entry(self, digest: bytes) -> str:
        """Return the path of the entry with this digest."""
        name = digest.hex()
        return f"{self._prefix}{name[:2]}{os.sep}{name}"

    def new_scratch(self, entry: str) -> str:
        """Return a name that nobody else uses, for what is made for or done with an entry."""
        return f"{entry}{CLAIM}.{self.door.urandom(8).hex()}"

    def make_room(self, entry: str) -> None:
        """Make the folder that `entry` stands in, and the cache around it if need be."""
        folder = os.path.dirname(entry)
        try:
            self._make_folder(folder)
        except FileNotFoundError:
            self._make_cache()
            self._make_folder(folder)

    def _make_folder(self, folder: str) -> None:
        try:
            self.door.mkdir(folder, self.folder_mode)
        except FileExistsError:
            if not _is_folder(self.door, folder):
                raise

    def _make_cache(self) -> None:
        missing = []
        folder = self.root
        while not _is_folder(self.door, folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            if folder == self.root:
                names = self.door.listdir(self.directory)
                self._check_version(names)
                if set(names) <= set(_FILES):  # never beside what is not ours
                    self._leave_notes()
            self._make_folder(folder)

    def _check_version(self, names: list[str]) -> None:
        for name in names:
            if name[:1] == "v" and name[1:].isdecimal() and name != VERSION:
                raise LayoutError(
                    f"{self.directory} holds a cache of layout {name}, and this version of "
                    f"atomcache writes {VERSION}. Choose another folder, delete this one, or "
                    "use the version of atomcache that made it"
                )

    def _leave_notes(self) -> None:
        """Write the notes; whoever writes at the same time, or did half, wrote the same."""
        for name, content in _FILES.items():
            fd = self.door.open(os.path.join(self.directory, name), NOTE, self.file_mode)
            try:
                self.door.write(fd, content)
            finally:
                self.door.close(fd)

    def shards(self, *, inputs: bool = False) -> Iterator[str]:
        """Yield the folders that entries stand in; and that of input hashes, if asked for."""
        try:
            names = self.door.listdir(self.root)
        except FileNotFoundError:
            return
        for name in sorted(names):
            if len(name) == 2 or (inputs and name == "inputs"):
                yield os.path.join(self.root, name)


def failure_mark(entry: str) -> str:
    """Return the path of the file whose time tells when rebuilding an entry failed."""
    return entry + FAILURE


def is_failure_mark(name: str) -> bool:
    """Tell whether a file name is that of a failure mark."""
    return name.endswith(FAILURE) and is_entry(name[: -len(FAILURE)])


def is_hold(name: str) -> bool:
    """Tell whether a file name is that of a hold."""
    return name.endswith(HELD) and is_entry(name[: -len(HELD)])


def is_entry(name: str) -> bool:
    """Tell whether a file name is that of an entry."""
    return len(name) == _NAME_LENGTH and _HEXADECIMAL.issuperset(name)


def is_claim(name: str) -> bool:
    """Tell whether a file name is that of a claim."""
    return name.endswith(CLAIM) and is_entry(name[: -len(CLAIM)])


def split_scratch(name: str) -> tuple[str, str] | None:
    """Return the claim's name and the token of a scratch's name, if it is one."""
    claim, dot, token = name.rpartition(".")
    if dot and token and is_claim(claim) and _HEXADECIMAL.issuperset(token):
        return claim, token
    return None


def _is_folder(door: Door, path: str) -> bool:
    import stat

    try:
        return stat.S_ISDIR(door.stat(path).st_mode)
    except FileNotFoundError:
        return False
