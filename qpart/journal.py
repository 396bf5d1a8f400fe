"""Results on the way, in a file beside the one they are for: whoever is killed goes on where it was.

Records are appended, each with its length and a checksum; what a killed process left half written is cut off, and a
journal of another question is begun anew. One process at a time may hold it.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import msgspec

from qpart.errors import RequestError

SUFFIX = ".partial"
_HEADER = struct.Struct("<II")  # length and CRC-32 of what follows
_MAX_RECORD_BYTES = 1 << 24
_T = TypeVar("_T")


class Journal:
    """Named results; in memory alone where no file is given.

    Use it as a context manager. `finish` removes the file when the work is done.

    Args:
        path: of the journal; None keeps nothing.
        key: hash of everything that the results depend on.

    Raises:
        RequestError: another process writes to it at this moment.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | None, key: bytes) -> None:
        self._known: dict[str, bytes] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            self._file = self._opened(path, key)
        self.resumed = len(self._known)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def recall(self, name: str, kind: type[_T]) -> _T | None:
        """A result from before; None if there is none of this kind."""
        found = self._known.get(name)
        return None if found is None else _decoded(found, kind)

    def keep(self, name: str, result: object) -> None:
        """Write a result; it is there for whoever comes after a kill right behind this call."""
        if self._file is not None:
            self._append(self._file, msgspec.msgpack.encode((name, msgspec.msgpack.encode(result))))

    def close(self) -> None:
        """Leave it for the next one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self, path: Path, key: bytes) -> BinaryIO:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            _lock(file, path)
            records, end = _read(file)
            results = [_decoded(record, tuple[str, bytes]) for record in records[1:]]
            if not records or records[0] != key or None in results:  # the last: something else wrote it
                records, results, end = [], [], 0
            file.seek(end)
            file.truncate()
            if not records:
                self._append(file, key)
            self._known |= dict(result for result in results if result is not None)
        except BaseException:
            file.close()
            raise
        return file

    @staticmethod
    def _append(file: BinaryIO, record: bytes) -> None:
        file.write(_HEADER.pack(len(record), zlib.crc32(record)) + record)
        file.flush()


def _decoded(record: bytes, kind: type[_T]) -> _T | None:
    """What a record says; None if that is something else."""
    try:
        return msgspec.msgpack.decode(record, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _lock(file: BinaryIO, path: Path) -> None:
    """Held until the file is closed; a killed process holds nothing."""
    try:
        import fcntl
    except ModuleNotFoundError:  # no such thing on this system: nobody is kept out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"another process is at work on {path}; wait for it, or name another --out") from None


def _read(file: BinaryIO) -> tuple[list[bytes], int]:
    """All whole records, and where they end."""
    records: list[bytes] = []
    end = 0
    while True:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return records, end
        length, checksum = _HEADER.unpack(header)
        if length > _MAX_RECORD_BYTES:
            return records, end
        record = file.read(length)
        if len(record) < length or zlib.crc32(record) != checksum:
            return records, end
        records.append(record)
        end += _HEADER.size + length
