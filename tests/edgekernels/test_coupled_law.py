"""Emitted tokens follow the target's law whatever the drafter; wrong coupled rules fail the same test.

Each sequence plays rounds with one draft until two tokens are out. Its seed is its number, so tokens of
different sequences are independent, and the pair (first, second) must follow the product of the two laws.
"""

import numpy as np
import pytest
from edgekernels import _reference, accept

P = np.array(
    [
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.07],
        [0.10, 0.15, 0.30, 0.05, 0.25, 0.15],
        [0.20, 0.10, 0.10, 0.30, 0.10, 0.20],
    ]
)
Q = 0.7 * P + 0.3 * P[:, ::-1]
RIGHT, WRONG = 1e-5, 1e-10  # 30 tests of fixed seeds: Bonferroni leaves room; mutants fail by orders more
MUTANT_RUNS = 20_000


def gumbels(seeds, position):
    """Reference noise (n, vocab) of many seeds at positions (n,) or one."""
    vocab = P.shape[1]
    counter = np.zeros((len(seeds), 2, 4), np.uint64)
    counter[:, :, 0] = [0, 1]
    counter[:, :, 1] = np.broadcast_to(position, len(seeds))[:, None]
    counter[:, :, 3] = 0x534C4544
    keys = (np.repeat(seeds, 2).astype(np.uint64), 0)
    words = _reference.philox(counter.reshape(-1, 4), keys)
    return _reference.gumbel(words.reshape(len(seeds), 8)[:, :vocab])


def choose(law, seeds, position):
    return np.argmax(np.log(law) + gumbels(seeds, position), axis=1)


def good_drafter(seeds, position):
    """Its own law, the same noise."""
    return choose(Q[position], seeds, position)


def independent_drafter(seeds, position):
    """Its own law, noise of its own."""
    return choose(Q[position], seeds + 1_000_000, position)


def adversarial_drafter(seeds, position):
    """Knows the answer: proposes it only where it is one of two tokens, else something wrong."""
    answer = choose(P[position], seeds, position)
    return np.where(answer < 2, answer, (answer + 1) % P.shape[1])


DRAFTERS = (good_drafter, independent_drafter, adversarial_drafter)


def kernel_rule(seeds, position, drafts, round_number):
    del round_number
    n = len(seeds)
    logits = np.tile(np.log(P[position : position + 2]).astype(np.float32), (n, 1))
    starts = np.arange(0, 2 * n + 1, 2)
    return accept(logits, drafts.astype(np.int32), starts, temperature=1.0, seed=seeds, position=position)


def rule_with(key, on_mismatch):
    """The coupled rule in numpy, two decisions left open: the key of the noise, the token on a mismatch."""

    def rule(seeds, position, drafts, round_number):
        chosen = [choose(P[position + i], seeds, key(position, i, round_number)) for i in (0, 1)]
        agreed = drafts == chosen[0]
        return agreed.astype(np.int32), np.where(agreed, chosen[1], on_mismatch(chosen[0], position))

    return rule


def right_key(position, i, _round):
    return position + i


def emit_choice(choice, _position):
    return choice


RULE = rule_with(right_key, emit_choice)


def keep_the_draft(seeds, position, drafts, round_number):
    agreed, token = RULE(seeds, position, drafts, round_number)
    return agreed, np.where(agreed == 1, token, drafts)


MUTANTS = {
    "noise keyed by the round number": rule_with(lambda _p, _i, round_number: round_number, emit_choice),
    "one noise for all positions": rule_with(lambda _p, _i, _round: 0, emit_choice),
    "argmax on mismatch": rule_with(right_key, lambda _choice, position: np.argmax(P[position])),
    "the draft is emitted on mismatch": keep_the_draft,
}


def play(rule, drafter, runs):
    """First and second tokens (runs, 2) of sequences with seeds 0 .. runs - 1."""
    tokens = np.full((runs, 2), -1)
    seeds = np.arange(runs)
    drafts = drafter(seeds, 0)
    accepted, token = rule(seeds, 0, drafts, 0)
    agreed = np.asarray(accepted) == 1
    tokens[:, 0] = np.where(agreed, drafts, token)
    tokens[agreed, 1] = np.asarray(token)[agreed]
    late = seeds[~agreed]
    drafts = drafter(late, 1)
    accepted, token = rule(late, 1, drafts, 1)
    tokens[~agreed, 1] = np.where(np.asarray(accepted) == 1, drafts, token)
    return tokens


def p_values(tokens, p_value):
    """First token, second token, and both together."""
    vocab = P.shape[1]
    yield p_value(tokens[:, 0], P[0])
    yield p_value(tokens[:, 1], P[1])
    yield p_value(tokens[:, 0] * vocab + tokens[:, 1], np.outer(P[0], P[1]).reshape(-1))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_law_of_the_kernels_is_p(engine, drafter, p_value):
    runs = 3_000 if engine == "numpy" else 50_000
    assert min(p_values(play(kernel_rule, drafter, runs), p_value)) > RIGHT


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_kernels_emit_the_answer_of_no_drafting(engine, drafter):
    """Stronger than a law: the tokens are those of each seed, drafts or not."""
    seeds = np.arange(500)
    answer = np.stack([choose(P[position], seeds, position) for position in (0, 1)], axis=1)
    assert play(kernel_rule, drafter, 500).tolist() == answer.tolist()


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_law_of_the_numpy_rule_is_p(drafter, p_value):
    assert min(p_values(play(RULE, drafter, MUTANT_RUNS), p_value)) > RIGHT


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_rules_fail(name, p_value):
    found = [min(p_values(play(MUTANTS[name], drafter, MUTANT_RUNS), p_value)) for drafter in DRAFTERS]
    assert min(found) < WRONG


def test_drafters_are_what_they_claim():
    rates = [np.mean(np.asarray(RULE(np.arange(5000), 0, d(np.arange(5000), 0), 0)[0])) for d in DRAFTERS]
    assert rates[0] > rates[2] > rates[1] > 0.1
