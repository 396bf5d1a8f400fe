"""Rounds of every sampling in one batch: numpy's path, torch's path, and what a masked softmax says by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sled.acceptance import Decision, RoundRows, decide
from sled.types import Sampling, SparseLaw

VOCAB = 70  # no multiple of 32


def law(*parts):
    ids = np.concatenate([np.array(list(part), "<i4") for part in parts])
    values = np.concatenate([np.array(list(part.values()), "<f4") for part in parts])
    return SparseLaw([len(part) for part in parts], ids.tobytes(), values.tobytes())


def mask(rows, allowed):
    bits = np.zeros((rows, 96), np.uint8)
    bits[:, list(allowed)] = 1
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def batch(seed=0):
    """Rounds that use every field, beside plain ones, and their logits."""
    rng = np.random.default_rng(seed)
    text = rng.integers(VOCAB, size=12).tolist()
    samplings = [
        Sampling(),
        Sampling(0.8, seed=5),
        Sampling(1.2, top_k=7, top_p=0.8, min_p=0.05, seed=6),
        Sampling(0.7, repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3, seed=7),
        Sampling(bias=((3, 100.0), (9, -100.0))),
        Sampling(0.9, seed=8, rule="rejection"),
        Sampling(0.9, seed=9, rule="rejection"),
        Sampling(0.9, seed=10),
    ]
    rounds = []
    for number, sampling in enumerate(samplings):
        draft = rng.integers(VOCAB, size=number % 4).tolist()
        own = [{token: 0.5, (token + 1) % VOCAB: 0.5} for token in draft]
        parts = [dict(sorted(part.items())) for part in own]
        rounds.append(
            RoundRows(
                draft,
                sampling,
                12,
                text,
                5,
                law(*parts) if number == 5 and draft else None,
                3 if number % 2 else -1,
                mask(len(draft) + 1, range(0, VOCAB, 2)) if number == 7 else None,
            )
        )
    rows = sum(len(r.draft) + 1 for r in rounds)
    return rng.normal(size=(rows, VOCAB)).astype(np.float32) * 3, rounds


def alone(logits, rounds):
    start = 0
    for r in rounds:
        rows = len(r.draft) + 1
        yield decide(logits[start : start + rows].copy(), [r])[0]
        start += rows


@pytest.mark.parametrize("seed", range(5))
def test_mixed_batch_decides_each_round_as_if_alone(seed):
    logits, rounds = batch(seed)
    assert decide(logits.copy(), rounds) == list(alone(logits, rounds))


def test_only_what_was_asked_for_reaches_the_kernel():
    from sled.acceptance import groups, row_starts

    rounds = [RoundRows([1], Sampling(), 4, [1, 2, 3, 4])] * 3
    (group,) = groups(rounds, row_starts(rounds), VOCAB)
    assert group.arguments == {"temperature": 0.0}
    assert group.rows is None


def test_logprobs_by_hand():
    """Raw logits 0, ln 2, ln 5 make 1/8, 2/8, 5/8, whatever temperature and bias do to the choice."""
    logits = np.log(np.array([[1, 2, 5]], np.float32))
    sampling = Sampling(bias=((0, 100.0),))
    (decision,) = decide(logits, [RoundRows([], sampling, 1, num_logprobs=2)])
    assert decision.next_token == 0
    (logprob,) = decision.logprobs
    assert logprob.value == pytest.approx(math.log(1 / 8), abs=1e-6)
    assert [i for i, _ in logprob.top] == [2, 1]
    assert [v for _, v in logprob.top] == pytest.approx([math.log(5 / 8), math.log(2 / 8)], abs=1e-6)


def test_logprobs_come_for_accepted_drafts_and_the_next_token():
    logits = np.full((3, VOCAB), -9, np.float32)
    logits[[0, 1, 2], [4, 5, 6]] = 0.0
    for draft, chosen in (([4, 5], [4, 5, 6]), ([4, 9], [4, 5]), ([9, 9], [4])):
        (decision,) = decide(logits.copy(), [RoundRows(draft, Sampling(), 1, num_logprobs=0)])
        assert [*draft[: decision.accepted], decision.next_token] == chosen
        assert len(decision.logprobs) == len(chosen)
        assert all(entry.top == [] and entry.value > -0.02 for entry in decision.logprobs)


def test_mask_forbids_and_logprobs_know_nothing_of_it():
    logits = np.zeros((2, VOCAB), np.float32)
    logits[:, 69], logits[:, 64] = 9.0, 5.0
    r = RoundRows([69], Sampling(), 1, num_logprobs=1, allowed=mask(2, [2, 64]))
    (decision,) = decide(logits, [r])
    assert (decision.accepted, decision.next_token) == (0, 64)
    assert decision.logprobs[0].top[0][0] == 69


def test_mask_of_fewer_words_forbids_the_ids_it_says_nothing_of():
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 69], logits[0, 7] = 9.0, 1.0
    (decision,) = decide(logits, [RoundRows([], Sampling(), 1, allowed=np.array([[0xFFFFFFFF]], np.uint32))])
    assert decision.next_token == 7


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_without_numbers_is_told_from_the_others(bad, dtype):
    logits = np.random.default_rng(0).normal(size=(5, VOCAB)).astype(np.float32)
    logits[3, 60] = bad
    logits[0, 3] = -np.inf  # forbidden by the model itself: fine
    kept = {"float32": logits, "float16": logits.astype(np.float16), "bfloat16": (logits.view(np.uint32) >> 16)}[dtype]
    kept = kept.astype(np.uint16) if dtype == "bfloat16" else kept
    rounds = [RoundRows([1], Sampling(), 1), RoundRows([2], Sampling(), 1), RoundRows([], Sampling(), 1)]
    decisions = decide(kept, rounds)
    assert [d.finite for d in decisions] == [True, False, True]
    assert decisions[2].next_token == int(logits[4].argmax())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_row_of_minus_infinity_alone_is_no_law(dtype):
    value = {"float32": np.float32(-np.inf), "float16": np.float16(-np.inf), "bfloat16": np.uint16(0xFF80)}[dtype]
    assert not decide(np.full((1, VOCAB), value), [RoundRows([], Sampling(), 1)])[0].finite


def test_bfloat16_bits_decide_like_their_float32():
    logits, rounds = batch(3)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    near = (bits.astype(np.uint32) << 16).view(np.float32)
    assert decide(bits, rounds) == decide(near, rounds)


def test_penalties_count_the_answer_and_the_prompt_as_they_should():
    """Token 1 in the prompt is only repeated, token 2 in the answer is present and frequent too."""
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [1, 2, 3]] = [3.0, 3.1, 2.0]

    def choose(**penalties):
        return decide(logits.copy(), [RoundRows([], Sampling(**penalties), 3, [1, 2, 2], 1)])[0].next_token

    assert choose() == 2
    assert choose(presence_penalty=0.2) == 1
    assert choose(frequency_penalty=0.06) == 1
    assert choose(repetition_penalty=2.0) == 3
    assert choose(bias=((3, 2.0),)) == 3


def test_rejection_accepts_drafts_as_its_law_says():
    """p is 1/2 and 1/2; drafts of token 0 from a law that gives it 1 are accepted half the time, else token 1 comes."""
    logits = np.full((2, VOCAB), -np.inf, np.float32)
    logits[:, :2] = 0.0
    counts = np.zeros(2, int)
    for seed in range(400):
        sampling = Sampling(1.0, seed=seed, rule="rejection")
        own = law({0: 1.0}) if seed % 2 else None  # no law: certain, which is the same
        (decision,) = decide(logits.copy(), [RoundRows([0], sampling, 3, law=own)])
        counts[decision.accepted] += 1
        assert decision.accepted or decision.next_token == 1
    assert 150 < counts[1] < 250


def test_bias_of_ids_the_vocabulary_lacks_changes_nothing():
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 4] = 1.0
    (decision,) = decide(logits, [RoundRows([], Sampling(bias=((VOCAB, 50.0), (2**31 - 1, 50.0))), 1)])
    assert decision == Decision(0, 4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_decisions_on_the_device_are_those_of_the_host(seed, dtype):
    """The path a GPU takes, run by torch on the CPU."""
    torch = pytest.importorskip("torch")
    from sled.targets import decide as on_engine

    logits, rounds = batch(seed)
    tensor = torch.from_numpy(logits).to(getattr(torch, dtype))
    host = on_engine.decide(tensor.clone(), rounds)
    device = on_engine._decide_on_device(tensor.clone(), rounds)
    for ours, theirs in zip(device, host, strict=True):
        assert (ours.accepted, ours.next_token, ours.finite) == (theirs.accepted, theirs.next_token, theirs.finite)
        assert [i for entry in ours.logprobs for i, _ in entry.top] == [
            i for entry in theirs.logprobs for i, _ in entry.top
        ]
        values = [[entry.value for entry in decision.logprobs] for decision in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_device_tells_rounds_without_numbers():
    torch = pytest.importorskip("torch")
    from sled.targets import decide as on_engine

    logits, rounds = batch(1)
    logits[2, 5] = np.nan  # of the second round
    found = on_engine._decide_on_device(torch.from_numpy(logits), rounds)
    assert [d.finite for d in found] == [True, False] + [True] * 6
    assert found[1].logprobs == ()
