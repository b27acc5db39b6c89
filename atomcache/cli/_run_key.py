"""What identifies a run: the text that is its key, made so that listings can be read.

It names the command, word by word, and all that was said to identify the run.  What input files
hold is added by the library.

Who calls it: `_run`.  What may go wrong: `Misuse` for a file that is not there and for what is no
name of a variable.
"""

from __future__ import annotations

import os

from .._keys import blake2b
from ._asked import Misuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._run_options import Asked

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_")
"""What needs no quotes in a shell."""


def key_of(options: Asked, given: bytes | None) -> str:
    """Return a text that names all that identifies this run, and nothing else."""
    scope = os.environ.get("ATOMCACHE_SCOPE")
    parts = ["run", *(f"--key={text}" for text in [*([scope] if scope else []), *options.key])]
    if options.cwd:
        try:
            parts.append(f"--cwd={os.getcwd()}")
        except OSError as error:
            raise Misuse(f"--cwd: the current folder: {error.strerror}") from None
    for name in sorted(set(options.env)):
        if not name or "=" in name:  # it would be taken for another variable with a value
            raise Misuse(f"--env: {name!r} is no name of an environment variable")
        value = os.environ.get(name)
        # Not the value itself: it may be a secret, and whoever lists the cache sees the key.
        parts.append(f"--env={name}" if value is None else f"--env={name}={_hash(value)}")
    parts += [f"--input={each}" for each in options.input]
    for file in options.mtime:
        try:
            parts.append(f"--mtime={file}={os.stat(file).st_mtime_ns}")
        except OSError as error:
            raise Misuse(f"--mtime: {file!r} can't be looked at: {error.strerror}") from None
    if given is not None:
        parts.append(f"--stdin={blake2b(given, digest_size=20).hexdigest()}")
    if options.output is not None:
        parts.append(f"--output={options.output}")
    if options.keep_failures:
        parts.append("--keep-failures")
    return " ".join(map(_quote, [*parts, "--", *options.command]))


def _hash(value: str) -> str:
    return blake2b(os.fsencode(value), digest_size=10).hexdigest()


def _quote(word: str) -> str:
    """Quote a word as shells do, so that no two lists of words give the same text.

    As `shlex.quote` does, which loads the modules of regular expressions.
    """
    if word and not set(word) - _PLAIN:
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
