"""What the target wrote, on disk: a file for each round, whole or not there at all."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from edgebus.files import write_whole
from sled.distill.sampler import Texts
from sled.errors import ParameterError

_MOST_ROWS = 1 << 20
_DAMAGED = (  # what numpy and zipfile raise of files that are damaged, or lie about their sizes
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError, TokenError, MemoryError,
    OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts of several rounds: tokens uint16 or uint32 (rows, length), written bool likewise, temperatures (rows,)."""

    tokens: NDArray[np.unsignedinteger]
    written: NDArray[np.bool_]
    temperatures: NDArray[np.float32]


class Corpus:
    """A directory of rounds; round 0 is held out.

    Args:
        directory: where they lie, made if need be.
        length: tokens of each text.
        num_ids: ids of the target.

    Raises:
        ParameterError: a round that lies there is damaged.
    """

    def __init__(self, directory: Path, length: int, num_ids: int) -> None:
        self._directory, self._length, self._num_ids = directory, length, num_ids
        self._kind = np.uint16 if num_ids <= 1 << 16 else np.uint32
        directory.mkdir(parents=True, exist_ok=True)
        self.num_rounds, self.seconds, self.num_tokens = 0, 0.0, 0
        while self._path(self.num_rounds).is_file():
            rows, seconds = self._read(self.num_rounds)
            self._count(rows.tokens.size, seconds)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:05}.npz"

    def _count(self, num_tokens: int, seconds: float) -> None:
        self.num_rounds += 1
        self.seconds += seconds
        self.num_tokens += num_tokens

    def add(self, texts: Texts, seconds: float) -> None:
        """Keep the next round, which took so long to write.

        Raises:
            OSError: it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(
            buffer,
            tokens=texts.tokens.astype(self._kind),
            written=np.packbits(texts.written, axis=1),
            temperatures=texts.temperatures,
            seconds=np.float64(seconds),
        )
        write_whole(self._path(self.num_rounds), buffer.getvalue())
        self._count(texts.tokens.size, seconds)

    def held_out(self) -> Rows:
        """The texts that are not learned from."""
        return self._read(0)[0]

    def learned(self) -> Rows:
        """All others."""
        parts = list(self._rounds())
        return Rows(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.written for part in parts]),
            np.concatenate([part.temperatures for part in parts]),
        )

    def _rounds(self) -> Iterator[Rows]:
        for number in range(1, self.num_rounds):
            yield self._read(number)[0]

    def _read(self, number: int) -> tuple[Rows, float]:
        path = self._path(number)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                tokens, packed, temperatures = found["tokens"], found["written"], found["temperatures"]
                seconds = float(found["seconds"])
            if tokens.ndim != 2 or tokens.dtype != self._kind or not 1 <= len(tokens) <= _MOST_ROWS:
                raise ValueError(f"tokens of {tokens.dtype} and shape {tokens.shape}")
            if tokens.shape[1] != self._length or packed.shape != (len(tokens), -(-self._length // 8)):
                raise ValueError(f"texts of {tokens.shape[1]} tokens, {self._length} are needed")
            if int(tokens.max()) >= self._num_ids or temperatures.shape != (len(tokens),) or not seconds >= 0:
                raise ValueError(f"ids up to {tokens.max()}, under {self._num_ids} are needed")
            written = np.unpackbits(packed, axis=1, count=self._length).astype(np.bool_)
        except _DAMAGED as error:
            raise ParameterError(f"{path} is damaged ({error}); remove it and those after it") from None
        return Rows(tokens, written, temperatures.astype(np.float32)), seconds


def most_used(rows: Rows, num_ids: int, count: int, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids that the target writes most, in rising order; ties go to the lower id.

    Args:
        rows: of a corpus.
        num_ids: ids of the target.
        count: how many are wanted.
        kept: ids that are among them in any case: those that end a turn.
    """
    uses = np.bincount(rows.tokens[rows.written].astype(np.int64), minlength=num_ids).astype(np.float64)
    uses += 0.5 * (np.bincount(rows.tokens.reshape(-1).astype(np.int64), minlength=num_ids) > 0)
    uses[kept] = np.inf
    return np.sort(np.argsort(-uses, kind="stable")[:count])
