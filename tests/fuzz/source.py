"""Fuzz input as a supply of choices; when it is used up all further choices are zero, so every script ends."""

from __future__ import annotations

import ctypes
import sys


class Source:
    """Reads choices from bytes, in order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._pos = data, 0

    def __bool__(self) -> bool:
        return self._pos < len(self._data)

    def take(self, num_bytes: int) -> bytes:
        """So many bytes, fewer at the end."""
        taken = self._data[self._pos : self._pos + num_bytes]
        self._pos += num_bytes
        return taken

    def below(self, end: int) -> int:
        """A number in 0..end-1, end <= 256."""
        return int.from_bytes(self.take(1), "little") % end

    def number(self) -> int:
        """A number, mostly small, now and then at an edge of what the wire can say."""
        choice = self.below(16)
        if choice < 10:
            return choice
        return (self.below(256), 4096, 2**16, 2**32, 2**48, 2**63 - 1)[choice - 10]

    def blob(self) -> bytes:
        """Some bytes, at most 300."""
        size = self.below(256)
        return self.take(size if size < 250 else 300)


def split_frames(data: bytes) -> list[bytes]:
    """Fuzz input as frames, each behind its length as u16 (what is cut off is a shorter frame).

    >>> split_frames(bytes.fromhex("0200 9107 0100 ff"))
    [b'\\x91\\x07', b'\\xff']
    """
    source, frames = Source(data), []
    while source and len(frames) < 80:
        frames.append(source.take(int.from_bytes(source.take(2), "little")))
    return frames


def join_frames(frames: list[bytes]) -> bytes:
    """The fuzz input that split_frames makes these of."""
    return b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)


def bare(data: bytes) -> bytes:
    """The same bytes without the zero that CPython puts behind them: sanitizers see a read of one byte past their end.

    >>> bare(b"content")
    b'content'
    """
    if len(data) < 3 or sys.implementation.name != "cpython":
        return data  # the shortest ones are everybody's
    made = data[:-1]
    ctypes.c_ssize_t.from_address(id(made) + object.__basicsize__).value += 1
    ctypes.c_char.from_address(id(made) + bytes.__basicsize__ + len(data) - 2).value = data[-1:]
    return made
