"""The packaged drafter as llama.cpp takes one: with the target's whole vocabulary, which it insists on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from edgekernels.gguf import GgufFile
from numpy.typing import NDArray

from sled.drafters.own_ids import map_of

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write_widened(drafter: Path, target: Path, out: Path) -> Path:
    """Write a drafter with the tokenizer and all ids of its target, matrices in Q8_0, unless `out` is there.

    An id that the drafter lacks is read as its first one, and its logit is 0: below the likeliest of the others.

    Args:
        drafter: a GGUF file with ids of its own.
        target: the GGUF file of its target.
        out: the file to write.
    """
    if out.is_file():
        return out
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    theirs, ours = gguf.GGUFReader(target), gguf.GGUFReader(drafter)
    for name, field in theirs.fields.items():
        if name.startswith("tokenizer."):
            _copy(writer, name, field)
    for name, field in ours.fields.items():
        if name.startswith("llama.") and name != "llama.vocab_size":
            _copy(writer, name, field)
    with GgufFile(drafter) as file:
        ids, weights = map_of(file.metadata), dict(file.read_all())
    assert ids is not None
    vocab_size = len(theirs.fields["tokenizer.ggml.tokens"].data)
    writer.add_vocab_size(vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    embedding = weights.pop(_EMBEDDING)
    head = weights.pop(_HEAD, embedding)
    wide = np.broadcast_to(embedding[0], (vocab_size, embedding.shape[1])).copy()
    wide[ids] = embedding
    said = np.zeros_like(wide)
    said[ids] = head
    for name, weight in {_EMBEDDING: wide, _HEAD: said, **weights}.items():
        _add(writer, name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(out)
    return out


def _add(writer: gguf.GGUFWriter, name: str, weight: NDArray[np.float32]) -> None:
    if weight.ndim < 2:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, gguf.quants.quantize(weight, _Q8_0), raw_dtype=_Q8_0)


def _copy(writer: gguf.GGUFWriter, name: str, field: Any) -> None:
    kind = field.types[0]
    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, sub_type=sub)
