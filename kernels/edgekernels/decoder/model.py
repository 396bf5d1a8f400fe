"""A native Llama-family decoder: checked calls around the compiled forward pass, or numpy's."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _select
from edgekernels.decoder import _reference
from edgekernels.decoder.cache import KVCache
from edgekernels.decoder.checks import check
from edgekernels.decoder.config import DecoderConfig, Floats
from edgekernels.decoder.paged import KVPages, check_spans
from edgekernels.decoder.sources import GgufSource, SafetensorsSource
from edgekernels.decoder.weights import GROUPS, Weights, build
from edgekernels.gguf import GgufFile

ACTIVATIONS = ("int8", "float")
_CHUNK = 512  # tokens for which vectors are looked up at a time


def processors() -> int:
    """Processors this process may run on: more threads would wait for each other at every step."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoder:
    """A causal language model on numpy and the kernels alone.

    Args:
        config: its shape.
        weights: its weights; both are kept, not copied.
        activations: "int8" (fast) or "float" (exact) where they meet packed matrices.

    Raises:
        ValueError: another word for the activations.
        DecoderError: weights of another shape than the config's.

    One decoder may serve any number of caches and threads.
    """

    def __init__(self, config: DecoderConfig, weights: Weights, *, activations: str = "int8") -> None:
        check(config, weights)
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations is {activations!r}; pass one of {', '.join(ACTIVATIONS)}")
        self.config, self.weights, self.activations = config, weights, activations
        self._compiled: Any = _select.active_decode
        self._native = self._compiled.Model(config, weights, activations == "float") if self._compiled else None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weights.nbytes

    def new_cache(self, positions: int | None = None, *, dtype: str = "float16") -> KVCache:
        """An empty cache for one sequence.

        Args:
            positions: tokens it has room for; by default as many as the model knows, at most 8192.
            dtype: "float16", or "float32" for exactness.

        Returns:
            The cache.

        Raises:
            ValueError: an argument is out of its range, or there is no such memory.
        """
        room = min(self.config.max_positions, 8192) if positions is None else positions
        return KVCache(self.config, room, dtype, self._compiled)

    def new_pages(self, num_pages: int, *, page_tokens: int = 16) -> KVPages:
        """Pages of keys and values, in float32, for any number of sequences.

        Args:
            num_pages: pages there are.
            page_tokens: positions in each.

        Returns:
            The pages.

        Raises:
            ValueError: an argument is out of its range, or there is no such memory.
        """
        return KVPages(self.config, num_pages, page_tokens, self._compiled)

    def forward(
        self,
        tokens: Sequence[int] | npt.NDArray[np.integer],
        cache: KVCache,
        *,
        num_logits: int = 1,
        out: Floats | None = None,
        num_threads: int = 1,
    ) -> Floats:
        """Take in the tokens which follow those in the cache.

        Args:
            tokens: ids (n,), at least one.
            cache: one of this decoder's; it grows by n.
            num_logits: rows of logits wanted, those of the last tokens: 0 .. n.
            out: float32 (num_logits, vocab), C-contiguous, to write and return instead of a new array.
            num_threads: threads to divide the work among, at most one for each processor; the result is the same.

        Returns:
            Logits float32 (num_logits, vocab), of what follows each of the last tokens.

        Raises:
            TypeError: an argument has another type or dtype.
            ValueError: an argument has another shape or is out of its range, or the cache has no room; it is as before.
        """
        ids = self._ids(tokens)
        num_threads = min(_checks.num_threads(num_threads), processors() if num_threads > 1 else 1)
        num_logits = _bits_checks.integer("num_logits", num_logits, 0, len(ids))
        logits = _bits_checks.output("out", out, (num_logits, self.config.vocab_size), np.float32)
        if cache.config is not self.config or (cache.native is None) != (self._native is None):
            raise ValueError("the cache is another decoder's; make one with this decoder's new_cache")
        with cache.lock:
            if len(ids) > cache.positions - len(cache):
                raise ValueError(
                    f"{len(ids)} tokens do not fit the cache, which has {len(cache)} of {cache.positions}; truncate it"
                )
            self._run(ids, cache, logits, num_threads)
        return logits

    def forward_paged(
        self,
        tokens: Sequence[int] | npt.NDArray[np.integer],
        pages: KVPages,
        page_table: npt.NDArray[np.int32],
        page_starts: npt.NDArray[np.int64],
        token_starts: npt.NDArray[np.int64],
        past: npt.NDArray[np.int64],
        *,
        rows: npt.NDArray[np.int64],
        out: Floats | None = None,
        num_threads: int = 1,
    ) -> Floats:
        """Take in tokens of several sequences, one span of them each, whose keys and values go into their pages.

        A row of logits depends on its own sequence alone: what else is in the batch, how it is cut, the pages and the
        number of threads change no bit of it.

        Args:
            tokens: ids (n,), at least one, span after span.
            pages: this decoder's. Those into which a span writes are in no other span.
            page_table: int32 (p,), page numbers; span s owns page_table[page_starts[s] : page_starts[s + 1]], and its
                position t lies in page t // page_tokens of them.
            page_starts: int64 (spans + 1,), rising from 0 to p.
            token_starts: int64 (spans + 1,), rising from 0 to n; span s owns these tokens.
            past: int64 (spans,), positions of each span before its tokens, which are in its pages.
            rows: int64 (m,), tokens whose logits are wanted, rising.
            out: float32 (m, vocab), C-contiguous, to write and return instead of a new array.
            num_threads: threads to divide the work among, at most one for each processor.

        Returns:
            Logits float32 (m, vocab), of what follows each of the rows' tokens.

        Raises:
            TypeError: an argument has another type or dtype.
            ValueError: an argument has another shape or is out of its range; nothing was written.
            MemoryError: no room for what is between the layers.
        """
        ids = self._ids(tokens)
        num_threads = min(_checks.num_threads(num_threads), processors() if num_threads > 1 else 1)
        if pages.config is not self.config or (pages.native is None) != (self._native is None):
            raise ValueError("the pages are another decoder's; make some with this decoder's new_pages")
        spans = check_spans(pages, len(ids), page_table, page_starts, token_starts, past, rows)
        logits = _bits_checks.output("out", out, (len(spans.rows), self.config.vocab_size), np.float32)
        with pages.lock:
            if self._native is not None:
                embedded = self.weights.embed(ids)
                self._compiled.forward_paged(self._native, pages.native, embedded, *spans, logits, num_threads)
            else:
                logits[...] = _reference.forward_paged(
                    self.config, self.weights, ids, pages.keys, pages.values, *spans, activations=self.activations
                )
        return logits

    def _run(self, ids: npt.NDArray[np.int64], cache: KVCache, logits: Floats, num_threads: int) -> None:
        past = len(cache)
        for at in range(0, len(ids), _CHUNK):
            chunk = ids[at : at + _CHUNK]
            before = min(max(at - len(ids) + len(logits), 0), len(logits))
            after = max(at + len(chunk) - len(ids) + len(logits), 0)
            rows = logits[before:after]
            if self._native is not None:
                embedded = self.weights.embed(chunk)
                self._compiled.forward(self._native, cache.native, past + at, embedded, rows, num_threads)
            else:
                rows[...] = _reference.forward(
                    self.config,
                    self.weights,
                    chunk,
                    cache.keys,
                    cache.values,
                    past=past + at,
                    half=cache.half,
                    num_logits=len(rows),
                    activations=self.activations,
                )
        cache.append(len(ids))

    def _ids(self, tokens: Any) -> npt.NDArray[np.int64]:
        ids = np.asarray(tokens)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or not len(ids):
            raise ValueError(f"tokens has dtype {ids.dtype} and shape {ids.shape}; pass integers (n,), at least one")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"tokens are {ids.min()} .. {ids.max()}; pass 0 .. {self.config.vocab_size - 1}")
        return ids.astype(np.int64)


