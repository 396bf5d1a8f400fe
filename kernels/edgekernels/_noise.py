"""Counter-based noise: the same words on every machine, keyed by seed, position and token id."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _checks, _reference, _select


def noise_bits(seed: int, position: int, token_ids: Any) -> npt.NDArray[np.uint32]:
    """Noise words of tokens at one position, a pure function of the three.

    Args:
        seed: 0 .. 2**64 - 1, of one answer.
        position: absolute position of the token being decided, 0 .. 2**62 - 1.
        token_ids: integers (n,), 0 .. 2**31 - 1.

    Returns:
        Words uint32 (n,), uniform.

    Raises:
        TypeError: an argument is not of integers.
        ValueError: an argument is out of its range or of another shape.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11 (Philox4x32-10).

    >>> noise_bits(0, 0, [0, 1]).tolist() == noise_bits(0, 0, [1, 0]).tolist()[::-1]
    True
    """
    ids = np.asarray(token_ids)
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"token_ids is {ids.dtype}; pass integers")
    if ids.ndim != 1:
        raise ValueError(f"token_ids has shape {ids.shape}; pass one dimension")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= _checks.MAX_ID:
        raise ValueError(f"token_ids spans {ids.min()} .. {ids.max()}; pass ids from 0 to {_checks.MAX_ID}")
    words = np.empty(ids.size, np.uint32)
    seed, position = _checks.seed(seed, 1), _checks.position(position, 1)
    _select.active.noise_bits(int(seed), int(position), np.ascontiguousarray(ids, np.int32), words)
    return words


def gumbel(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Gumbel variates of noise words: -log(-log((bits + 0.5) / 2**32)).

    Args:
        bits: words uint32, of any shape.

    Returns:
        float64 of the same shape, from -3.14 to 22.88.

    Raises:
        TypeError: bits is not an array of uint32.

    Source: Maddison et al., arXiv 1411.0030.
    """
    if getattr(bits, "dtype", None) != np.uint32:
        raise TypeError(f"bits is {getattr(bits, 'dtype', type(bits).__name__)}; pass uint32 words of noise_bits")
    return _reference.gumbel(bits)
