"""The rejection rule from a device's drafter over the messages to the verdict: its law, its wire, known mistakes."""

from __future__ import annotations

import edgekernels
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from edgebus.payloads import decode, encode
from sled.acceptance import RoundRows, decide
from sled.device import Generation
from sled.drafters import NoDrafter
from sled.drafters.model import ModelDrafter
from sled.law import MAX_IDS, Law, changed, law_of, unpacked
from sled.law import packed as packed_laws
from sled.messages import Opened, Verdict, Verify
from sled.proposal import Proposal
from sled.server import Refusal
from sled.server.checks import check_law
from sled.testing import ToyTarget
from sled.types import Sampling, SparseLaw
from sled.window import Window
from tests.sled.drafting import drafts, proposals, send, submit

VOCAB, PROMPT, LENGTH = 6, [5, 0], 3
RIGHT, WRONG, RUNS = 1e-5, 1e-6, 900
TABLE = np.random.default_rng(3).normal(size=(VOCAB, VOCAB)).astype(np.float32) * 0.7
OTHER = np.random.default_rng(4).normal(size=TABLE.shape).astype(np.float32) * 0.7


class Bigram:
    """A model whose logits depend on the last token."""

    vocab_size, max_positions = VOCAB, 100

    def __init__(self, table):
        self._table = table

    def read(self, ids):
        return self._table[ids[-1]][None].copy()

    def forget(self, length):
        pass


def drafter_of(table, kind=ModelDrafter):
    return kind(Bigram(table), name="bigram", target_ids=None, target_vocab_size=VOCAB)


def answer(drafter, sampling, window, target=TABLE, tamper=lambda verify: verify):
    """An answer of LENGTH tokens: device, encoded messages, rows as a server makes them, rule, verdict, device."""
    machine = Generation(b"12345678", PROMPT, chat=False, sampling=sampling, max_tokens=LENGTH, window=window)
    machine.opened(Opened(PROMPT, len(PROMPT), 16))
    drafter.start(sampling, len(PROMPT))
    while len(machine.answer) < LENGTH:
        text = list(machine.history.tokens)
        draft = proposals(drafter, text, machine.draft_limit(), window)
        sent = encode(send(machine, draft))
        verify = tamper(decode(Verify, sent))
        rows = np.stack([target[[*text, *verify.draft][: len(text) + i][-1]] for i in range(len(verify.draft) + 1)])
        round_rows = RoundRows(verify.draft, sampling, len(text), text, len(PROMPT), verify.law)
        (decision,) = decide(rows, [round_rows])
        tokens = [*verify.draft[: decision.accepted], decision.next_token]
        machine.verdict(decode(Verdict, encode(Verdict(len(text), tokens, decision.accepted, "", 16, 1))))
    return machine.answer


def law_of_answers(sampling):
    """Probabilities (VOCAB ** LENGTH,) of every answer, by multiplying rows of the target."""

    def step(token):
        row = np.exp(TABLE[token].astype(np.float64) / sampling.temperature)
        keep = row >= np.sort(row)[-sampling.top_k] if sampling.top_k else row > 0
        return row * keep / (row * keep).sum()

    law = step(PROMPT[-1])
    for _ in range(LENGTH - 1):
        law = np.concatenate([p * step(i % VOCAB) for i, p in enumerate(law)])
    return law


def p_value(make_drafter, sampling, window, runs=RUNS, **more):
    """Chi-square of the first two tokens and of the last two, seed after seed: the smaller p-value."""
    counts = np.zeros((VOCAB,) * LENGTH)
    drafter = make_drafter()
    for seed in range(runs):
        counts[tuple(answer(drafter, replace(sampling, seed=seed), window, **more))] += 1
    expected = law_of_answers(sampling).reshape(counts.shape) * runs
    if counts[expected == 0].any():
        return 0.0
    found = []
    for axis in (0, 2):
        observed, wanted = counts.sum(axis=axis).reshape(-1), expected.sum(axis=axis).reshape(-1)
        many = wanted >= 5
        observed, wanted = ([*a[many], a[~many].sum()] for a in (observed, wanted))
        cells = np.array(wanted) > 0
        terms = (np.array(observed)[cells] - np.array(wanted)[cells]) ** 2 / np.array(wanted)[cells]
        found.append(float(stats.chi2.sf(terms.sum(), cells.sum() - 1)))
    return min(found)


REJECTION = Sampling(temperature=0.9, rule="rejection")


def test_answers_follow_the_targets_law():
    assert p_value(lambda: drafter_of(OTHER), REJECTION, Window(2)) > RIGHT


