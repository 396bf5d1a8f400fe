"""Forwards shrink where memory is short, and come back."""

from __future__ import annotations

import math

from sled.run.shortage import Shortage
from sled.server import ServerLimits
from sled.testing import ToyTarget
from tests.sled.shell_fakes import GREEDY, PROMPT, Failing, opening, shell, steps, streaming


def test_forwards_are_halved_until_they_fit_and_come_back_within_tens_of_steps():
    shortage = Shortage(usual=512)
    for tokens in (512, 256, 128, 64, 32, 16):  # all of them parts of one forward
        shortage.failed(tokens)
    assert shortage.most == 8
    count = 0
    while shortage.most < math.inf:
        shortage.fitted(int(min(512, shortage.most)))
        count += 1
    assert 30 <= count <= 60
    shortage.failed(1)
    assert shortage.most == 1, "a forward of nothing is none"


def test_where_memory_stays_short_few_forwards_fail_and_most_are_large():
    shortage, room, failed, sizes = Shortage(usual=512), 100, 0, []
    for _ in range(2000):
        tokens = int(min(512, shortage.most))
        if tokens > room:
            shortage.failed(tokens)
            failed += 1
        else:
            shortage.fitted(tokens)
            sizes.append(tokens)
    assert failed <= 30
    assert sum(sizes) / len(sizes) > 0.6 * room
    count = 0
    while shortage.most < math.inf:  # and it is over
        shortage.fitted(int(min(512, shortage.most)))
        count += 1
    assert count < 400


def test_small_forwards_tell_nothing_of_large_ones():
    """Sessions decode, and now and then a text comes that is computed as fast as it may be."""
    shortage, room, failed, large = Shortage(usual=512), 100, 0, 0
    for _ in range(40):
        for _ in range(60):  # forwards of eight sessions
            shortage.fitted(8)
        left = 512
        while left:
            tokens = int(min(left, shortage.most))
            large += 1
            if tokens > room:
                shortage.failed(tokens)
                failed += 1
            else:
                shortage.fitted(tokens)
                left -= tokens
    assert failed <= 12
    assert large <= 40 * 9  # of 6 that it takes at least


def test_a_shortage_that_is_over_is_forgotten_by_the_next_one():
    shortage = Shortage(usual=8)
    for _ in range(3):
        shortage.failed(8)
        shortage.fitted(4)
        shortage.failed(4)  # it had grown: slower from now on
        while shortage.most < math.inf:
            shortage.fitted(int(min(8, shortage.most)))
    shortage.failed(8)
    shortage.fitted(4)
    assert shortage.most == 4 * 1.1


def test_the_server_takes_large_forwards_again_soon_after_a_shortage():
    target = Failing()
    target.most_tokens = 2
    streams = [streaming(n, max_tokens=200) for n in range(8)]
    server = shell(target, *(opening(n) for n in range(8)), *streams, limits=ServerLimits(batch_tokens=32))
    for _ in range(20):
        server.step()
    target.most_tokens = 1 << 20
    sizes = []
    original = ToyTarget.verify

    def counted(self, chunks, rounds):
        sizes.append(sum(len(chunk.tokens) for chunk in chunks))
        return original(self, chunks, rounds)

    target.verify = counted.__get__(target)
    for _ in range(150):
        server.step()
    assert max(sizes) == 8
    steps(server)
    assert all(stream.tokens == target.plain_answer(PROMPT, GREEDY, 200) for stream in streams)