def load_decoder(
    path: str | Path,
    *,
    bits: int | None = None,
    group: int = 32,
    activations: str = "int8",
    progress: Callable[[float], None] | None = None,
) -> Decoder:
    """Load a decoder from a GGUF file or a directory with config.json and safetensors.

    Args:
        path: the file or the directory.
        bits: width, 1 .. 8, to which matrices stored as floats are quantised; None keeps them as float32. Those
            which a GGUF file holds quantised stay exactly as they are.
        group: columns for each scale of those: 16, 32, 64, 128 or 256, less where it does not divide the columns.
        activations: "int8" (fast) or "float" (exact).
        progress: called with the share loaded, 0 .. 1.

    Returns:
        The decoder.

    Raises:
        DecoderError: the files hold no model which it can run.
        ValueError: an argument is out of its range, or a file is damaged (GgufError, SafetensorsError).
        OSError: a file cannot be read.
    """
    if group not in GROUPS:
        raise ValueError(f"group is {group!r}; pass one of {', '.join(map(str, reversed(GROUPS)))}")
    if bits is not None:
        bits = _bits_checks.integer("bits", bits, 1, 8)
    path = Path(path)
    if path.is_dir():
        source = SafetensorsSource(path, bits, group)
        with source.file:
            return _decoder(source, activations, progress)
    with GgufFile(path) as file:
        return _decoder(GgufSource(file, bits, group), activations, progress)


def _decoder(
    source: GgufSource | SafetensorsSource, activations: str, progress: Callable[[float], None] | None
) -> Decoder:
    config = source.config()
    return Decoder(config, build(source, config, progress), activations=activations)
