"""Where the tokens of a packed batch stand: one sequence of all chunks' tokens, each over its session's pages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sled.acceptance import RoundRows
from sled.types import Chunk

Ints = NDArray[np.int64]


class Layout(NamedTuple):
    """A packed batch on the host; a span is one chunk's part of it.

    Args:
        tokens: (tokens,) ids, span after span.
        positions: (tokens,) positions within their sessions.
        rows: (logit rows,) indices into the batch, rising.
        token_starts: (spans + 1,); span s has tokens[token_starts[s] : token_starts[s + 1]].
        past: (spans,) positions that are in the pages already.
        page_table: int32 (pages,), span after span, only those that hold something.
        page_starts: (spans + 1,) into the page table.
        page_tokens: positions in a page.
    """

    tokens: Ints
    positions: Ints
    rows: Ints
    token_starts: Ints
    past: Ints
    page_table: NDArray[np.int32]
    page_starts: Ints
    page_tokens: int

    @property
    def num_new(self) -> Ints:
        """(spans,) tokens of each span."""
        return np.diff(self.token_starts)

    @property
    def span_of_token(self) -> Ints:
        """(tokens,) the span each token belongs to."""
        return np.repeat(np.arange(len(self.past)), self.num_new)

    def places(self) -> tuple[Ints, Ints]:
        """(tokens,) page and slot into which each token's keys and values go."""
        first = np.repeat(self.page_starts[:-1], self.num_new)
        return self.page_table[first + self.positions // self.page_tokens].astype(np.int64), (
            self.positions % self.page_tokens
        )

    def padded_pages(self) -> NDArray[np.int32]:
        """Page table (spans, most pages of a span), 0 behind each span's own."""
        counts = np.diff(self.page_starts)
        table = np.zeros((len(counts), int(counts.max(initial=1))), np.int32)
        table[np.arange(table.shape[1]) < counts[:, None]] = self.page_table
        return table


def _starts(counts: Sequence[int]) -> Ints:
    return np.cumsum([0, *counts], dtype=np.int64)


def lay_out(chunks: Sequence[Chunk], *, page_tokens: int, num_pages: int) -> Layout:
    """Pack chunks into one batch.

    Args:
        chunks: of different sessions, each with the pages that hold its positions.
        page_tokens: positions in a page.
        num_pages: pages there are.

    Raises:
        ValueError: a chunk has no tokens, too few pages for them, or a page that does not exist.
    """
    used = []
    for chunk in chunks:
        needed = -(-(chunk.past + len(chunk.tokens)) // page_tokens)
        if not chunk.tokens or not 0 <= chunk.num_logits <= len(chunk.tokens):
            raise ValueError(f"a chunk of {len(chunk.tokens)} tokens wants {chunk.num_logits} logits; give 1 or more")
        if len(chunk.pages) < needed:
            end = chunk.past + len(chunk.tokens)
            raise ValueError(f"a chunk up to position {end} has {len(chunk.pages)} pages; give it {needed}")
        used.append(chunk.pages[:needed])
    counts = [len(chunk.tokens) for chunk in chunks]
    starts, past = _starts(counts), np.array([chunk.past for chunk in chunks], np.int64)
    tokens = np.fromiter(chain.from_iterable(chunk.tokens for chunk in chunks), np.int64, int(starts[-1]))
    wanted = [chunk.num_logits for chunk in chunks]
    row_starts = _starts(wanted)
    page_starts = _starts([len(pages) for pages in used])
    table = np.fromiter(chain.from_iterable(used), np.int32, int(page_starts[-1]))
    if len(table) and not 0 <= table.min() <= table.max() < num_pages:
        raise ValueError(f"pages {table.min()} .. {table.max()} are named; there are 0 .. {num_pages - 1}")
    return Layout(
        tokens,
        np.arange(len(tokens)) + np.repeat(past - starts[:-1], counts),
        np.arange(int(row_starts[-1])) + np.repeat(starts[1:] - row_starts[1:], wanted),
        starts,
        past,
        table,
        page_starts,
        page_tokens,
    )


def check_rounds(chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> None:
    """Insist that the chunks want the rows which the rounds decide.

    Raises:
        ValueError: they do not.
    """
    wanted = [chunk.num_logits for chunk in chunks if chunk.num_logits]
    if wanted != [len(r.draft) + 1 for r in rounds]:
        raise ValueError(f"the chunks want {wanted} rows of logits, which are not those of the rounds")
