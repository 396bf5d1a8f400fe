"""Sizes that captured forwards are padded to: the quickest that was measured, and only where it is clearly quicker."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")

from sled.targets.sizes import Size, Sizes, multiplying_by, round_up, worth_measuring

pytestmark = pytest.mark.model


class Clock:
    """Products that take as long as said; whatever is not said takes a millisecond a token."""

    def __init__(self, **said):
        self.said, self.asked = said, []

    def __call__(self, size):
        self.asked.append(size)
        return self.said.get(f"{size.blas}{size.tokens}", float(size.tokens))


def test_a_larger_size_that_is_quicker_is_taken():
    assert Sizes(Clock(t448=1.0), ("t",))(421) == Size(448, "t")
    assert Sizes(Clock(t448=16.5, t480=13.2, t512=13.5), ("t",))(433) == Size(480, "t")


def test_what_is_hardly_quicker_is_not():
    assert Sizes(Clock(t448=10.0, t480=9.8), ("t",))(448) == Size(448, "t")


def test_a_library_that_is_quicker_is_taken_where_it_is():
    sizes = Sizes(Clock(a72=10.0, b72=9.0, a1152=10.0, b1152=11.0), ("a", "b"))
    assert sizes(70) == Size(72, "b")
    assert sizes(1152) == Size(1152, "a")


def test_each_size_is_measured_once():
    clock = Clock()
    sizes = Sizes(clock, ("a", "b"))
    for tokens in (288, 281, 320, 288, 320):
        sizes(tokens)
    assert len(clock.asked) == len(set(clock.asked))
    assert {size.tokens for size in clock.asked} == {288, 320, 352, 384}


def test_sizes_that_there_is_no_memory_for_are_not_taken():
    """A batch that has room is computed, even if a larger one that was only to be measured has none."""

    def time_ms(size):
        if size.tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1000.0 / size.tokens

    for most in (448, 480):
        assert Sizes(time_ms, ("a", "b"))(448) == Size(most, "a")
    most = 440
    with pytest.raises(torch.OutOfMemoryError):
        Sizes(time_ms, ("a", "b"))(448)


@pytest.mark.parametrize("tokens", [1, 7, 63, 64, 65, 200, 448, 1000, 2304, 5000])
def test_a_size_holds_the_batch_and_is_a_bucket(tokens):
    for size in worth_measuring(round_up(tokens)):
        assert size >= tokens
        assert round_up(size) == size
    assert size <= 1.25 * round_up(tokens)


def test_a_preference_goes_back_to_what_it_was(monkeypatch):
    held = ["cublas"]

    def preferred(library=None):
        if library is not None:
            held.append(library)
        return held[-1]

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", preferred)
    with contextlib.suppress(KeyError), multiplying_by("cublaslt"):
        raise KeyError
    with multiplying_by(""):
        pass
    assert held == ["cublas", "cublaslt", "cublas"]
