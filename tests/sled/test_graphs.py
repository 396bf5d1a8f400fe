"""Which captured graph serves a batch, and which are kept; nothing is captured here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.targets.graphs import Batch, GraphedForward
from sled.targets.sizes import Size
from sled.targets.work_items import divide

pytestmark = pytest.mark.model


class Untouched(GraphedForward):
    """Notes what it would have captured."""

    def __init__(self, **more) -> None:
        super().__init__(None, "cpu", kv_heads=1, head_dim=8, num_windows=1, table_room=100, **more)
        self.captures = []

    def _capture(self, bucket):
        if len(self._captured) >= self._max_graphs:
            self._captured.pop(next(iter(self._captured)))
        self.captures.append(bucket)
        result = SimpleNamespace(logits=None, token=torch.zeros(bucket.rows, dtype=torch.int32))
        return SimpleNamespace(
            graph=SimpleNamespace(replay=lambda: None), inputs=SimpleNamespace(fill=lambda _: None), result=result
        )


def batch(spans, pages=1):
    counts = np.ones(spans, np.int64)
    work = divide(counts, counts, counts * 0, tokens_per_item=8, wanted_items=4)
    ids, narrow = np.zeros(spans, np.int64), np.zeros(spans, np.int32)
    return Batch(ids, ids, ids, narrow, np.zeros(spans * pages, np.int32), (work,), 16)


def test_graph_longest_unused_goes_first():
    graphs = Untouched(max_graphs=2)
    for spans in (1, 2, 1, 4, 1, 4):
        graphs.run(batch(spans), keep_logits=False)
    assert [bucket.tokens for bucket in graphs.captures] == [1, 2, 4]


def test_batch_whose_spans_share_many_pages_has_room_for_their_table():
    """8 sessions over one prompt of 40 pages name 320 pages, though there may be fewer than 50."""
    graphs = Untouched()
    assert graphs.bucket(batch(8, pages=12), False).table == 0
    assert graphs.bucket(batch(8, pages=40), False).table == 512
    assert graphs.bucket(batch(8, pages=13), False).table == 128


def test_a_batch_is_padded_to_the_size_that_was_chosen_for_it():
    graphs = Untouched(sizes=lambda tokens: Size(tokens + 3, "cublaslt"))
    bucket = graphs.bucket(batch(5), False)
    assert (bucket.tokens, bucket.blas) == (8, "cublaslt")
