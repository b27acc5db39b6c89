"""Two names change places in one step, where the system can do that.

What it is for: a folder can't be replaced by a rename, so refreshing one would leave a
moment in which there is none.  Linux (3.15, `renameat2`) and macOS (10.12, `renamex_np`) can
exchange two names; Python offers neither, hence ctypes.

Who calls it: the door, when a path entry is replaced; nothing else pays for loading ctypes.
What may go wrong: `OSError`, with ``ENOSYS``, ``ENOTSUP`` or ``EINVAL`` where it can't be
done here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_RENAME_SWAP = 2  # <sys/stdio.h> of macOS


def exchange(one: str, other: str) -> None:
    """Let two names change places."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, _RENAME_SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), one)
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)
