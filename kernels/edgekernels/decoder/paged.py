"""Keys and values of many sequences in pages, and the checks of a call that computes them together."""

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekernels import _attention_checks, _bits_checks, _checks
from edgekernels.decoder.config import DecoderConfig

Ints = npt.NDArray[np.int64]
MAX_PAGES = (1 << 31) - 1


class KVPages:
    """Pages of keys and values, float32; made by `Decoder.new_pages`. Which sequence has which is the caller's to say.

    One forward pass at a time. Memory is reserved for all pages and used as they are filled.

    Args:
        config: of the model.
        num_pages: pages there are.
        page_tokens: positions in each.
        compiled: the module of the compiled decoder, or None for numpy.

    Raises:
        ValueError: an argument is out of its range, or there is no such memory.
    """

    def __init__(self, config: DecoderConfig, num_pages: int, page_tokens: int, compiled: Any) -> None:
        self.num_pages = _bits_checks.integer("num_pages", num_pages, 1, MAX_PAGES)
        self.page_tokens = _bits_checks.integer("page_tokens", page_tokens, 1, 1 << 16)
        if config.head_dim > _attention_checks.MAX_DIM:
            raise ValueError(f"heads have {config.head_dim} dimensions; pages take {_attention_checks.MAX_DIM} at most")
        self.config, self.lock = config, threading.Lock()
        shape = (config.num_layers, self.num_pages, config.num_kv_heads, self.page_tokens, config.head_dim)
        try:
            self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        except (MemoryError, ValueError):
            raise ValueError(f"no memory for {num_pages} pages of {page_tokens} tokens; pass fewer") from None
        self.native = compiled.Pages(self.keys, self.values) if compiled else None

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return self.keys.nbytes + self.values.nbytes


class Spans(NamedTuple):
    """Where the tokens of a call stand; arrays of our own, which nobody changes any more once they are checked."""

    page_table: npt.NDArray[np.int32]
    page_starts: Ints
    token_starts: Ints
    past: Ints
    rows: Ints


def check_spans(
    pages: KVPages, num_tokens: int, page_table: Any, page_starts: Any, token_starts: Any, past: Any, rows: Any
) -> Spans:
    """Insist on spans which fit together, their pages and the model's positions.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.
    """
    spans = Spans(
        _checks.array("page_table", page_table, np.int32, 1).copy(),
        _checks.array("page_starts", page_starts, np.int64, 1).copy(),
        _checks.array("token_starts", token_starts, np.int64, 1).copy(),
        _checks.array("past", past, np.int64, 1).copy(),
        _checks.array("rows", rows, np.int64, 1).copy(),
    )
    _sizes(pages, num_tokens, spans)
    most, own = pages.config.max_positions, spans.past + np.diff(spans.token_starts)
    if own.max() > most:
        s = int(own.argmax())
        raise ValueError(f"span {s} ends at position {own[s]}; the model has {most}")
    if len(rows := spans.rows):
        if rows.min() < 0 or rows.max() >= num_tokens:
            raise ValueError(f"rows are {rows.min()} .. {rows.max()}; pass 0 .. {num_tokens - 1}")
        if (rows[1:] <= rows[:-1]).any():
            raise ValueError("rows do not rise; pass each token once, in order")
    return spans


def _sizes(pages: KVPages, num_tokens: int, spans: Spans) -> None:
    """Offsets, and pages for all positions."""
    count = len(spans.past)
    _checks.offsets("token_starts", spans.token_starts, count, num_tokens)
    _checks.offsets("page_starts", spans.page_starts, count, len(spans.page_table))
    if spans.past.min() < 0:
        raise ValueError(f"past is {spans.past.min()}; pass 0 or more")
    room, tokens = np.diff(spans.page_starts) * pages.page_tokens, np.diff(spans.token_starts)
    for s in np.flatnonzero(spans.past > room - tokens)[:1]:
        needed = -(-(int(spans.past[s]) + int(tokens[s])) // pages.page_tokens)
        raise ValueError(
            f"span {s} has {spans.past[s]} past and {tokens[s]} new tokens, its pages hold {room[s]}; "
            f"pass {needed} pages"
        )
    table = spans.page_table
    if table.min() < 0 or table.max() >= pages.num_pages:
        raise ValueError(f"page_table names {table.min()} .. {table.max()}; pass pages 0 .. {pages.num_pages - 1}")
