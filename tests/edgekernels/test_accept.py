"""Acceptance and sampling by hand: ragged batches, special values, arguments."""

import numpy as np
import pytest
from edgekernels import Accepted, Bias, History, SparseQ, _checks, accept, gumbel, noise_bits, sample

INF, NAN = np.inf, np.nan


def f32(*rows):
    return np.array(rows, np.float32)


def i32(*ids):
    return np.array(ids, np.int32)


def i64(*numbers):
    return np.array(numbers, np.int64)


def test_greedy_ragged_batch_by_hand(engine):
    logits = f32(
        [0, 3, 1],  # sequence 0: chooses 1, drafted 1
        [5, 0, 5],  # chooses 0, the lowest of two, drafted 2: rejected
        [0, 0, 9],  # never read
        [1, 2, 3],  # sequence 1, no drafts: chooses 2
        [7, 0, 0],  # sequence 2: chooses 0, drafted 0
        [0, 8, 0],  # bonus 1
    )
    verdict = accept(logits, i32(1, 2, 0), i64(0, 3, 4, 6), temperature=0)
    assert verdict.accepted.tolist() == [1, 0, 1]
    assert verdict.next_token.tolist() == [0, 2, 1]
    assert verdict.accepted.dtype == verdict.next_token.dtype == np.int32


def test_coupled_row_is_the_argmax_of_scores(engine):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (4, 1000)).astype(np.float32)
    scores = [
        row.astype(np.float64) * (1 / 0.7) + gumbel(noise_bits(9, 100 + i, np.arange(1000)))
        for i, row in enumerate(logits)
    ]
    chosen = [int(np.argmax(s)) for s in scores]
    drafts = i32(chosen[0], chosen[1], chosen[2] ^ 1)
    verdict = accept(logits, drafts, i64(0, 4), temperature=0.7, seed=9, position=100)
    assert (verdict.accepted[0], verdict.next_token[0]) == (2, chosen[2])


def test_parameters_are_per_sequence(engine):
    logits = np.tile(np.random.default_rng(2).normal(0, 2, 300).astype(np.float32), (3, 1))
    settings = {"temperature": [0.0, 1.0, 2.5], "seed": [1, 2, 3], "position": [4, 5, 6], "top_k": [0, 9, 0]}
    together = accept(logits, i32(), i64(0, 1, 2, 3), top_p=[1, 1, 0.8], **settings).next_token
    for b in range(3):
        own = {name: values[b] for name, values in settings.items()}
        assert accept(logits[:1], i32(), i64(0, 1), top_p=[1, 1, 0.8][b], **own).next_token[0] == together[b]


def test_drafts_outside_the_vocabulary_mismatch(engine):
    logits = f32([0, 1], [0, 1])
    for draft in (-1, 2, 2**31 - 1, -(2**31)):
        assert accept(logits, i32(draft), i64(0, 2), temperature=0).accepted.tolist() == [0]
        assert accept(logits, i32(draft), i64(0, 2), temperature=1.0).accepted.tolist() == [0]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.8, 1e30])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 1, "top_p": 0.5}])
@pytest.mark.parametrize("vocab", [4, 70, 200])
def test_special_values(engine, temperature, filters, vocab):
    def chosen(*head):
        row = np.full((1, vocab), -INF, np.float32)
        row[0, : len(head)] = head
        return int(sample(row, temperature=temperature, **filters)[0])

    assert chosen() == 0
    assert chosen(NAN, NAN) == 0
    assert chosen(NAN, -INF, 0.0, NAN) == 2
    assert chosen(-3e38, NAN) == 0
    assert chosen(3e38, INF, NAN, INF) == 1
    assert chosen(NAN, INF, INF, 3e38) == 1
    assert chosen(-INF, -INF, -INF, -3.4e38) == 3


def test_all_nan_row_chooses_zero(engine):
    assert sample(np.full((2, 130), NAN, np.float32), temperature=1.0, top_p=0.5).tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, 4.5, -INF, INF, NAN])
