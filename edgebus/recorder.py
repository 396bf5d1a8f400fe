"""Recordings of traffic: checked records one after another in a file. Format: docs/spec/bus-recording.md."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from edgebus.errors import EdgebusError

MAGIC = b"\x89EBREC\r\n"  # as in PNG: a text-mode copy or a terminal shows at once
VERSION = 1
MAX_RECORD_BYTES = 64 * 1024 * 1024
_FRAME_HEAD = 8  # length and CRC-32, both u32 little-endian
MAX_FRAMES = 1024

_Name = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=256)]
_Size = Annotated[int, Meta(ge=0, le=2**48)]


class RecordingError(EdgebusError):
    """The file is not a recording, or is one of a later version."""


class Start(Struct, array_like=True, frozen=True, gc=False, tag=1):
    """First record of a file: who recorded, and when (seconds since 1970)."""

    node: _Name
    made_at: float
    software: _Text = ""


class Traffic(Struct, array_like=True, frozen=True, gc=False, tag=2):
    """One message as the recorded node saw it.

    Attributes:
        at: seconds, on a clock that only goes forward.
        direction: "in" came to the node, "out" left it.
        peer_id: names one life of one link.
        peer_key: public key, "" in plaintext.
        lane: "control" or "bulk".
        header: the header frame as bytes.
        sizes: bytes of each frame after the header.
        frames: these frames; fewer than sizes if the contents were not recorded.
    """

    at: float
    direction: Literal["in", "out"]
    peer_id: _Text
    peer_key: _Text
    peer_name: _Name
    lane: Literal["control", "bulk"]
    header: Annotated[bytes, Meta(max_length=65_536)]
    sizes: Annotated[tuple[_Size, ...], Meta(max_length=MAX_FRAMES)] = ()
    frames: Annotated[tuple[bytes, ...], Meta(max_length=MAX_FRAMES)] = ()

    @property
    def is_whole(self) -> bool:
        """True if all frames are there."""
        return tuple(map(len, self.frames)) == self.sizes


class Lost(Struct, array_like=True, frozen=True, gc=False, tag=3):
    """So many messages were not recorded here, because the reader was slower than the traffic."""

    count: Annotated[int, Meta(ge=0, le=2**62)]


Record = Start | Traffic | Lost

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_decode_records = msgspec.msgpack.Decoder(Annotated[tuple[Traffic | Lost, ...], Meta(max_length=65_536)]).decode


def pack(record: Record) -> bytes:
    """A record as it stands in a file.

    Raises:
        ValueError: it would be over MAX_RECORD_BYTES.
    """
    body = _encode(record)
    if len(body) > MAX_RECORD_BYTES:
        raise ValueError(f"record of {len(body)} B, a recording takes {MAX_RECORD_BYTES} B: record without contents")
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


class Writer:
    """Writes a recording to a file opened for binary writing, which stays the caller's to close."""

    def __init__(self, file: BinaryIO, start: Start) -> None:
        self._file = file
        self.num_messages = 0
        self.num_lost = 0
        file.write(MAGIC + VERSION.to_bytes(2, "little") + pack(start))

    def write(self, record: Traffic | Lost) -> None:
        """Add one record."""
        if isinstance(record, Lost):
            self.num_lost += record.count
        else:
            self.num_messages += 1
        self._file.write(pack(record))


class Reader:
    """Iterates over a recording; its memory is bounded by one record, whatever the file holds.

    A tail that is cut off or damaged ends the iteration, and `damage` says where and why.

    Args:
        file: opened for binary reading, at its beginning.
        max_record_bytes: longer records count as damage.

    Raises:
        RecordingError: not a recording, or of a later version.
    """

    def __init__(self, file: BinaryIO, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._file = file
        self._max = max_record_bytes
        self._pos = len(MAGIC) + 2
        self.damage = ""
        head = file.read(self._pos)
        if head[: len(MAGIC)] != MAGIC or len(head) < self._pos:
            raise RecordingError("this is not a recording: `edgebus record ENDPOINT FILE` makes one")
        version = int.from_bytes(head[len(MAGIC) :], "little")
        if version != VERSION:
            raise RecordingError(f"recording of version {version}, this edgebus reads {VERSION}: use a newer edgebus")
        first = self._next()
        if not isinstance(first, Start):
            raise RecordingError(f"the recording does not begin with its start record: {self.damage or 'another kind'}")
        self.start = first

    def __iter__(self) -> Iterator[Traffic | Lost]:
        while (record := self._next()) is not None:
            if isinstance(record, Start):
                self.damage = f"second start record before byte {self._pos}"
                return
            yield record

    def _next(self) -> Record | None:
        head = self._file.read(_FRAME_HEAD)
        if not head:
            return None
        size, checksum = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        if len(head) < _FRAME_HEAD:
            return self._stop("cut off within a record's head")
        if size > self._max:  # before anything is allocated
            return self._stop(f"announces a record of {size} B, accepted are {self._max} B")
        body = self._file.read(size)
        if len(body) < size or zlib.crc32(body) != checksum:
            cut = f"cut off: {len(body)} of {size} B of a record are there"
            return self._stop(cut if len(body) < size else "a record's checksum does not fit")
        try:
            record: Record = _decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            return self._stop(f"a record does not decode: {str(error)[:200]!a}")
        self._pos += _FRAME_HEAD + size
        return record

    def _stop(self, why: str) -> Record | None:
        self.damage = f"at byte {self._pos}: {why}"
        return None


def encode_records(records: Sequence[Traffic | Lost]) -> bytes:
    """Records as one payload, a part of a tap's stream."""
    return _encode(records)


def decode_records(payload: bytes) -> tuple[Traffic | Lost, ...]:
    """The records in a part of a tap's stream.

    Raises:
        ValueError: anything else.
    """
    try:
        records: tuple[Traffic | Lost, ...] = _decode_records(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not the part of a tap: {str(error)[:200]!a}") from None
    return records
