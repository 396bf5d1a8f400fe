"""What is read and what is not: rows after a rejection, the end of every buffer; and who holds the GIL."""

import threading

import numpy as np
import pytest
from edgekernels import accept, sample

from tests.edgekernels.gil import lets_others_run
from tests.edgekernels.scripts import linux_only, run

GUARD = """
from edgekernels import Accepted, Bias, History, SparseQ, _accept, _bits, _select, accept, noise_bits, sample
from edgekernels import dequantise, pack, quantise, unpack

_accept.set_level(sys.argv[1])
_bits.set_level(sys.argv[1])
_select.use(_accept)
"""
ENDS = """
rng = np.random.default_rng(0)
for vocab in (1, 3, 15, 16, 17, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 4097):
    logits = guarded(rng.normal(0, 3, (3, vocab)).astype(np.float32))
    drafts, starts = guarded(np.zeros(2, np.int32)), guarded(np.array([0, 3]))
    ids = guarded(rng.permutation(vocab).astype(np.int32))
    for settings in ({"temperature": 0}, {"temperature": 5.0}, {"temperature": 0.5, "top_k": 3},
                     {"temperature": 30.0, "top_p": 0.99}, {"temperature": 1.0, "top_k": 70, "top_p": 0.6}):
        out = Accepted(guarded(np.zeros(1, np.int32)), guarded(np.zeros(1, np.int32)))
        accept(logits, drafts, starts, out=out, **settings)
        sample(logits, token_ids=ids, out=guarded(np.zeros(3, np.int32)), **settings)
    noise_bits(0, 0, ids)
print("clean")
"""
OPTIONS = """
rng = np.random.default_rng(0)
for vocab in (1, 3, 17, 63, 64, 65, 127, 1000, 1025, 4097):
    plain = rng.normal(0, 3, (3, vocab)).astype(np.float32)
    narrow = (plain.view(np.uint32) >> 16).astype(np.uint16)
    ids = guarded(rng.integers(0, vocab, 5).astype(np.int32))
    last = guarded(np.array([0, vocab - 1][-min(vocab, 2):], np.int32))
    changes = {"history": History(ids, guarded(np.array([0, 5])), 2), "repetition_penalty": 1.2,
               "bias": Bias(ids, guarded(np.ones(5, np.float32)), guarded(np.array([0, 5]))), "presence_penalty": 0.1}
    starts, drafts = guarded(np.array([0, 3])), guarded(np.full(2, vocab - 1, np.int32))
    dense = guarded(np.full((2, vocab), 1 / vocab, np.float32))
    entries = guarded(np.concatenate([last, last]))
    sparse = SparseQ(entries, guarded(np.full(len(entries), 0.5, np.float32)), guarded(np.array([0, 1, 2]) * len(last)))
    for logits in (guarded(plain), guarded(plain.astype(np.float16)), guarded(narrow)):
        for q in (None, dense, sparse):
            for filters in ({}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, changes):
                for seed in range(3):
                    accept(logits, drafts, starts, temperature=2.0, rule="rejection", q=q, seed=seed, **filters)
                accept(logits, drafts, starts, temperature=2.0, **filters)
                sample(logits[:1], temperature=0, **filters)
    keep.clear()
print("clean")
"""
LAZY = """
for settings in ({"temperature": 0}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9},
                 {"temperature": 0.1, "rule": "rejection"}, {"temperature": 0.8, "presence_penalty": 0.1}):
    row = np.full((1, PAGE // 4), -9, np.float32)
    row[0, 7] = 9
    logits = guarded(np.repeat(row, 5, axis=0), hidden=3)
    verdict = accept(logits, np.array([7, 8, 7, 7], np.int32), np.array([0, 5]), **settings)
    assert (verdict.accepted[0], verdict.next_token[0]) == (1, 7)
print("clean")
"""
BITS = """
rng = np.random.default_rng(0)
lengths = [*range(1, 34), 63, 64, 65, 127, 128, 129, 200, 511, 512, 513, 4095, 4096, 4097, 4160, 8200]
for bits in range(1, 9):
    for n in lengths:
        codes = guarded(rng.integers(0, 1 << bits, n).astype(np.uint8))
        packed = pack(codes, bits, out=guarded(np.zeros(-(-n * bits // 8), np.uint8)))
        assert (unpack(packed, n, bits, out=guarded(np.zeros(n, np.uint8))) == codes).all()
    for rows, columns in ((1, 1), (3, 1), (5, 9), (2, 15), (2, 16), (3, 27), (2, 65), (3, 785), (2, 4100)):
        values = guarded(rng.normal(0, 1, (rows, columns)).astype(np.float32))
        scale = guarded(np.full(rows, 2.0 / (1 << bits), np.float32))
        offset = guarded(np.full(rows, -1, np.float32))
        for aligned in (False, True):
            settings = {"scale": scale, "offset": offset, "align_rows": aligned}
            empty = np.empty_like(quantise(values, bits, **settings))
            packed = quantise(values, bits, out=guarded(empty), **settings)
            dequantise(packed, bits, columns=columns, out=guarded(np.zeros_like(values)), **settings)
    keep.clear()
print("clean")
"""
CRASH = """
row = guarded(np.zeros((2, PAGE // 4), np.float32), hidden=1)
sample(row, temperature=0)
print("clean")
"""


@linux_only
@pytest.mark.parametrize("script", [ENDS, OPTIONS, LAZY], ids=["ends", "options", "lazy"])
def test_nothing_unreadable_is_read(level, script):
    result = run(GUARD + script, level)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_packing_stays_within_its_buffers(bits_level):
    result = run(GUARD + BITS, bits_level)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_guard_pages_do_stop_a_read(level):
    assert run(GUARD + CRASH, level).returncode < 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_after_a_rejection_do_not_matter(engine, temperature):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (5, 700)).astype(np.float32)
    chosen = sample(logits, temperature=temperature, position=np.arange(5))
    drafts = chosen[:4].copy()
    drafts[2] ^= 1
    spoilt = logits.copy()
    spoilt[3:] = np.nan
    for rows in (logits, spoilt):
        verdict = accept(rows, drafts, np.array([0, 5]), temperature=temperature)
        assert (verdict.accepted[0], verdict.next_token[0]) == (2, chosen[2])


def test_gil_is_released(level):
    logits, position = np.zeros((100, 50_000), np.float32), np.arange(100)
    assert lets_others_run(lambda: sample(logits, temperature=1.0, position=position, top_p=0.999))


def test_calls_at_the_same_time_do_not_disturb_each_other(engine):
    """Four threads, each with its own problem again and again: nothing is shared but the tables."""
    problems = [np.random.default_rng(i).normal(0, 3, (6, 3_000)).astype(np.float32) for i in range(4)]
    settings = [{"top_p": 0.9}, {"top_k": 30}, {}, {"presence_penalty": 0.5}]
    rounds, wrong = 3 if engine in ("numpy", "numba") else 60, []

    def decide(i):
        rule = ("rejection", "coupled")[i % 2]
        drafts = problems[i][:5].argmax(axis=1).astype(np.int32)
        verdict = accept(problems[i], drafts, np.array([0, 6]), temperature=0.5, rule=rule, seed=i, **settings[i])
        return verdict.accepted.tolist(), verdict.next_token.tolist()

    expected = [decide(i) for i in range(4)]
    threads = [
        threading.Thread(target=lambda i=i: wrong.extend(r for r in range(rounds) if decide(i) != expected[i]))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
