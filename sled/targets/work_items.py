"""How a ragged batch's attention is divided into equal pieces of work for a GPU.

Pure numpy. A piece is a few query tokens of one span against a stretch of its positions; long stretches are divided so
that one long session, or few sessions, keep the whole GPU busy, and their partial results are merged afterwards
(Flash-Decoding, arXiv 2311.01282; the ragged form is FlashInfer's, arXiv 2501.01005).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
FIELDS = ("token", "num_tokens", "position", "table", "begin", "end", "slot", "spare")
STRETCH = 64  # positions are divided at multiples of this


class WorkItems(NamedTuple):
    """The pieces of one step.

    Args:
        items: int32 (n, 8), rows of FIELDS: first query token in the packed batch, number of them, position of the
            first, start of the span's pages in the flat page table, positions begin .. end to look at, and where
            the partial result goes, or -1 if the piece is whole.
        merges: int32 (tokens, 4): first slot of each token's partial results, their number (0 if its piece is whole),
            its place among its piece's tokens, spare.
        num_slots: partial results there are.
    """

    items: Ints
    merges: Ints
    num_slots: int


def divide(
    counts: NDArray[np.int64],
    past: NDArray[np.int64],
    tables: NDArray[np.int64],
    *,
    tokens_per_item: int,
    wanted_items: int,
    shortest: int = 256,
    window: int = 0,
) -> WorkItems:
    """Divide a batch.

    Args:
        counts: (spans,) query tokens of each span, which lie one after the other.
        past: (spans,) position of its first one.
        tables: (spans,) where its pages begin in the flat page table.
        tokens_per_item: query tokens a piece holds at most.
        wanted_items: pieces that keep the GPU busy; more come about where spans are many.
        shortest: positions below which a stretch is not divided.
        window: positions a token sees, itself included; 0 is all.
    """
    starts = np.cumsum(counts) - counts
    blocks = -(-counts // tokens_per_item)
    span = np.repeat(np.arange(len(counts)), blocks)
    within = (np.arange(len(span)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * tokens_per_item
    num_tokens = np.minimum(counts[span] - within, tokens_per_item)
    position = past[span] + within
    end = position + num_tokens
    begin = np.maximum(position + 1 - window, 0) // STRETCH * STRETCH if window else np.zeros_like(end)
    length = end - begin
    stretch = max(shortest, -(-int(length.sum()) // max(wanted_items, 1)))
    stretch = -(-stretch // STRETCH) * STRETCH
    splits = -(-length // stretch)
    even = -(-length // splits)
    even = -(-even // STRETCH) * STRETCH
    splits = -(-length // np.maximum(even, 1))
    first = np.cumsum(splits) - splits
    slots = np.where(splits > 1, np.cumsum(np.where(splits > 1, splits, 0)) - np.where(splits > 1, splits, 0), -1)
    block = np.repeat(np.arange(len(span)), splits)
    part = np.arange(len(block)) - first[block]
    items = np.zeros((len(block), len(FIELDS)), np.int32)
    items[:, 0] = (starts[span] + within)[block]
    items[:, 1] = num_tokens[block]
    items[:, 2] = position[block]
    items[:, 3] = tables[span][block]
    items[:, 4] = begin[block] + part * even[block]
    items[:, 5] = np.minimum(items[:, 4] + even[block], end[block])
    items[:, 6] = np.where(splits[block] > 1, slots[block] + part, -1)
    of_token = np.repeat(np.arange(len(span)), num_tokens)
    merges = np.zeros((int(counts.sum()), 4), np.int32)
    merges[:, 0] = np.maximum(slots[of_token], 0)
    merges[:, 1] = np.where(splits[of_token] > 1, splits[of_token], 0)
    merges[:, 2] = np.arange(len(of_token)) - np.repeat(np.cumsum(num_tokens) - num_tokens, num_tokens)
    # Long pieces first: what is left at the end is then short.
    order = np.argsort(items[:, 4] - items[:, 5], kind="stable")
    return WorkItems(items[order], merges, int(np.where(splits > 1, splits, 0).sum()))
