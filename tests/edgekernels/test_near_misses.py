"""Skipping may never lose a winner: close races of two tokens, the noise of one being as rare as can be."""

import numpy as np
import pytest
from edgekernels import _reference, gumbel, noise_bits, sample

VOCAB = 50_000
MARGIN = 1e-3
LARGEST = (3019, 46_207)  # position and id whose word under seed 0 is 2**32 - 1: found by search


def race(position, rival, margin, temperature=1.0, **filters):
    """Choice between id 0, the larger logit, and a rival which noise lifts `margin` above it."""
    lead, lift = gumbel(noise_bits(0, position, [0, rival]))
    row = np.full((1, VOCAB), -80.0, np.float32)
    row[0, rival] = 0.0
    row[0, 0] = (lift - lead - margin) * temperature
    return int(sample(row, temperature=temperature, position=position, **filters)[0])


def test_largest_possible_noise_wins_by_a_hair(engine):
    position, rival = LARGEST
    assert noise_bits(0, position, [rival]).tolist() == [2**32 - 1]
    assert race(position, rival, MARGIN) == rival
    assert race(position, rival, -MARGIN) == 0


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_close_races_end_right(engine, temperature):
    """Rivals of all amounts of noise: the rarest of a vocabulary, and those of the first ids."""
    for position in range(10):
        words = noise_bits(0, position, np.arange(VOCAB))
        for rival in {int(np.argmax(words)), *np.argsort(words)[-40:-1:13].tolist(), 1, 2, 63, 64, 65}:
            if gumbel(words[[rival]])[0] < gumbel(words[[0]])[0] + MARGIN:
                continue  # id 0 would not be the larger logit
            assert race(position, rival, MARGIN, temperature) == rival
            assert race(position, rival, -MARGIN, temperature) == 0


def test_filters_take_the_rival_out(engine):
    position, rival = LARGEST
    assert race(position, rival, MARGIN, top_k=1) == 0
    assert race(position, rival, MARGIN, top_k=2) == rival
    assert race(position, rival, MARGIN, top_p=0.999) == 0


CUTS = [*({"top_k": k} for k in (1, 2, 40, 900, 2500)), {"top_p": 0.3}, {"top_p": 0.97}]


@pytest.mark.parametrize("vocab", [100, 3000, 40_000])
@pytest.mark.parametrize("filters", CUTS, ids=str)
def test_filters_cut_at_the_very_rank(engine, vocab, filters):
    """The id with the largest noise wins a nearly flat race as the last survivor, and loses it as the next."""
    temperature = 1e5
    logits = np.random.default_rng(vocab).normal(0, 1, vocab).astype(np.float32)
    survivors = _reference.survivors(logits, temperature, filters.get("top_k", 0), filters.get("top_p", 1.0))
    kept = int(survivors.sum())
    assert kept == min(filters.get("top_k", kept), vocab)
    descending = np.argsort(-logits)
    lucky = int(np.argmax(noise_bits(0, 0, np.arange(vocab))))
    for rank, wins in ((kept - 1, True), (kept, False)):
        if rank == vocab:
            continue
        row = logits.copy()
        row[[lucky, descending[rank]]] = row[[descending[rank], lucky]]
        assert (sample(row[None], temperature=temperature, **filters)[0] == lucky) == wins


@pytest.mark.parametrize("filters", [{"top_k": 3000}, {"top_p": 0.4999}])
def test_filters_cut_between_two_levels(engine, filters):
    """The floor falls exactly where the count is reached, with nothing between the two levels."""
    row = np.zeros((1, 6000), np.float32)
    row[0, :3000] = 1.0
    chosen = sample(np.repeat(row, 30, axis=0), temperature=1e5, position=np.arange(30), **filters)
    assert chosen.max() < 3000
