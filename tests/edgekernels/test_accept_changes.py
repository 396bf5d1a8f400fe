"""Bias, penalties, min-p and dtypes by hand, and the arguments that are refused."""

import numpy as np
import pytest
from edgekernels import Bias, History, SparseQ, accept, sample

NONE = np.empty(0, np.int32)


def f32(*numbers):
    return np.array(numbers, np.float32)


def i32(*ids):
    return np.array(ids, np.int32)


def greedy(row, **changes):
    return int(sample(np.array([row], np.float32), temperature=0, **changes)[0])


def history(*ids, num_prompt=0):
    return History(i32(*ids), np.array([0, len(ids)]), num_prompt)


def test_repetition_divides_positive_and_multiplies_negative_logits(engine):
    assert greedy([4, 3, -1], history=history(0), repetition_penalty=2.0) == 1  # 4 -> 2
    assert greedy([-3, -2, -9], history=history(1), repetition_penalty=2.0) == 0  # -2 -> -4
    assert greedy([4, 3, -1], history=history(0, 0, 0), repetition_penalty=1.3) == 0  # 3.08: once, however often
    assert greedy([4, 3, -1], history=history(0, num_prompt=1), repetition_penalty=2.0) == 1  # prompts count


def test_presence_and_frequency_count_generated_tokens(engine):
    assert greedy([4, 3, 0], history=history(0), presence_penalty=1.5) == 1
    assert greedy([4, 3, 0], history=history(0, num_prompt=1), presence_penalty=1.5) == 0
    assert greedy([4, 3, 0], history=history(0), frequency_penalty=0.6) == 0  # 3.4
    assert greedy([4, 3, 0], history=history(0, 0), frequency_penalty=0.6) == 1  # 2.8
    assert greedy([4, 3, 0], history=history(0, 0, num_prompt=1), frequency_penalty=0.6) == 0
    assert greedy([4, 3, 0], history=history(2), presence_penalty=-5) == 2


def test_bias_is_added_first_and_adds_up(engine):
    bias = Bias(i32(2, 2), f32(3, 2), np.array([0, 2]))
    assert greedy([4, 3, 0], bias=bias) == 2
    assert greedy([4, 3, 0], bias=bias, history=history(2), repetition_penalty=2.0) == 0  # 5 -> 2.5
    ban = Bias(i32(0), f32(-np.inf), np.array([0, 1]))
    assert greedy([np.inf, 3, 0], bias=ban) == 1
    assert greedy([4], bias=ban) == 0


def test_min_p_keeps_what_is_likely_enough(engine):
    rows = np.tile(np.log(f32(0.5, 0.3, 0.15, 0.05)), (400, 1))

    def emitted(min_p, **filters):
        return set(sample(rows, temperature=1.0, position=np.arange(400), min_p=min_p, **filters).tolist())

    assert emitted(1.0) == {0}
    assert emitted(0.59) == {0, 1}
    assert emitted(0.29) == {0, 1, 2}
    assert emitted(0.0) == {0, 1, 2, 3}
    assert emitted(0.29, top_k=2) == {0, 1}  # the stricter of the two holds
    assert emitted(0.59, top_p=0.9) == {0, 1}


