"""Pieces of attention work, carried out in numpy the way the GPU does, against plain attention."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.targets.work_items import STRETCH, divide

SPANS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 700)), min_size=1, max_size=6)


def arrays(spans, page_tokens=16):
    counts, past = (np.array(part, np.int64) for part in zip(*spans, strict=True))
    num_pages = -(-(counts + past) // page_tokens)
    return counts, past, np.cumsum(num_pages) - num_pages


def attended(work, scores, values, counts, past, window):
    """What the pieces compute: a softmax mean over each stretch, merged by its weight. scores[s] is (count, length)."""
    tokens = int(counts.sum())
    out = np.full((tokens, values[0].shape[1]), np.nan)
    partial = np.full((work.num_slots, 64, values[0].shape[1]), np.nan)
    sums = np.full((work.num_slots, 64), np.nan)
    span_of = np.repeat(np.arange(len(counts)), counts)
    start_of = np.repeat(np.cumsum(counts) - counts, counts)
    for token, num, position, _, begin, end, slot, _ in work.items:
        s = span_of[token]
        for i in range(num):
            row = token + i - start_of[token]
            seen = np.arange(begin, end)
            seen = seen[(seen <= position + i) & ((seen > position + i - window) | (window == 0))]
            weights = np.exp(scores[s][row][seen])
            total = weights.sum()
            mean = weights @ values[s][seen] / (total or 1.0)
            if slot < 0:
                assert np.isnan(out[token + i]).all(), "written twice"
                out[token + i] = mean
            else:
                assert np.isnan(sums[slot, i]), "written twice"
                partial[slot, i], sums[slot, i] = mean, total
    for token, (first, count, place, _) in enumerate(work.merges):
        if count:
            weights = sums[first : first + count, place]
            out[token] = weights @ partial[first : first + count, place] / weights.sum()
    return out


@settings(max_examples=60, deadline=None)
@given(SPANS, st.integers(1, 64), st.integers(1, 40), st.sampled_from([0, 1, 7, 100, 300]), st.integers(0, 2**31))
def test_pieces_together_are_the_whole_attention(spans, per_item, wanted, window, seed):
    rng = np.random.default_rng(seed)
    counts, past, tables = arrays(spans)
    work = divide(counts, past, tables, tokens_per_item=per_item, wanted_items=wanted, shortest=64, window=window)
    scores = [rng.normal(size=(c, c + p)) for c, p in spans]
    values = [rng.normal(size=(c + p, 3)) for c, p in spans]
    out, row = attended(work, scores, values, counts, past, window), 0
    for s, (count, before) in enumerate(spans):
        for i in range(count):
            first = max(0, before + i - window + 1) if window else 0
            weights = np.exp(scores[s][i][first : before + i + 1])
            np.testing.assert_allclose(out[row], weights @ values[s][first : before + i + 1] / weights.sum())
            row += 1


@given(SPANS, st.integers(1, 64), st.integers(1, 300))
def test_pieces_keep_to_their_limits(spans, per_item, wanted):
    counts, past, tables = arrays(spans)
    work = divide(counts, past, tables, tokens_per_item=per_item, wanted_items=wanted, shortest=128)
    items = work.items
    assert (items[:, 1] <= per_item).all()
    assert (items[:, 4] % STRETCH == 0).all()
    assert (items[:, 5] > items[:, 4]).all()
    slots = items[items[:, 6] >= 0, 6]
    assert sorted(slots) == list(range(work.num_slots))
    blocks = sum(-(-c // per_item) for c in counts)
    assert len(items) <= blocks + wanted + len(items) // 2, "about as many pieces as wanted, or one for each block"
    assert set(items[:, 3]) == set(tables)


def test_hand_worked():
    """Two spans: one token after 511, which is divided in four, and five tokens after 10, which is not."""
    counts, past, tables = arrays([(1, 511), (5, 10)])
    work = divide(counts, past, tables, tokens_per_item=8, wanted_items=4, shortest=64)
    assert work.num_slots == 3
    whole = work.items[work.items[:, 6] < 0]
    assert whole.tolist() == [[1, 5, 10, 32, 0, 15, -1, 0]]
    assert work.items[:3, 4:7].tolist() == [[0, 192, 0], [192, 384, 1], [384, 512, 2]]
    assert work.merges.tolist() == [[0, 3, 0, 0], *([0, 0, place, 0] for place in range(5))]
