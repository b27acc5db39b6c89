"""What a command wrote, kept so that it can be played again: both streams, in order.

A recording is bytes: a first line that says what it is, then frames of the stream's number
(one byte), a length (four bytes) and so much of what was written; the last frame has stream 0
and the exit status in the place of the length.

Who calls it: `atomcache run`, and `atomcache cat`.  What may go wrong: `ValueError` for what is
no recording; `OSError` from whoever it is played to.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"atomcache run 1\n"
OUT = 1
ERR = 2
_END = 0
_FRAME = struct.Struct("<BI")
_LONGEST = 1 << 30


class Recorder:
    """Takes down what a command writes, as it comes."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, list[bytes]]] = []

    def add(self, stream: int, data: bytes) -> None:
        """Take down what was written to a stream."""
        if not self._parts or self._parts[-1][0] != stream:
            self._parts.append((stream, []))
        self._parts[-1][1].append(data)

    def finish(self, status: int) -> bytes:
        """Return the recording of a command that ended with an exit status."""
        frames = [MAGIC]
        for stream, chunks in self._parts:
            data = b"".join(chunks)
            for start in range(0, len(data), _LONGEST):
                part = data[start : start + _LONGEST] if len(data) > _LONGEST else data
                frames += [_FRAME.pack(stream, len(part)), part]
        frames.append(_FRAME.pack(_END, status))
        return b"".join(frames)


def is_recording(data: bytes) -> bool:
    """Tell whether these bytes are a recording."""
    return data[: len(MAGIC)] == MAGIC


def play(data: bytes, out: int | None, err: int | None) -> int:
    """Write what a command wrote to two descriptors and return its exit status.

    Parameters
    ----------
    out, err
        Where its standard output and its standard error stream go; `None` for nowhere.
    """
    *frames, (_, _, status) = _read(data)
    for stream, start, end in frames:
        target = out if stream == OUT else err
        if target is not None:
            write(target, memoryview(data)[start:end])
    return status


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield stream, start and end of each frame, and last 0, 0 and the status."""
    position = len(MAGIC)
    try:
        while is_recording(data):
            stream, length = _FRAME.unpack_from(data, position)
            position += _FRAME.size
            if stream == _END:
                yield _END, 0, length
                return
            yield stream, position, position + length
            position += length
    except struct.error:
        pass
    raise ValueError("this is no recording of a command")
