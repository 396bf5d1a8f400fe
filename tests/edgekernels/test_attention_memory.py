"""Paged attention: no buffer is read or written past its end, the GIL is released, calls do not disturb each other."""

import threading

import numpy as np
from edgekernels import paged_attention

from tests.edgekernels.gil import lets_others_run
from tests.edgekernels.scripts import linux_only, run

GUARD = """
from edgekernels import _attend, _select, paged_attention

_attend.set_level(sys.argv[1])
"""
ENDS = """
rng = np.random.default_rng(0)
for dim in (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 40, 64, 80, 100):
    for dtype in (np.float32, np.uint16):
        for page_tokens, past, new, group in ((1, 0, 1, 1), (16, 20, 3, 2), (5, 0, 40, 3), (64, 63, 2, 7)):
            front, total = bool(rng.integers(2)), past + new
            pages = -(-total // page_tokens)
            pool = rng.integers(0, 2, (pages, 2, page_tokens, dim)).astype(dtype)
            query = guarded(rng.integers(0, 2, (new, 2 * group, dim)).astype(dtype), front)
            table = guarded(np.arange(pages, dtype=np.int32)[::-1], front)
            starts, tokens = guarded(np.array([0, pages]), front), guarded(np.array([0, new]), front)
            keys, values, own = guarded(pool, front), guarded(pool, front), guarded(np.array([past]), front)
            for options in ({}, {"window": 9, "softcap": 3.0}):
                out = guarded(np.zeros_like(query), front)
                paged_attention(query, keys, values, table, starts, tokens, own, scale=0.5, out=out, **options)
    keep.clear()
print("clean")
"""
SHORT = """
pages = guarded(np.zeros((1, 1, PAGE // 64, 16), np.float32))
own = np.lib.stride_tricks.as_strided(pages, (2, 1, PAGE // 64, 16))  # the second one lies behind the guard
table, starts = np.array([0, 1], np.int32), np.array([0, 2])
query = np.zeros((1, 1, 16), np.float32)
paged_attention(query, own, own, table, starts, np.array([0, 1]), np.array([PAGE // 64]), scale=1.0)
print("clean")
"""


@linux_only
def test_attention_stays_within_its_buffers(attend_level):
    result = run(GUARD + ENDS, attend_level)
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_guard_pages_do_stop_a_read_of_keys(attend_level):
    assert run(GUARD + SHORT, attend_level).returncode < 0


def problem(seed, *, past=2000, new=200):
    rng = np.random.default_rng(seed)
    pages = -(-(past + new) // 16)
    query = rng.normal(0, 1, (new, 4, 32)).astype(np.float32)
    keys, values = (rng.normal(0, 1, (pages, 2, 16, 32)).astype(np.float32) for _ in range(2))
    table = rng.permutation(pages).astype(np.int32)
    return query, keys, values, table, np.array([0, pages]), np.array([0, new]), np.array([past])


def test_gil_is_released_in_attention(attend_level):
    arguments = problem(0)
    assert lets_others_run(lambda: paged_attention(*arguments, scale=0.2))


def test_attention_in_several_threads_is_not_disturbed(attend_level):
    problems = [problem(i, past=100 * i, new=8) for i in range(4)]
    wanted = [paged_attention(*arguments, scale=0.2) for arguments in problems]
    wrong = []

    def work(i):
        for _ in range(20):
            if not np.array_equal(paged_attention(*problems[i], scale=0.2, num_threads=1 + i % 2), wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