def test_vocabulary_of_one(engine, value):
    for filters in ({}, {"top_k": 1}, {"top_p": 0.1}):
        verdict = accept(f32([value], [value]), i32(0), i64(0, 2), temperature=1.0, **filters)
        assert (verdict.accepted[0], verdict.next_token[0]) == (1, 0)


def test_top_k_keeps_ties_and_top_p_the_fewest(engine):
    def emitted(row, **filters):
        rows = np.tile(f32(row), (400, 1))
        return set(sample(rows, temperature=1.0, position=np.arange(400), **filters).tolist())

    assert emitted([2, 1, 2, 0], top_k=1) == {0, 2}
    assert emitted([2, 1.9, 1.9, 0], top_k=2) == {0, 1, 2}
    quarters = np.log([0.5, 0.25, 0.25 - 1e-6, 1e-6])
    assert emitted(quarters, top_p=0.49) == {0}
    assert emitted(quarters, top_p=0.51) == {0, 1}
    assert emitted([0, 0, 0, 0], top_p=0.01) == {0, 1, 2, 3}
    assert emitted([0, 0, -1, -1], top_k=2, top_p=0.9) == {0, 1}
    assert emitted(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.55) == {0}  # .4 / .7 of the survivors
    assert emitted(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.58) == {0, 1}


def test_sample_equals_accept_without_drafts(engine):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (6, 500)).astype(np.float32)
    filtered = {"temperature": 0.9, "top_k": 7, "top_p": 0.8}
    for settings in ({"temperature": 0}, {"temperature": 1.5}, filtered):
        settings |= {"seed": np.arange(6), "position": np.arange(6) * 10}
        verdict = accept(logits, i32(), np.arange(7), **settings)
        assert verdict.next_token.tolist() == sample(logits, **settings).tolist()
        assert not verdict.accepted.any()


def test_mapped_columns_draw_the_noise_of_their_targets(engine):
    """A drafter whose columns are a permutation of the target's chooses what the target chooses."""
    rng = np.random.default_rng(4)
    ids = rng.permutation(333).astype(np.int32)
    target = np.round(rng.normal(0, 2, (40, 333))).astype(np.float32)
    drafter = np.ascontiguousarray(target[:, ids])
    for temperature, top_k in ((0, 0), (0.6, 0), (1.2, 20)):
        settings = {"temperature": temperature, "top_k": top_k, "seed": 8, "position": np.arange(40)}
        assert sample(drafter, token_ids=ids, **settings).tolist() == sample(target, **settings).tolist()


def test_mapped_ties_go_to_the_lowest_target_id(engine):
    ids = i32(50, 7, 90)
    for row in ([1, 1, 1], [-INF, -INF, -INF], [INF, INF, 0]):
        assert sample(f32(row), temperature=0, token_ids=ids).tolist() == [7]
    assert sample(f32([INF, 0, INF]), temperature=1.0, token_ids=ids).tolist() == [50]


def test_out_is_written_and_returned(engine):
    out = Accepted(np.full(2, -9, np.int32), np.full(2, -9, np.int32))
    verdict = accept(f32([0, 1], [1, 0]), i32(), i64(0, 1, 2), temperature=0, out=out)
    assert verdict.accepted is out.accepted
    assert verdict.next_token is out.next_token
    assert out.accepted.tolist() == [0, 0]
    assert out.next_token.tolist() == [1, 0]
    chosen = np.empty(1, np.int32)
    assert sample(f32([0, 1]), temperature=0, out=chosen) is chosen
    assert chosen[0] == 1


def test_empty_batch_is_an_empty_verdict(engine):
    verdict = accept(np.empty((0, 5), np.float32), i32(), i64(0), temperature=1.0)
    assert len(verdict.accepted) == len(verdict.next_token) == 0
    assert len(sample(np.empty((0, 5), np.float32), temperature=1.0, num_threads=2)) == 0


