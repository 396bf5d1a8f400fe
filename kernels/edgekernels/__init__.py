"""Native kernels of speculative decoding: coupled noise, acceptance of drafts, and sampling.

No version is set here on purpose: the package is a part of edgebus and is released with it.
"""

from edgekernels._noise import gumbel, noise_bits
from edgekernels._rules import Accepted, accept, sample
from edgekernels._select import backend

__all__ = ["Accepted", "accept", "backend", "gumbel", "noise_bits", "sample"]