def test_the_law_holds_where_a_cut_target_rejects_and_confidence_ends_drafts():
    cut = Sampling(temperature=0.9, top_k=3, rule="rejection")
    assert p_value(lambda: drafter_of(OTHER), cut, Window(2, 0.5), runs=400) > RIGHT


class Copying(NoDrafter):
    """A drafter without a law, always of one mind."""

    def draft(self, text, limit):
        return [2, 4][:limit]


def test_drafts_without_a_law_are_lossless_too():
    assert p_value(Copying, REJECTION, Window(2), runs=600) > RIGHT


class FullSample(ModelDrafter):
    """Wrong: tells a law of two ids, and samples from all of them."""

    def _pick(self, logits, text, position):
        whole = law_of(logits[0], self._sampling)
        told = law_of(logits[0], Sampling(temperature=self._sampling.temperature, top_k=2))
        return Proposal(whole.pick(self._sampling.seed, position), 1.0, told)


class Choosy(ModelDrafter):
    """Wrong: looks at the sample before it says how sure it is."""

    def _pick(self, logits, text, position):
        law = law_of(logits[0], self._sampling)
        token = law.pick(self._sampling.seed, position)
        return Proposal(token, float(law.probabilities[law.ids == token][0]), law)


def as_it_is(verify):
    return verify


def half_of_it(verify):
    """Wrong: a law sharpened on its way, as one quantised after the sample would be."""
    if verify.law is None:
        return verify
    laws = [Law(law.ids, (law.probabilities**2 / (law.probabilities**2).sum())) for law in unpacked(verify.law)]
    return replace(verify, law=packed_laws(laws))


@pytest.mark.parametrize(
    ("kind", "tamper", "runs"), [(FullSample, as_it_is, RUNS), (Choosy, as_it_is, 500), (ModelDrafter, half_of_it, 400)]
)
def test_wrong_devices_fail_the_law(kind, tamper, runs):
    window = Window(2, 0.3 if kind is Choosy else 0.0)
    assert p_value(lambda: drafter_of(OTHER, kind), REJECTION, window, runs=runs, tamper=tamper) < WRONG


def test_the_law_hand_worked():
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))
    law = law_of(logits, Sampling(temperature=1.0, top_p=0.65), np.array([9, 3, 8, 4], np.int32))
    assert law.ids.tolist() == [3, 8]  # 0.4 alone does not reach 0.65, with 0.3 it does
    assert law.probabilities == pytest.approx([4 / 7, 3 / 7])
    packed = packed_laws([law, law])
    assert packed is not None
    assert (packed.counts, len(packed.ids), len(packed.probabilities)) == ([2, 2], 16, 16)
    first = packed.first(1)
    assert (first.counts, first.ids) == ([2], packed.ids[:8])
    assert packed_laws([]) is None


@given(
    st.integers(2, 200),
    st.builds(
        Sampling,
        temperature=st.floats(0.05, 5),
        top_k=st.integers(0, 80),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.integers(0, 2**32),
)
def test_laws_are_what_a_server_believes(vocab, sampling, seed):
    from sled.server import TargetShape
    from sled.server.checks import check_law

    logits = (np.random.default_rng(seed).normal(size=vocab) * 5).astype(np.float32)
    logits[seed % vocab] = -np.inf
    law = law_of(logits, sampling)
    assert 1 <= len(law.ids) <= MAX_IDS
    token = law.pick(sampling.seed, 7)
    packed = packed_laws([law])
    assert packed is not None
    check_law(TargetShape(vocab, 100, 16, frozenset()), [token], packed)
    (again,) = unpacked(packed)
    assert (again.probabilities == law.probabilities).all()


@given(st.integers(0, 1000), st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 6))
def test_changed_logits_are_the_kernels(seed, repetition, presence, frequency, num_prompt):
    """Seen through the greedy choice, with each token in turn lifted until it is chosen."""
    rng = np.random.default_rng(seed)
    row, text = rng.normal(size=8).astype(np.float32) * 3, rng.integers(0, 8, 6).astype(np.int32)
    s = Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    ids, values = np.array([1, 5], np.int32), np.array([2.5, -4.0], np.float32)
    ours = changed(row, s, text=text, num_prompt=num_prompt, bias_ids=ids, bias=values)
    token = edgekernels.sample(
        row[None],
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        history=edgekernels.History(text, np.array([0, 6]), num_prompt),
        bias=edgekernels.Bias(ids, values, np.array([0, 2])),
    )
    assert ours[int(token[0])] >= ours.max() - 1e-5