def test_seeds_differ(engine):
    rows = np.zeros((50, 1000), np.float32)
    assert len(set(sample(rows, temperature=1.0, seed=np.arange(50)).tolist())) > 40


def test_read_only_inputs_are_welcome(engine):
    arrays = [f32([0, 1]), i32(), i64(0, 1)]
    for array in arrays:
        array.flags.writeable = False
    assert accept(*arrays, temperature=0).next_token.tolist() == [1]


LOGITS, DRAFTS, STARTS = np.zeros((3, 4), np.float32), i32(0), i64(0, 2, 3)


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (TypeError, "float64", {"logits": LOGITS.astype(np.float64)}),
        (TypeError, "list", {"logits": LOGITS.tolist()}),
        (ValueError, r"\(12,\)", {"logits": LOGITS.reshape(-1)}),
        (ValueError, "ascontiguousarray", {"logits": np.zeros((4, 3), np.float32).T}),
        (ValueError, r"\(3, 0\)", {"logits": np.zeros((3, 0), np.float32)}),
        (TypeError, "int64", {"drafts": i64(0)}),
        (ValueError, "2 ids", {"drafts": i32(0, 1)}),
        (TypeError, "int32", {"row_starts": i32(0, 2, 3)}),
        (ValueError, "nothing", {"row_starts": i64()}),
        (ValueError, "0 .. 2", {"row_starts": i64(0, 1, 2)}),
        (ValueError, "1 .. 3", {"row_starts": i64(1, 2, 3)}),
        (ValueError, r"\[2, 2\]", {"row_starts": i64(0, 2, 2, 3)}),
        (ValueError, r"\[2, 1\]", {"row_starts": i64(0, 2, 1, 3)}),
        (ValueError, "-0.5", {"temperature": -0.5}),
        (ValueError, "nan", {"temperature": NAN}),
        (ValueError, "inf", {"temperature": [1.0, INF]}),
        (ValueError, "1e-31", {"temperature": 1e-31}),
        (ValueError, r"\(3,\)", {"temperature": [1.0, 1.0, 1.0]}),
        (TypeError, "temperature", {"temperature": "hot"}),
        (TypeError, "temperature", {"temperature": None}),
        (ValueError, "-1", {"top_k": -1}),
        (TypeError, "top_k", {"top_k": 1.5}),
        (TypeError, "top_k", {"top_k": True}),
        (ValueError, "top_p is 0", {"top_p": 0.0}),
        (ValueError, "1.01", {"top_p": 1.01}),
        (ValueError, "nan", {"top_p": NAN}),
        (ValueError, "-7", {"seed": -7}),
        (ValueError, "-8", {"position": [0, -8]}),
        (ValueError, "position", {"position": 2**63}),
        (TypeError, "position", {"position": 0.5}),
        (ValueError, "num_threads is 0", {"num_threads": 0}),
        (TypeError, "1.5", {"num_threads": 1.5}),
        (TypeError, "out.accepted", {"out": Accepted(np.zeros(2), i32(0, 0))}),
        (ValueError, "out.next_token", {"out": Accepted(i32(0, 0), i32(0))}),
        (ValueError, "strides", {"out": Accepted(i32(0, 0), i32(0, 0, 0)[::2])}),
        (TypeError, "out is 5; pass edgekernels.Accepted", {"out": 5}),
        (ValueError, "out has 1 entries; pass edgekernels.Accepted", {"out": (i32(0, 0),)}),
        (TypeError, "noise is 5; pass edgekernels.compile_noise", {"noise": 5}),
        (TypeError, "rule is array.*; pass 'coupled'", {"rule": np.zeros(2)}),
        (
            ValueError,
            r"temperature is \[\[1\], \[1, 2\]\]; pass a scalar or shape \(2,\)",
            {"temperature": [[1], [1, 2]]},
        ),
        (ValueError, "temperature is inf", {"temperature": np.float16(INF)}),
        (ValueError, "frequency_penalty is inf", {"frequency_penalty": np.array([0, INF], np.float16)}),
        (ValueError, r"seed is 18446744073709551616; pass 0 \.\. 2\*\*64 - 1", {"seed": [2**64, 1]}),
        (TypeError, r"seed is \[0\.5, 1\]; pass integers, 0 \.\. 2\*\*64 - 1", {"seed": [0.5, 1]}),
        (TypeError, "seed is .None, 1.; pass integers", {"seed": [None, 1]}),
    ],
)
def test_wrong_arguments_are_refused(error, match, changes):
    arguments = {"logits": LOGITS, "drafts": DRAFTS, "row_starts": STARTS, "temperature": 1.0} | changes
    with pytest.raises(error, match=match):
        accept(**arguments)


