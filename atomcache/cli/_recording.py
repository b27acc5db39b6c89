"""What a command wrote, kept so that it can be played again: both streams, in order.

A recording is bytes: a first line that says what it is, then frames of the stream's number
(one byte), a length (four bytes) and so much of what was written; the last frame has stream 0
and the exit status in the place of the length.

Who calls it: `atomcache run`, `atomcache cat` and `atomcache show`.  What may go wrong:
`ValueError` for what is no recording; `OSError` from whoever it is played to, which `Output` keeps
for later: that nobody reads one stream any more is no reason to stop writing the other.
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
FRAME_SIZE = _FRAME.size
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


def split(recording: bytes) -> tuple[bytes, bytes, int]:
    """Return what a command wrote to its standard output and error stream, and its exit status."""
    *frames, (_, _, status) = _read(recording)
    parts: dict[int, list[bytes]] = {OUT: [], ERR: []}
    for stream, start, end in frames:
        if stream not in parts or end > len(recording):
            raise ValueError("this is no recording of a command")
        parts[stream].append(recording[start:end])
    return b"".join(parts[OUT]), b"".join(parts[ERR]), status


def status_of(begin: bytes, end: bytes) -> int | None:
    """Return the exit status in a recording, by its first and last bytes; `None` if it is none."""
    if not is_recording(begin) or len(end) < _FRAME.size:
        return None
    stream, status = _FRAME.unpack(end[-_FRAME.size :])
    return int(status) if stream == _END else None


class Output:
    """Where a command's streams go, each until it can't be written to any more.

    Parameters
    ----------
    out, err
        Descriptors for its standard output and its standard error stream; `None` for nowhere.
    """

    def __init__(self, out: int | None, err: int | None) -> None:
        self._targets = {OUT: out, ERR: err}
        self.error: OSError | None = None

    def write(self, stream: int, data: bytes | memoryview) -> None:
        """Write to one of the streams; what goes wrong first is kept as `error`."""
        target = self._targets[stream]
        if target is None:
            return
        try:
            write(target, data)
        except OSError as error:
            self._targets[stream] = None
            self.error = self.error or error

    def play(self, recording: bytes) -> int:
        """Write what a command wrote, and return its exit status."""
        *frames, (_, _, status) = _read(recording)
        for stream, start, end in frames:
            self.write(stream, memoryview(recording)[start:end])
        return status


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody who shares the pipe has made it so
            from select import select

            select([], [descriptor], [])


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
