"""The benchmarks of products and decoder measure what they say, and what they lose stands in bench/README.md."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest

from bench import limits, losses, others, report
from bench.macro import decoder
from bench.micro import _gemm_peers as peers
from bench.micro import gemm


class Answers:
    """A contender that multiplies with given weights, or says that it does."""

    bits_per_weight, products = 4.5, 1

    def __init__(self, weights, answer):
        self._weights, self._answer = weights, answer

    def weights(self):
        return self._weights

    def answer(self):
        return self._answer


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    return peers.Case(4, 2, "L3", rng.normal(size=(64, 128)).astype(np.float32), rng.normal(size=(2, 128)).astype("f4"))


def test_a_right_answer_passes_the_check_with_its_errors(case):
    weights = case.weights + np.float32(0.05)
    errors = peers.check(Answers(weights, case.x @ weights.T), case)
    assert errors["product_error"] < 1e-6
    assert errors["weight_error"] == pytest.approx(0.05, rel=0.1)


def test_what_did_not_multiply_fails_the_check(case):
    right = case.x @ case.weights.T
    for answer in (np.zeros_like(right), np.full_like(right, np.nan), right[::-1], 1.03 * right):
        with pytest.raises(AssertionError, match="its product is"):
            peers.check(Answers(case.weights, answer), case)


def test_what_multiplied_with_other_weights_fails_the_check(case):
    with pytest.raises(AssertionError, match="its weights are"):
        peers.check(Answers(case.weights[::-1], case.x @ case.weights[::-1].T), case)


def test_copies_fill_four_times_the_last_cache_or_stay_in_it(case, monkeypatch):
    monkeypatch.setattr(limits, "sizes", lambda: {"L2": 1 << 19, "L3": 8 << 20, "DRAM": 128 << 20})
    dram = peers.Case(4, 1, "DRAM", case.weights, case.x)
    assert (case.copies_of(9 << 20), dram.copies_of(9 << 20), dram.copies_of(1 << 30)) == (1, 15, 1)
    assert (case.products(1), dram.products(15)) == (4, 15)


def test_the_limit_is_what_memory_gives_and_not_more_than_a_machine_can():
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    memory = limits.buffer(1 << 20)
    assert memory.ctypes.data % 64 == 0
    library = limits._library()
    assert library.limits_read(memory.ctypes.data, memory.nbytes, 3, 2) == 3 * (1 << 17) * 0x0101010101010101 % 2**64
    assert 0.1 < limits.read_gb_per_s(1 << 18, 1) < 5000


class Clock:
    """Processor time of this process and of all, in seconds a round."""

    def __init__(self, monkeypatch, own, busy):
        self.own, self.busy, self.rounds = own, iter(busy), 0
        monkeypatch.setattr(others.Watch, "_now", self._now)
        self._at = (0.0, 0.0, 0.0)

    def _now(self, watch=None):
        self.rounds += 1
        if self.rounds % 2 == 0:  # the end of a round
            wall, own, busy = self._at
            self._at = (wall + 1.0, own + self.own, busy + self.own + next(self.busy))
        return self._at


def run(rounds, tries=4):
    return [counts() for _, counts in others.undisturbed(rounds, tries=tries)]


def test_rounds_beside_other_processes_do_not_count_and_are_repeated(monkeypatch):
    Clock(monkeypatch, own=1.5, busy=[0.0, 0.5, 0.1, 1.0, 0.0])
    assert run(3) == [True, False, True, False, True]


def test_a_machine_that_is_never_quiet_ends_the_rounds(monkeypatch):
    Clock(monkeypatch, own=1.0, busy=itertools.repeat(1.0))
    assert run(2, tries=3) == [False] * 6


def test_a_ratio_is_of_the_same_rounds_and_a_figure_has_its_origin():
    row = {"m": 1, "threads": 2, "contender": "edgekernels", "share_of_limit": 0.8}
    result = {"cases": [row, row | {"m": 8, "share_of_limit": 0.1}], "ratio_ggml": {"m=1 threads=2": 1.7}}
    stamped = {"cpu": "x", "cores": 2, "commit": "abc"}
    found = gemm.figures(4, "L3", result, stamped)
    assert {key: figure["value"] for key, figure in found.items()} == {
        "kernels.gemv4_ratio_ggml": 1.7,
        "kernels.gemv4_share_l3": 0.8,
    }
    assert found["kernels.gemv4_ratio_ggml"]["command"] == "python -m bench.micro.gemm --bits 4 --place L3"
    assert gemm.figures(4, "DRAM", result, stamped).keys() == {"kernels.gemv4_share_dram"}
    assert not gemm.figures(4, "DRAM", {"cases": [row | {"disturbed": True}], "ratio_ggml": {}}, stamped)


@pytest.mark.parametrize("busy", [0.0, 1.0])
def test_rows_of_disturbed_rounds_say_so(monkeypatch, busy):
    class Still:
        products = 1

        def prepare(self, num_threads):
            pass

        def turn(self):
            pass

    monkeypatch.setattr(others.Watch, "others_share", lambda watch: busy)
    times, disturbed = gemm._timed({"edgekernels": Still(), "limit": Still()}, 1, 2)
    assert disturbed == (busy > 0.5)
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(times, 8 if disturbed else 2)


def test_the_decoders_figure_is_the_worse_of_one_and_two_threads():
    rates = {"1": {"ratio": 1.5}, "2": {"ratio": 0.9}}
    result = {"file": "f", "decode_tokens_per_s": rates, "prefill_tokens_per_s": rates}
    stamped = {"cpu": "x", "cores": 2, "commit": "abc", "peer_versions": {"llama-cpp-python": "1"}}
    found = decoder.figures(result, stamped)
    assert found["kernels.decoder_ratio_llamacpp"]["value"] == 0.9


def test_tokens_per_second_are_of_the_median_and_the_ratio_of_each_round():
    times = {"edgekernels": [1.0, 10.0, 1.0], "llama.cpp": [2.0, 20.0, 3.0]}
    assert decoder._rates(times, 100) == {"edgekernels": 100.0, "llama.cpp": 33.3, "ratio": 2.0, "rounds": 3}


def test_decoders_that_do_not_agree_are_not_timed():
    with pytest.raises(decoder.EngineFailed, match="agree on 50%"):
        decoder._check({"edgekernels": [1, 2], "llama.cpp": [1, 3]})
    assert decoder._check({"edgekernels": [1] * 9 + [0], "llama.cpp": [1] * 10}) == 0.9


def test_every_kind_of_loss_is_listed_and_draws_are_not():
    row = {"m": 1, "threads": 2, "bits_per_weight": 4.5, "weight_error": 0.09}
    cases = [
        row | {"contender": "edgekernels", "median_us": 100.0},
        row | {"contender": "edgekernels, symmetric", "median_us": 50.0},
        row | {"contender": "limit", "median_us": 40.0},
        row | {"contender": "ggml q4_0", "median_us": 99.0, "weight_error": 0.07},
        row | {"contender": "torch x", "median_us": 90.0},
        {"m": 1, "threads": 2, "contender": "ggml z", "absent": "ValueError: none"},
    ]
    found = list(losses.gemm_losses({"widths": {"4": {"L3": {"cases": cases}}}}))
    assert found == [
        ("4 bits, 1 row, 2 threads, weights in L3", "100 us against 90 of torch x"),
        ("4 bits, error of the weights", "0.0900 with 4.5 bits each against 0.0700 with 4.5 of ggml q4_0"),
    ]
    start = {"load_and_first_token_s": 0.4, "peak_rss_bytes": 100_000_000}
    result = {
        "decode_tokens_per_s": {"1": {"ratio": 0.5, "edgekernels": 10.0, "llama.cpp": 20.0}},
        "prefill_tokens_per_s": {"1": {"ratio": 0.99, "edgekernels": 99.0, "llama.cpp": 100.0}},
        "start": {"edgekernels": start, "llama.cpp": start | {"load_and_first_token_s": 0.2}},
        "perplexity": {"edgekernels": {"perplexity": 11.0}, "llama.cpp": {"perplexity": 10.0}},
    }
    assert [what for what, _ in losses.decoder_losses({"files": {"Q4_1": result}})] == [
        "decoder, Q4_1, decode, 1 thread",
        "decoder, Q4_1, import, load and first token",
        "decoder, Q4_1, perplexity",
    ]


def test_bench_readme_lists_the_committed_losses():
    text = losses.README.read_text()
    assert losses.rendered(text) == text, f"{report.__name__} renders it: python -m bench.report"
