"""Paged, ragged batches against transformers' own forward, family by family."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.targets.causal_lm import CausalLMTarget
from tests.sled.tiny_models import BACKENDS, FAMILIES, VOCAB, FakeCodec, Paging, fill_with_nan, plain_rows, tiny

pytestmark = pytest.mark.model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_with_rollback_equal_the_plain_forward(family, backend):
    target = CausalLMTarget(tiny(family), FakeCodec(), name="tiny", kv_bytes=1 << 20, attention=backend)
    fill_with_nan(target)
    check_ragged_batches(tiny(family), target)


def check_ragged_batches(plain, target, tolerance=3e-6):
    """Three sessions, ragged chunks, rejected drafts overwritten: every row equals a forward over the whole text."""
    paging = Paging(target)
    rng = np.random.default_rng(1)
    texts = [rng.integers(VOCAB, size=n).tolist() for n in (3, 30, 1)]
    kept = [0, 0, 0]
    for _ in range(8):
        chosen = [s for s in range(3) if rng.random() < 0.8] or [0]
        chunks, checks = [], []
        for s in chosen:
            draft = rng.integers(VOCAB, size=rng.integers(0, 6)).tolist()
            chunks.append(paging.chunk(s, texts[s][kept[s] :] + draft, kept[s], len(draft) + 1))
            checks.append((texts[s] + draft, len(draft) + 1))
            accepted = int(rng.integers(0, len(draft) + 1))
            texts[s] += [*draft[:accepted], int(rng.integers(VOCAB))]
            kept[s] = len(texts[s]) - 1
        rows = torch.as_tensor(target.logits(chunks))
        right = torch.cat([plain_rows(plain, text, n) for text, n in checks])
        assert float((rows - right).abs().max() / right.abs().max()) < tolerance
