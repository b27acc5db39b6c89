"""What stands at the head of an entry file: key, codec, times, lengths and checksums.

A value entry is one file::

    header | meta | table of buffers | payload | padding and buffers

A path entry's meta file is the same with an empty payload.  The header has a fixed
size and is all that a hit looks at; the meta is for people and listings, in lines (the
key as given, each tag, a path's name).  `head_sum` covers header, meta and table;
`payload_sum` and each buffer's sum cover the rest, padding included, so that no byte of
the file can change unnoticed.  The checksum is XXH3 (64 bits), which finds damage, not
malice.

Who calls it: the modules of the two kinds of entry.  What may go wrong: `Damaged`, with
the reason, for a file that is not whole, not ours, or not the entry it should be.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from xxhash import xxh3_64, xxh3_64_intdigest

from ._codecs import NAME_SIZE
from ._lines import read_lines, write_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NamedTuple

    from ._codecs import Buffer

    class Header(NamedTuple):
        """The fixed part of an entry file, in the order in which it is stored.

        Times are seconds since the epoch; `expires` is infinite for never; `took` is how
        many seconds the build took.  `codec` is padded, `seal` is zeros for none.
        """

        magic: bytes
        head_sum: int
        digest: bytes
        form: int
        flags: int
        buffers: int
        meta_size: int
        codec: bytes
        created: float
        expires: float
        took: float
        payload_size: int
        payload_sum: int
        seal: bytes
else:
    Header = namedtuple(
        "Header",
        "magic head_sum digest form flags buffers meta_size codec created expires took "
        "payload_size payload_sum seal",
    )

MAGIC = b"\x89atomc1\n"
"""A byte that is not text, the name, the format's version, a newline that must survive."""

_HEAD = struct.Struct(f"<8sQ20sHHII{NAME_SIZE}sdddQQ32s")
_ROW = struct.Struct("<QQQ")
_ROW_SIZE = _ROW.size
SIZE = _HEAD.size
_new = tuple.__new__  # what `Header._make` calls, without the call
_SUMMED_FROM = 16
"""Where `head_sum` begins: after the magic and itself."""

HAS_INPUTS = 1
"""Flag of an entry that holds for as long as files named in its meta stay as they were."""

OWN_AGE = 2
"""Flag of an entry whose factory said how long it holds, whatever its readers' options say."""

SEAL_SIZE = 32

ALIGNMENT = 64
"""Buffers begin at multiples of this: a cache line, and the widest vector register."""

NEVER = float("inf")


class Damaged(Exception):
    """Why a file is not the whole entry that it should be; caught where it is logged."""


def parse(data: Buffer) -> Header:
    """Return the header at the start of `data`, which must reach to the payload."""
    if len(data) < SIZE:
        raise Damaged(f"it has {len(data)} bytes, fewer than a header")
    header = _new(Header, _HEAD.unpack_from(data))
    if header.magic != MAGIC:
        raise Damaged("it does not begin as an entry of this format")
    end = SIZE + header.meta_size + header.buffers * _ROW_SIZE
    if len(data) < end:
        raise Damaged("it ends before its payload")
    if xxh3_64_intdigest(data[_SUMMED_FROM:end]) != header.head_sum:
        raise Damaged("the checksum of its header is wrong")
    return header


def head_size(data: Buffer) -> int:
    """Return how many bytes come before the payload, by a header not yet verified."""
    return payload_start(glance(data))


def glance(data: Buffer) -> Header:
    """Return the fixed part of a header, not verified."""
    if len(data) < SIZE:
        raise Damaged(f"it has {len(data)} bytes, fewer than a header")
    return Header._make(_HEAD.unpack_from(data))


def payload_start(header: Header) -> int:
    """Return at which byte of the file the payload begins."""
    return SIZE + header.meta_size + header.buffers * _ROW_SIZE


def read_meta(data: Buffer, header: Header) -> dict[str, Any]:
    """Return the meta of a file whose header was parsed from `data`."""
    meta: dict[str, Any] = {"tags": [], "inputs": {}}
    for name, value in read_lines(bytes(data[SIZE : SIZE + header.meta_size])):
        if name == "tag":
            meta["tags"].append(value)
        elif name == "input":
            checksum, _, file = value.partition(" ")
            meta["inputs"][file] = bytes.fromhex(checksum)
        else:
            meta[name] = value
    return meta


def read_rows(data: Buffer, header: Header) -> list[tuple[int, int, int]]:
    """Return position, size and checksum of each out-of-band buffer."""
    start = SIZE + header.meta_size
    return list(_ROW.iter_unpack(data[start : start + header.buffers * _ROW_SIZE]))


def padding(position: int) -> int:
    """Return how many bytes to skip from `position` for a buffer to be aligned."""
    return -position % ALIGNMENT


def assemble(
    *,
    digest: bytes,
    codec: bytes,
    form: int,
    flags: int = 0,
    created: float,
    expires: float,
    took: float,
    meta: Sequence[tuple[str, str]],
    payload: Buffer,
    buffers: Sequence[memoryview] = (),
    seal: bytes = b"",
) -> list[Buffer]:
    """Return the parts of an entry file, to be written one after the other."""
    told = write_lines(meta)
    start = SIZE + len(told) + len(buffers) * _ROW_SIZE
    body: list[Buffer] = [payload]
    position = start + len(payload)
    payload_sum = xxh3_64(payload)
    rows = []
    checksum = payload_sum
    for buffer in buffers:
        gap = bytes(padding(position))
        checksum.update(gap)  # a gap counts as part of what stands before it
        body += [gap, buffer]
        position += len(gap) + buffer.nbytes
        checksum = xxh3_64(buffer)
        rows.append((position - buffer.nbytes, buffer.nbytes, checksum))
    table = b"".join(_ROW.pack(at, size, checksum.intdigest()) for at, size, checksum in rows)
    header = Header(
        magic=MAGIC,
        head_sum=0,
        digest=digest,
        form=form,
        flags=flags,
        buffers=len(buffers),
        meta_size=len(told),
        codec=codec,
        created=created,
        expires=expires,
        took=took,
        payload_size=len(payload),
        payload_sum=payload_sum.intdigest(),
        seal=seal,
    )
    head = _HEAD.pack(*header) + told + table
    head_sum = xxh3_64_intdigest(memoryview(head)[_SUMMED_FROM:])
    return [MAGIC, head_sum.to_bytes(8, "little"), head[_SUMMED_FROM:], *body]
