"""Keys and values of one sequence, with rollback."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks
from edgekernels.decoder.config import DecoderConfig

TILE = 16  # positions whose keys lie interleaved in the compiled layout
DTYPES = ("float16", "float32")


class KVCache:
    """What a decoder remembers of the tokens it has seen; made by `Decoder.new_cache`.

    One sequence and one forward pass at a time. Memory is reserved for all positions and used as they are filled.

    Args:
        config: of the model.
        positions: tokens it has room for.
        dtype: "float16", or "float32" for exactness (twice the memory).
        compiled: the module of the compiled decoder, or None for numpy.

    Raises:
        ValueError: an argument is out of its range, or there is no such memory.
    """

    def __init__(self, config: DecoderConfig, positions: int, dtype: str, compiled: Any) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; pass one of {', '.join(DTYPES)}")
        positions = _bits_checks.integer("positions", positions, 1, config.max_positions)
        self.config, self.positions, self.half, self._length = config, positions, dtype == "float16", 0
        self.lock = threading.Lock()
        room, width = -(-positions // TILE) * TILE, -(-config.head_dim // TILE) * TILE
        shape = (config.num_layers, config.num_kv_heads, room)
        try:
            self.keys: npt.NDArray[Any] = np.zeros((*shape, config.head_dim), dtype if compiled else np.float32)
            self.values: npt.NDArray[Any] = np.zeros(
                (*shape, width if compiled else config.head_dim), dtype if compiled else np.float32
            )
        except MemoryError:
            raise ValueError(f"no memory for {positions} positions; pass fewer") from None
        self.native = compiled.Cache(self.keys, self.values, room, width) if compiled else None

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def truncate(self, length: int) -> None:
        """Forget all tokens from this position on.

        Args:
            length: tokens to keep, at most those there are.

        Raises:
            TypeError: it is no integer.
            ValueError: there are not so many.
        """
        with self.lock:
            self._length = _bits_checks.integer("length", length, 0, self._length)

    def append(self, count: int) -> None:
        """Count tokens whose keys and values were just written."""
        self._length += count
