"""The noise is a wire-level contract: published vectors, and words that may never change."""

import numpy as np
import pytest
from edgekernels import _reference, gumbel, noise_bits

GOLDEN = [3855994927, 1995416107, 136438854, 1249623054, 3089430899, 3877746100]
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert tuple(_reference.philox(np.array([counter], np.uint64), key)[0]) == words


def philox_in_python(counter, key):
    """A second implementation, with Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_noise_is_philox_keyed_by_seed_position_and_id(engine):
    rng = np.random.default_rng(1)
    for seed, position in ((0, 0), (2**64 - 1, 2**62 - 1), (7 << 32 | 5, 3 << 32 | 9)):
        ids = np.concatenate([np.arange(37), rng.integers(0, 2**31, 30), [2**31 - 1]])
        key = (seed & 0xFFFFFFFF, seed >> 32)
        expected = [
            philox_in_python((i >> 2, position & 0xFFFFFFFF, position >> 32, 0x534C4544), key)[i & 3]
            for i in ids.tolist()
        ]
        assert noise_bits(seed, position, ids).tolist() == expected


def test_noise_words_never_change(engine):
    assert noise_bits(42, 1000, [0, 1, 2, 3, 4, 151_935]).tolist() == GOLDEN


def test_noise_of_a_token_does_not_depend_on_its_neighbours(engine):
    dense = noise_bits(3, 4, np.arange(1000))
    for ids in ([999], [5, 3, 3, 998], np.arange(0, 1000, 7)):
        assert noise_bits(3, 4, ids).tolist() == dense[ids].tolist()
    assert noise_bits(3, 4, []).tolist() == []


def test_noise_differs_between_seeds_and_positions(engine):
    ids = np.arange(64)
    words = [tuple(noise_bits(seed, position, ids)) for seed in (0, 1, 1 << 32) for position in (0, 1, 1 << 32)]
    assert len(set(words)) == len(words)


def test_gumbel_follows_its_formula():
    bits = np.array([0, 2**31, 2**32 - 1], np.uint32)
    assert gumbel(bits) == pytest.approx([-3.1299, 0.36651, 22.87386], abs=1e-4)
    assert gumbel(bits.reshape(3, 1)).shape == (3, 1)


def test_noise_is_uniform(p_value):
    words = noise_bits(11, 5, np.arange(1 << 16))
    assert p_value((words >> 26).astype(np.int64), np.full(64, 1 / 64)) > 1e-5


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "-1", lambda: noise_bits(-1, 0, [1])),
        (ValueError, "18446744073709551616", lambda: noise_bits(2**64, 0, [1])),
        (ValueError, "position", lambda: noise_bits(0, 2**62, [1])),
        (ValueError, "-3", lambda: noise_bits(0, 0, [-3])),
        (ValueError, "2147483648", lambda: noise_bits(0, 0, [2**31])),
        (ValueError, r"\(1, 1\)", lambda: noise_bits(0, 0, [[1]])),
        (TypeError, "float64", lambda: noise_bits(0, 0, [1.5])),
        (TypeError, "seed", lambda: noise_bits(1.5, 0, [1])),
        (TypeError, "int64", lambda: gumbel(np.array([1]))),
        (TypeError, "list", lambda: gumbel([1])),
    ],
)
def test_wrong_arguments_are_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()
