"""The trial of every target at load: two sessions in two ragged forwards, against what the model says by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sled.errors import UnknownModel
from sled.types import Chunk

NUM_TOKENS = 24
REST = 4  # tokens of the second forward, whose logits are compared
EXACT = 1e-3  # of the largest logit
COARSE = 0.1  # half precision, through some tens of layers; what is left out or mixed shows as about 1
Floats = NDArray[np.float32]


def texts_of(vocab_size: int, longest: int) -> list[list[int]]:
    """The two texts, of `longest` tokens and of few."""
    lengths = ((7919, longest), (104729, min(NUM_TOKENS, longest)))
    return [[(i * step + step) % vocab_size for i in range(length)] for step, length in lengths]


def pages_of(texts: Sequence[Sequence[int]], page_tokens: int) -> int:
    """Pages the trial needs."""
    return sum(-(-len(text) // page_tokens) for text in texts)


def compare(
    kind: str,
    texts: Sequence[Sequence[int]],
    right: Floats,
    compute: Callable[[Sequence[Chunk]], Any],
    page_tokens: int,
    tolerance: float,
) -> None:
    """Hold logits of ragged batches against the model's own.

    Args:
        kind: of model, for messages.
        texts: from `texts_of`.
        right: (2, REST, vocab), its own logits of the last tokens of each.
        compute: chunks to logits, an array (rows, vocab).
        page_tokens: positions in a page.
        tolerance: of the largest logit.

    Raises:
        UnknownModel: the results are not numbers, or differ by more.
    """
    first, parts = 0, []
    for text in texts:
        count = -(-len(text) // page_tokens)
        parts.append((text, tuple(range(first, first + count))))
        first += count
    for rest in (False, True):
        chunks = []
        for number, (text, pages) in enumerate(parts):
            cut = len(text) - REST
            tokens = text[cut:] if rest else text[:cut]
            chunks.append(Chunk(b"%d" % number, tuple(tokens), cut * rest, REST * rest, pages))
        found = np.asarray(compute(chunks))
    error = float(np.abs(found.reshape(right.shape) - right).max() / np.abs(right).max())
    if not np.isfinite(right).all():
        raise UnknownModel(f"{kind} gives logits that are no numbers; use weights that are whole, or another dtype")
    if not error < tolerance:
        raise UnknownModel(
            f"{kind} computes something besides plain attention (batched logits are off by {error:.1%}), "
            "which is not supported yet; use another target"
        )
