"""Models of the Llama family on our own decoder as a target for CPUs; a GGUF file needs neither torch nor transformers.

The weights stay as the file has them, quantised ones packed. With float activations the arithmetic is that of the
dequantised model in float32, up to the order of sums; with int8 ones it is llama.cpp's.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import edgekernels
import numpy as np
from edgekernels.decoder import Decoder, load_decoder
from edgekernels.decoder.model import processors
from edgekernels.gguf import GgufFile
from numpy.typing import NDArray

from sled import acceptance
from sled.acceptance import Decision, RoundRows
from sled.errors import OutOfMemory, UnknownModel
from sled.messages import MAX_WINDOW
from sled.targets.catalog import ModelFiles
from sled.targets.describing import describe, sayable, shape_of
from sled.targets.faithful import insist_faithful
from sled.targets.layout import check_rounds, lay_out
from sled.targets.room import PAGE_TOKENS_ON_CPU, SHARE_ON_CPU, host_bytes, insist_on_pages, pages_in
from sled.targets.text import TextCodec, codec_from_directory, codec_from_gguf
from sled.targets.trial import COARSE, EXACT, NUM_TOKENS, REST, compare, pages_of, texts_of
from sled.types import Chunk
from sled.vocabulary import vocabulary_hash

Activations = Literal["float", "int8"]
_ARITHMETIC = {"float": "float32", "int8": "int8"}


class NativeTarget:
    """A decoder that computes ragged batches over pages of keys and values; logits depend on no company.

    Args:
        decoder: the model.
        codec: its tokenizer.
        name: what devices are told.
        max_window: drafts per round that devices may send, at most 64.
        kv_bytes: memory for keys and values; None takes a share of what is free.
        page_tokens: positions in a page; None takes 16.
        num_threads: threads to compute on; 0 takes all processors.

    Raises:
        UnknownModel: its logits are no numbers.
        ParameterError: `kv_bytes` is too little.
        OutOfMemory: no room for `kv_bytes`.
    """

    engine = "native"

    def __init__(
        self,
        decoder: Decoder,
        codec: TextCodec,
        *,
        name: str,
        max_window: int = 16,
        kv_bytes: int | None = None,
        page_tokens: int | None = None,
        num_threads: int = 0,
    ) -> None:
        assert 0 <= max_window <= MAX_WINDOW
        config, page_tokens = decoder.config, page_tokens or PAGE_TOKENS_ON_CPU
        self.decoder, self.codec, self.num_threads = decoder, codec, num_threads or processors()
        self.vocabulary, stop_ids = sayable(config.vocab_size, codec.vocabulary(), codec.stop_ids)
        page_bytes = 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * page_tokens
        num_pages = pages_in(kv_bytes, page_bytes, page_tokens, by_default=host_bytes() * SHARE_ON_CPU)
        texts = texts_of(config.vocab_size, min(NUM_TOKENS, config.max_positions))
        insist_on_pages(num_pages, pages_of(texts, page_tokens), page_bytes)
        try:
            self.pages = decoder.new_pages(num_pages, page_tokens=page_tokens)
        except ValueError:
            total = page_bytes * num_pages
            raise OutOfMemory(f"no room for {total >> 20} MiB of keys and values; give a smaller kv_bytes") from None
        self.described = describe(
            self.vocabulary,
            stop_ids,
            _target_id(decoder, vocabulary_hash(self.vocabulary)),
            name=name,
            dtype=_ARITHMETIC[decoder.activations],
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            max_window=max_window,
        )
        self.shape = shape_of(
            self.described, self.vocabulary, page_tokens=page_tokens, num_pages=num_pages, page_bytes=page_bytes
        )
        right = np.stack([_own_logits(decoder, text) for text in texts])
        tolerance = EXACT if decoder.activations == "float" else COARSE
        compare(name, texts, right, self.logits, page_tokens, tolerance)

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """See `sled.targets.Target.verify`."""
        check_rounds(chunks, rounds)
        try:
            return acceptance.decide(self.logits(chunks), rounds, num_threads=self.num_threads)
        except MemoryError as error:
            traceback.clear_frames(error.__traceback__)
        raise OutOfMemory("no memory for this batch; lower batch_tokens, or kv_bytes of the target")

    def logits(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Logits (rows, vocab), `num_logits` rows per chunk in order."""
        layout = lay_out(chunks, page_tokens=self.shape.page_tokens, num_pages=self.shape.num_pages)
        return self.decoder.forward_paged(
            layout.tokens,
            self.pages,
            layout.page_table,
            layout.page_starts,
            layout.token_starts,
            layout.past,
            rows=layout.rows,
            num_threads=self.num_threads,
        )


