"""What devices and the server are told of a target, whatever computes it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sled.messages import MAX_TOKENS, Described, Vocabulary
from sled.server import TargetShape
from sled.vocabulary import vocabulary_hash

log = logging.getLogger("sled.server")


def sayable(size: int, vocabulary: Vocabulary, stop_ids: Sequence[int]) -> tuple[Vocabulary, list[int]]:
    """The vocabulary and the tokens that end an answer, without what the model never says: ids beyond its logits.

    Tokenizers may have a few more, such as one for padding, and settings of generation name what they were made with.
    A prompt with such an id is refused when it comes.
    """
    pieces = vocabulary.pieces
    usable = [stop for stop in stop_ids if 0 <= stop < size]
    if len(usable) < len(stop_ids):
        outside = ", ".join(str(stop) for stop in stop_ids if stop not in usable)
        log.warning(
            "tokens that end an answer are outside the vocabulary, and never come",
            extra={"outside": outside, "vocab_size": size, "left": len(usable)},
        )
    if len(pieces) > size:
        log.warning("the tokenizer has ids that the model has not", extra={"ids": len(pieces), "vocab_size": size})
        vocabulary = Vocabulary(pieces[:size], [special for special in vocabulary.special_ids if special < size])
    return vocabulary, usable


def describe(
    vocabulary: Vocabulary,
    stop_ids: list[int],
    target_id: bytes,
    *,
    name: str,
    dtype: str,
    vocab_size: int,
    max_positions: int,
    max_window: int,
) -> Described:
    """What devices are told.

    Args:
        vocabulary, stop_ids: from `sayable`.
        target_id: 16 bytes that differ where weights or arithmetic do.
        name, dtype, vocab_size, max_positions, max_window: of the target.
    """
    return Described(
        name=name,
        dtype=dtype,
        vocab_size=vocab_size,
        vocab_hash=vocabulary_hash(vocabulary),
        max_positions=min(max_positions, MAX_TOKENS),
        max_window=max_window,
        stop_ids=stop_ids,
        target_id=target_id,
    )


def shape_of(
    described: Described, vocabulary: Vocabulary, *, page_tokens: int, num_pages: int, page_bytes: int
) -> TargetShape:
    """What the server's machine is told."""
    return TargetShape(
        described.vocab_size,
        described.max_positions,
        described.max_window,
        frozenset(described.stop_ids),
        described.target_id,
        vocabulary.pieces,
        page_tokens,
        num_pages,
        page_bytes,
    )
