"""Llama-family models on the native decoder, whole or reduced: numpy alone, neither torch nor a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from edgekernels.decoder import Decoder, load_decoder, reduced
from numpy.typing import NDArray

BITS, GROUP = 8, 32  # of weights which the files hold as floats: as good as the floats, a quarter of the memory


class NativeModel:
    """A native decoder and one cache, as a `LanguageModel`.

    Args:
        decoder: the model.
        positions: tokens the cache has room for.
        threads: threads for each forward pass.
    """

    def __init__(self, decoder: Decoder, positions: int, threads: int) -> None:
        self.vocab_size = decoder.config.vocab_size
        self.max_positions = min(positions, decoder.config.max_positions)
        self._decoder, self._threads = decoder, threads
        self._cache = decoder.new_cache(self.max_positions)

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See LanguageModel."""
        return self._decoder.forward(ids, self._cache, num_threads=self._threads)

    def forget(self, length: int) -> None:
        """See LanguageModel."""
        self._cache.truncate(length)


def load_native(
    path: Path,
    *,
    positions: int,
    threads: int = 1,
    skip: tuple[int, ...] = (),
    bits: int | None = None,
    group: int = 64,
    progress: Callable[[float], None] | None = None,
) -> NativeModel:
    """A model from a GGUF file or a directory of safetensors.

    Args:
        path: the file or the directory.
        positions: tokens its cache should have room for.
        threads: threads for each forward pass.
        skip: layers to leave out.
        bits: width to which the layers' matrices are brought; None leaves them.
        group: columns for each scale of those.
        progress: called with the share loaded, 0 .. 1.

    Raises:
        DecoderError: a model of another kind, which transformers may know; or there is no such layer.
        ValueError, OSError: the files are damaged, or cannot be read.
    """
    if not skip and bits is None:
        return NativeModel(load_decoder(path, bits=BITS, group=GROUP, progress=progress), positions, threads)
    first = None if progress is None else lambda share: progress(share / 4)
    decoder = load_decoder(path, bits=BITS, group=GROUP, progress=first)
    rest = None if progress is None else lambda share: progress(0.25 + 0.75 * share)
    return NativeModel(reduced(decoder, skip=skip, bits=bits, group=group, progress=rest), positions, threads)