def test_bytes_of_a_round_by_both_rules():
    """What a round of 4 drafts costs on the wire, laws of 64 ids each; and a request's frame of messages alone."""
    machine = Generation(b"12345678", PROMPT, chat=False, sampling=REJECTION, max_tokens=9, window=Window(4))
    machine.opened(Opened(PROMPT, 2, 16))
    laws = packed_laws([law_of(np.arange(1000, dtype=np.float32) / 100, REJECTION) for _ in range(4)])
    with_law = len(encode(submit(machine, [999, 998, 997, 996], laws)))
    machine.verdict(Verdict(2, [1], 0, "", 16, 1))
    without = len(encode(submit(machine, [999, 998, 997, 996])))
    assert without <= 40
    assert 2048 <= with_law - without <= 2048 + 16  # 4 drafts, 64 ids, 8 bytes each


def test_laws_go_along_only_under_the_rejection_rule():
    law = packed_laws([law_of(np.zeros(3, np.float32), REJECTION)] * 3)
    for sampling, sent in ((Sampling(temperature=0.9), False), (REJECTION, True)):
        machine = Generation(b"12345678", PROMPT, chat=False, sampling=sampling, max_tokens=3, window=Window(4))
        machine.opened(Opened(PROMPT, 2, 16))
        verify = submit(machine, [1, 2, 0], law)  # one too many: the last token is the target's own
        assert verify.draft == [1, 2]
        assert (verify.law is not None) == sent
        assert not sent or verify.law.counts == [3, 3]


def test_penalties_and_bias_shape_drafts_as_they_do_answers():
    """The very target as drafter agrees with itself under every parameter, also where it has ids of its own."""
    sampling = Sampling(
        temperature=0.8, seed=5, min_p=0.25, repetition_penalty=1.1, presence_penalty=0.7, frequency_penalty=0.4,
        bias=((1, 2.0), (3, -1.5), (1, 0.5)),
    )  # fmt: skip
    ids = np.array([4, 2, 0, 1, 5, 3], np.int32)
    own = TABLE[np.ix_(ids, ids)]  # columns and rows in the drafter's order

    class Permuted(Bigram):
        def read(self, columns):
            return own[columns[-1]][None].copy()

    mapped = ModelDrafter(Permuted(own), name="mapped", target_ids=ids, target_vocab_size=VOCAB)
    for drafter in (drafter_of(TABLE), mapped):
        text = list(PROMPT)
        drafter.start(sampling, len(PROMPT))
        for _ in range(12):
            rows = RoundRows((), sampling, len(text), text, len(PROMPT))
            (decision,) = decide(TABLE[text[-1]][None].copy(), [rows])
            assert drafts(drafter, text, 1, Window(4)) == [decision.next_token]
            text.append(decision.next_token)


def test_what_a_drafter_has_no_column_for_is_left_out():
    """Ids 1 and 2 are unknown to it: neither their bias nor their penalty falls on another token."""
    table = np.array([[2, 1], [2, 1]], np.float32)
    model = Bigram(table)
    model.vocab_size = 2
    drafter = ModelDrafter(model, name="small", target_ids=np.array([0, 3], np.int32), target_vocab_size=4)
    drafter.start(Sampling(bias=((1, -50.0), (2, -50.0)), repetition_penalty=50.0, presence_penalty=2.0), 1)
    assert drafts(drafter, [1, 2, 1], 1, Window(1)) == [0]
    drafter.start(Sampling(presence_penalty=2.0), 3)  # of which the drafter knows one
    assert drafts(drafter, [1, 0, 2, 1], 1, Window(1)) == [0]


def test_penalties_count_from_where_the_prompt_ends_though_the_server_began():
    table = np.zeros((VOCAB, VOCAB), np.float32)
    table[:, 2] = 1.0
    drafter = drafter_of(table)
    drafter.start(Sampling(presence_penalty=2.0), 1)
    assert drafts(drafter, [2, 2], 1, Window(1)) == [0]  # the second 2 is the answer's
    drafter.start(Sampling(presence_penalty=2.0), 2)
    assert drafts(drafter, [2, 2], 1, Window(1)) == [2]


@pytest.mark.parametrize("counts", [[0, 1], [1, 0], [0, 0]])
def test_an_empty_law_is_refused_by_name(counts):
    size = sum(counts)
    law = SparseLaw(counts, np.full(size, 3, "<i4").tobytes(), np.ones(size, "<f4").tobytes())
    with pytest.raises(Refusal, match="empty"):
        check_law(ToyTarget().shape, [3, 3], law)