def _own_logits(decoder: Decoder, text: Sequence[int]) -> NDArray[np.float32]:
    """Of the last tokens of a text, over a cache of its own."""
    cache = decoder.new_cache(len(text), dtype="float32")
    return decoder.forward(text, cache, num_logits=REST)


def _target_id(decoder: Decoder, vocab_hash: bytes) -> bytes:
    """16 bytes that differ where the vocabulary, the arithmetic or (a sample of) the weights do.

    Never those of a target in torch: answers are the same but where two tokens are as good as equal.
    """
    digest = hashlib.blake2b(vocab_hash + b"native " + decoder.activations.encode(), digest_size=16)
    digest.update(repr(decoder.config.norm_epsilon).encode())
    for array in _arrays(decoder):
        flat = array.reshape(-1)
        digest.update(str((array.dtype.str, array.shape)).encode() + flat[:: max(1, len(flat) // 997)].tobytes())
    return digest.digest()


def _arrays(decoder: Decoder) -> Iterator[NDArray[Any]]:
    """All weights, and how positions turn."""
    weights = decoder.weights
    parts: list[Any] = [decoder.config.frequencies, weights.embedding, weights.norm, weights.head]
    for layer in weights.layers:
        parts += [layer.attention_norm, layer.query, layer.key, layer.value, layer.query_norm, layer.key_norm]
        parts += [layer.output, layer.ffn_norm, layer.gate, layer.up, layer.down]
    for part in parts:
        for one in (part.matrix, part.bias) if hasattr(part, "matrix") else (part,):
            if isinstance(one, edgekernels.PackedMatrix):
                yield np.array([one.bits, one.group])
                yield from (array for array in (one.data, one.scale_blocks, one.offset_blocks) if array is not None)
            elif one is not None:
                yield one


def load_native(
    files: ModelFiles,
    *,
    max_window: int = 16,
    kv_bytes: int | None = None,
    page_tokens: int | None = None,
    activations: Activations = "float",
    num_threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> NativeTarget:
    """Load a target from a GGUF file or a model directory of the Llama family.

    Args:
        files: from `catalog.find_model`.
        max_window: drafts per round that devices may send.
        kv_bytes: memory for keys and values; None takes a share of what is free.
        page_tokens: positions in a page; None takes 16.
        activations: "float", exact, or "int8", as llama.cpp computes.
        num_threads: threads to compute on; 0 takes all processors.
        progress: called with the share done, 0 .. 1.

    Raises:
        UnknownModel: the files hold no model which the decoder can run as it was meant.
        ParameterError: `kv_bytes` is too little.
        OutOfMemory: no room for the model or its keys and values.
    """
    if edgekernels.backend() != "cython":
        raise UnknownModel(f"the native target needs the compiled kernels; {edgekernels.backend()} takes their place")
    try:
        codec = _codec(files)
        decoder = load_decoder(files.path, activations=activations, progress=progress)
        if files.kind == "directory":
            insist_faithful(files.path, decoder)
    except (ValueError, OSError) as error:  # DecoderError, GgufError, SafetensorsError
        raise UnknownModel(f"cannot read the model: {error}") from None
    except MemoryError:
        raise OutOfMemory(f"no memory for {files.name}; use a smaller model") from None
    return NativeTarget(
        decoder,
        codec,
        name=files.name,
        max_window=max_window,
        kv_bytes=kv_bytes,
        page_tokens=page_tokens,
        num_threads=num_threads,
    )


def _codec(files: ModelFiles) -> TextCodec:
    if files.kind == "directory":
        return codec_from_directory(files.path)
    with GgufFile(files.path) as file:
        if "tokenizer.ggml.model" not in file.metadata:
            raise UnknownModel(f"{files.path} has no tokenizer; a target needs one")
        return codec_from_gguf(file.metadata)