def test_seeds_in_a_list_have_all_64_bits():
    rows = np.zeros((2, 1000), np.float32)
    apart = [int(sample(rows[:1], temperature=1.0, seed=seed)[0]) for seed in (1, 2**64 - 1)]
    assert sample(rows, temperature=1.0, seed=[1, 2**64 - 1]).tolist() == apart


def test_out_apart_from_everything_else():
    """The kernels write it while they still read the arguments."""
    logits, drafts, starts = np.zeros((4, 4), np.float32), i32(0, 0), i64(0, 2, 4)
    history, bias = History(i32(1, 1), i64(0, 1, 2)), Bias(i32(1, 1), np.ones(2, np.float32), i64(0, 1, 2))
    q = SparseQ(i32(0, 0), np.ones(2, np.float32), i64(0, 1, 2))
    own = i32(0, 0)
    arguments = {"temperature": 1.0, "rule": "rejection", "history": history, "bias": bias, "q": q}
    for array in (logits, drafts, starts, *history[:2], *bias, *q, own):
        for out in (
            Accepted(array.view(np.int32).reshape(-1)[:2], own),
            Accepted(own, array.view(np.int32).reshape(-1)[:2]),
        ):
            with pytest.raises(ValueError, match="shares memory"):
                accept(logits, drafts, starts, out=out, **arguments)
    with pytest.raises(ValueError, match=r"out\.accepted shares memory"):
        accept(
            logits,
            drafts,
            starts,
            temperature=1.0,
            rule="rejection",
            q=logits[:2],
            out=Accepted(logits.view(np.int32)[0, :2], own),
        )
    ids = i32(0, 1, 2, 3)
    for array in (logits.view(np.int32).reshape(-1)[:4], ids):
        with pytest.raises(ValueError, match="out shares memory"):
            sample(logits, temperature=1.0, token_ids=ids, out=array)
    with pytest.raises(TypeError, match="noise is 5"):
        sample(logits, temperature=1.0, noise=5)


def test_there_are_no_more_threads_than_processors(monkeypatch):
    monkeypatch.setattr(_checks, "processors", lambda: 3)
    assert [_checks.num_threads(number) for number in (1, 2, 3, 4, 1024)] == [1, 2, 3, 3, 3]
    monkeypatch.undo()
    assert 1 <= _checks.num_threads(1024) == _checks.processors()
    assert sample(np.zeros((9, 4), np.float32), temperature=0, num_threads=1024).tolist() == [0] * 9


def test_read_only_out_is_refused():
    frozen = np.zeros(1, np.int32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        sample(f32([0, 1]), temperature=0, out=frozen)


@pytest.mark.parametrize(
    ("error", "ids"),
    [(ValueError, i32(1)), (ValueError, i32(0, -1)), (TypeError, i64(0, 1)), (TypeError, [0, 1])],
)
def test_wrong_token_ids_are_refused(error, ids):
    with pytest.raises(error, match="token_ids"):
        sample(f32([0, 1]), temperature=0, token_ids=ids)
