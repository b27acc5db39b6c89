"""The guarded codec, ``"pickle"``: for everything, from places that nobody else writes.

What it is for: unpickling runs whatever the pickle says, so before a byte is read this
codec makes sure that the pickle comes from this user.  Either the cache folder, the
folders above it and the entry itself are such that nobody else can write them (judged
by owner and mode, as sshd judges a user's key files), or a `secret` was given and the
stored signature is right.

Who calls it: the codec table, when ``codec="pickle"`` is asked for.  What may go wrong:
`UnsafeDirectoryError` for a folder that others can write; an entry with a wrong
signature is damaged, thus a miss.
"""

from __future__ import annotations

import errno
import hmac
import os
import pickle
import stat
from hashlib import blake2b

from ._codecs import AnyCodec, keep_large, type_name
from ._errors import CodecError, UnsafeDirectoryError
from ._header import Damaged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._codecs import Buffer
    from ._header import Header

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Pickle(AnyCodec):
    """``"pickle"``.

    Parameters
    ----------
    directory
        The cache folder, checked before the first use in each process.
    secret
        At least 16 bytes.  With it, entries are signed and verified (keyed BLAKE2b,
        RFC 7693) and the folder may be anywhere.
    """

    name = "pickle"
    guarded = True

    def __init__(self, directory: str, secret: bytes | None) -> None:
        self._directory = directory
        self._key = (
            None if secret is None else blake2b(secret, person=b"atomcache pickle").digest()
        )
        self._checked: set[str] = set()

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        self._check_place(self._directory)
        buffers: list[pickle.PickleBuffer] = []
        try:
            payload = pickle.dumps(value, 5, buffer_callback=keep_large(buffers))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise CodecError(
                f"codec 'pickle' can't store this {type_name(value)}: {error}"
            ) from error
        return 0, payload, [buffer.raw() for buffer in buffers]

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        return pickle.loads(payload, buffers=buffers)

    def check_origin(
        self,
        path: str,
        found: os.stat_result,
        header: Header,
        payload: Buffer,
        buffers: Sequence[memoryview],
    ) -> None:
        if self._key is None:
            self._check_place(os.path.dirname(path))
            check_private_file(path, found)
            return
        seal = self.seal(header.digest, header.form, [payload, *buffers])
        if not hmac.compare_digest(seal, header.seal):
            raise Damaged("its signature is not that of the secret")

    def seal(self, digest: bytes, form: int, parts: Sequence[Buffer]) -> bytes:
        if self._key is None:
            return b""
        lengths = [len(part).to_bytes(8, "little") for part in parts]
        signature = blake2b(key=self._key, digest_size=32)
        for part in (digest, form.to_bytes(2, "little"), *lengths, *parts):
            signature.update(part)
        return signature.digest()

    def _check_place(self, folder: str) -> None:
        if self._key is None and folder not in self._checked:
            check_private(folder, self._directory)
            if os.path.isdir(folder):
                self._checked.add(folder)


def check_private(folder: str, cache: str) -> None:
    """Raise unless nobody but this user and root can write in a folder of the cache.

    Every folder above must be so too, those on the way of a symbolic link as well.  Above
    the cache one may be sticky, as ``/tmp`` is, where others can't rename what is not theirs.
    """
    if not hasattr(os, "geteuid"):
        raise _unsafe(cache, "who may write there can't be told on this system")
    for follow in (os.path.abspath, os.path.realpath):
        place, top = follow(folder), follow(cache)
        while True:
            _check_folder(cache, place, may_be_sticky=len(place) < len(top))
            above = os.path.dirname(place)
            if above == place:
                break
            place = above


def _check_folder(cache: str, folder: str, may_be_sticky: bool) -> None:
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return  # will be made, private, by this user
    if found.st_uid not in (os.geteuid(), 0):
        raise _unsafe(cache, f"{folder} belongs to user {found.st_uid}")
    if stat.S_ISLNK(found.st_mode):
        return  # a link has no rights of its own
    sticky = may_be_sticky and found.st_mode & stat.S_ISVTX
    if found.st_mode & _WRITABLE_BY_OTHERS and not sticky:
        mode = stat.S_IMODE(found.st_mode)
        raise _unsafe(cache, f"others can write to {folder} (mode {mode:o})")


def check_private_file(path: str, found: os.stat_result) -> None:
    """Raise unless nobody but this user and root can write the file that was opened."""
    if found.st_uid not in (os.geteuid(), 0):
        raise _unsafe(path, f"the entry belongs to user {found.st_uid}")
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise _unsafe(path, f"others can write the entry (mode {stat.S_IMODE(found.st_mode):o})")


REMEDY = (
    "take the rights away from others, choose another folder, pass secret=, "
    "or use the codec 'data'"
)
"""What to do where others can write."""


def _unsafe(path: str, why: str) -> UnsafeDirectoryError:
    error = UnsafeDirectoryError(
        errno.EACCES,
        f"codec 'pickle' refuses this place, because {why}. Unpickling runs what it reads: "
        f"{REMEDY}",
        path,
    )
    error.reason = why
    return error
