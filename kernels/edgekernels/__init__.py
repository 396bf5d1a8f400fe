"""Native kernels: coupled noise, acceptance of drafts and sampling; packing and quantising of low-bit codes.

No version is set here on purpose: the package is a part of edgebus and is released with it.
"""

from edgekernels._noise import gumbel, noise_bits
from edgekernels._packing import pack, packed_bytes, unpack
from edgekernels._planes import coarser, finer, merge_planes, split_planes
from edgekernels._quantise import Scales, dequantise, fit, quantise
from edgekernels._rules import Accepted, accept, sample
from edgekernels._select import backend

__all__ = [
    "Accepted",
    "Scales",
    "accept",
    "backend",
    "coarser",
    "dequantise",
    "finer",
    "fit",
    "gumbel",
    "merge_planes",
    "noise_bits",
    "pack",
    "packed_bytes",
    "quantise",
    "sample",
    "split_planes",
    "unpack",
]