def test_drafts_before_a_row_are_penalised(engine):
    """Row 1 stands behind draft 0, which it counts as generated; row 0 does not."""
    logits = f32([4, 3, 0], [4, 3, 0], [4, 3, 0])
    starts = np.array([0, 3])
    verdict = accept(logits, i32(0, 1), starts, temperature=0, presence_penalty=1.5)
    assert (verdict.accepted[0], verdict.next_token[0]) == (2, 0)  # 4; then 2.5 < 3; then 2.5 > 1.5
    verdict = accept(logits, i32(0, 0), starts, temperature=0, presence_penalty=1.5)
    assert (verdict.accepted[0], verdict.next_token[0]) == (1, 1)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_answers_do_not_depend_on_how_they_are_drafted(engine, rule):
    """One round of three drafts decides as three rounds with the earlier tokens in their history."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 300)).astype(np.float32)
    penalties = {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2, "seed": 5}
    tokens = [3, 9]
    for row in logits:
        past = history(*tokens, num_prompt=1)
        verdict = accept(
            row[None], NONE, np.array([0, 1]), temperature=0.9, history=past, position=len(tokens), **penalties
        )
        tokens.append(int(verdict.next_token[0]))
    if rule == "coupled":
        verdict = accept(
            logits, i32(*tokens[2:5]), np.array([0, 4]), temperature=0.9, history=history(3, 9, num_prompt=1),
            position=2, **penalties,
        )  # fmt: skip
        assert (verdict.accepted[0], verdict.next_token[0]) == (3, tokens[5])
    else:  # certain drafts: what is accepted is counted, so that a penalty of 1e6 never accepts a token twice
        hopeless = {"presence_penalty": 1e6, "seed": 5}
        for seed in range(20):
            again = accept(
                logits, i32(7, 7, 7), np.array([0, 4]), temperature=50.0, rule=rule, **hopeless | {"seed": seed}
            )
            assert again.accepted[0] <= 1


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_dtypes_decide_as_their_float32_values(engine, rule):
    rng = np.random.default_rng(2)
    half = rng.normal(0, 4, (5, 777)).astype(np.float16)
    half[0, :4] = [np.inf, np.nan, 6e-8, -np.inf]
    half[1, 5] = 65504
    brain = (rng.normal(0, 4, (5, 777)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    wide = (brain.astype(np.uint32) << 16).view(np.float32)
    for narrow, same in ((half, half.astype(np.float32)), (brain, wide)):
        drafts = np.nan_to_num(same[:4], nan=-9).argmax(axis=1).astype(np.int32)
        for seed in range(10):
            parameters = {"temperature": 0.5, "rule": rule, "seed": seed, "top_p": 0.95}
            one = accept(narrow, drafts, np.array([0, 5]), **parameters)
            two = accept(same, drafts, np.array([0, 5]), **parameters)
            assert (one.accepted.tolist(), one.next_token.tolist()) == (two.accepted.tolist(), two.next_token.tolist())


def test_bfloat16_of_ml_dtypes_is_known_by_its_name():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert sample(np.array([[0, 2, 1]], ml_dtypes.bfloat16), temperature=0).tolist() == [1]


LOGITS, DRAFTS, STARTS = np.zeros((3, 4), np.float32), i32(0), np.array([0, 2, 3])
ROW = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (TypeError, "uint8", {"logits": np.zeros((3, 4), np.uint8)}),
        (ValueError, "'typical'", {"rule": "typical"}),
        (ValueError, "rule='rejection'", {"q": np.zeros((1, 4), np.float32)}),
        (ValueError, r"\(2, 4\)", {"rule": "rejection", "q": np.zeros((2, 4), np.float32)}),
        (TypeError, "float64", {"rule": "rejection", "q": np.zeros((1, 4))}),
        (ValueError, "0 .. 3", {"rule": "rejection", "q": SparseQ(i32(4), f32(1), np.array([0, 1]))}),
        (ValueError, "sort the ids", {"rule": "rejection", "q": SparseQ(i32(2, 2), f32(0.5, 0.5), np.array([0, 2]))}),
        (ValueError, "1.5", {"rule": "rejection", "q": SparseQ(i32(2), f32(1.5), np.array([0, 1]))}),
        (ValueError, "nan", {"rule": "rejection", "q": SparseQ(i32(2), f32(np.nan), np.array([0, 1]))}),
        (ValueError, "q.starts", {"rule": "rejection", "q": SparseQ(i32(2), f32(1), np.array([0, 2]))}),
        (ValueError, "one for each of the 1", {"rule": "rejection", "q": SparseQ(i32(2), f32(1, 1), np.array([0, 1]))}),
        (TypeError, "History", {"history": i32(1)}),
        (ValueError, "0 .. 3", {"history": History(i32(4), ROW)}),
        (ValueError, "history.starts", {"history": History(i32(1), np.array([0, 1]))}),
        (ValueError, r"\[2, 1\]", {"history": History(i32(1), np.array([0, 2, 1]))}),
        (ValueError, "num_prompt is 2 of 1", {"history": History(i32(1), ROW, 2)}),
        (
            ValueError,
            "num_prompt is 18446744073709551615; pass",
            {"history": History(i32(1), ROW, np.uint64(2**64 - 1))},
        ),
        (ValueError, "num_prompt is 1180591620717411303424; pass", {"history": History(i32(1), ROW, 2**70)}),
        (ValueError, "num_prompt is 1180591620717411303424; pass", {"history": History(i32(1), ROW, [2**70, 0])}),
        (TypeError, "Bias", {"bias": {1: 2.0}}),
        (ValueError, "-1 .. -1", {"bias": Bias(i32(-1), f32(1), ROW)}),
        (ValueError, "nan", {"bias": Bias(i32(1), f32(np.nan), ROW)}),
        (ValueError, "bias.values", {"bias": Bias(i32(1), f32(1, 2), ROW)}),
        (TypeError, "float64", {"bias": Bias(i32(1), np.zeros(1), ROW)}),
        (ValueError, "min_p is 1.5", {"min_p": 1.5}),
        (ValueError, "repetition_penalty is 0", {"repetition_penalty": 0.0}),
        (ValueError, "inf", {"frequency_penalty": np.inf}),
        (ValueError, "nan", {"presence_penalty": [np.nan, 0]}),
        (TypeError, "typical_p is no argument", {"typical_p": 0.9}),
    ],
)
def test_wrong_arguments_are_refused(error, match, changes):
    arguments = {"logits": LOGITS, "drafts": DRAFTS, "row_starts": STARTS, "temperature": 1.0} | changes
    with pytest.raises(error, match=match):
        accept(**arguments)
