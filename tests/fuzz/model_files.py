"""Small model files to begin with, and the way from bytes to the file that the readers want."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from edgekernels.decoder import load_decoder

# type id: (values of a block, bytes of a block), as ggml has them; written out again, so that a seed does not follow
# the reader into an error
_GGUF_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip


@contextmanager
def on_disk(data: bytes, suffix: str) -> Iterator[Path]:
    """A file with these bytes, alone in its directory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(data)
        yield path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf(pairs: list[bytes], kinds: list[int]) -> bytes:
    """A file with one tensor of two blocks' columns and one row for each type."""
    heads, data = b"", b""
    for kind in kinds:
        values, size = _GGUF_TYPES[kind]
        heads += _text(f"blk.{kind}") + struct.pack("<IQQIQ", 2, 2 * values, 1, kind, len(data))
        data += bytes(range(1, 2 * size % 250 + 1)).ljust(2 * size, b"\x3c")
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(kinds), len(pairs)) + b"".join(pairs) + heads
    return head + bytes(-len(head) % 32) + data


def gguf_seeds() -> Iterator[bytes]:
    """Metadata of every kind, and every type of tensor."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    pairs = [_text(f"k{kind}") + struct.pack(f"<I{code}", kind, 1) for kind, code in scalars.items()]
    yield _gguf([*pairs, _text("s") + struct.pack("<I", 8) + _text("grüße")], [])
    arrays = [_text(f"a{kind}") + struct.pack(f"<IIQ2{code}", 9, kind, 2, 1, 0) for kind, code in scalars.items()]
    yield _gguf([*arrays, _text("t") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("bb")], [])
    yield _gguf([_text("general.alignment") + struct.pack("<II", 4, 32)], list(_GGUF_TYPES))
    for kind in _GGUF_TYPES:
        yield _gguf([], [kind])


def safetensors_seeds() -> Iterator[bytes]:
    """Every dtype in a file, and an index."""
    sizes = {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "BOOL": 1,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U8": 1,
    }
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for dtype, size in sizes.items():
        header[f"t.{dtype}"] = {"dtype": dtype, "shape": [3, 1], "data_offsets": [at, at + 3 * size]}
        at += 3 * size
    raw = json.dumps(header).encode()
    yield struct.pack("<Q", len(raw)) + raw + bytes(range(at))
    one = b'{"t":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"I8","shape":[0],"data_offsets":[4,4]}}'
    yield struct.pack("<Q", len(one)) + one + bytes(4)
    yield json.dumps({"metadata": {"total_size": 4}, "weight_map": {"t": "model-1.safetensors"}}).encode()


def decoders(data: bytes) -> None:
    """A model in GGUF: refused, or one whose forwards stay within its memory, whatever its numbers are."""
    with on_disk(data, ".gguf") as path:
        try:
            decoder = load_decoder(path)
        except ValueError:  # a DecoderError or GgufError
            return
    assert decoder.config.num_heads % decoder.config.num_kv_heads == 0
    with contextlib.suppress(MemoryError):
        cache = decoder.new_cache(min(8, decoder.config.max_positions))
        tokens = [position % decoder.config.vocab_size for position in range(min(3, cache.positions))]
        logits = decoder.forward(tokens, cache, num_logits=1)
        assert logits.shape == (1, decoder.config.vocab_size)


def decoder_seeds() -> Iterator[bytes]:
    """A model of one layer, of each of a few types; and one whose heads do not divide."""
    for kind in (2, 6):
        yield _model(kind)
    yield _model(2, num_heads=4, num_kv_heads=3)


def _model(kind: int, num_heads: int = 2, num_kv_heads: int = 1) -> bytes:
    """Matrices of one type, vectors of floats, and what the reader asks of the metadata."""
    hidden, ffn, vocab, wide, narrow = 32, 32, 4, 16 * num_heads, 16 * num_kv_heads
    numbers = {
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "block_count": 1,
        "attention.head_count": num_heads,
        "attention.head_count_kv": num_kv_heads,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "context_length": 16,
    }
    pairs = [_text("general.architecture") + struct.pack("<I", 8) + _text("llama")]
    pairs += [_text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    pairs += [_text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    shapes = {"token_embd": (hidden, vocab), "output_norm": (hidden,)}
    shapes |= {f"blk.0.{norm}": (hidden,) for norm in ("attn_norm", "ffn_norm")}
    shapes |= {"blk.0.attn_q": (hidden, wide), "blk.0.attn_k": (hidden, narrow), "blk.0.attn_v": (hidden, narrow)}
    shapes |= {"blk.0.attn_output": (wide, hidden), "blk.0.ffn_gate": (hidden, ffn)}
    shapes |= {"blk.0.ffn_up": (hidden, ffn), "blk.0.ffn_down": (ffn, hidden)}
    heads, data = b"", b""
    for name, shape in shapes.items():
        of = kind if len(shape) == 2 else 0
        values, size = _GGUF_TYPES[of]
        heads += _text(f"{name}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, of, len(data))
        num_bytes = int(np.prod(shape)) // values * size
        data += bytes(60 if i % 2 else i % 251 for i in range(num_bytes))
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs)) + b"".join(pairs) + heads
    return head + bytes(-len(head) % 32) + data


SEEDS = {"gguf": gguf_seeds, "safetensors": safetensors_seeds, "decoders": decoder_seeds}
