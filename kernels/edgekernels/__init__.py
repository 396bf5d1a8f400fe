"""Native kernels: coupled noise, acceptance of drafts and sampling; packing and quantising of low-bit codes;
products with packed matrices; paged attention.

No version is set here on purpose: the package is a part of edgebus and is released with it.
"""

from edgekernels._attention import paged_attention
from edgekernels._hooks import AcceptanceTest, Noise, compile_noise, compile_test
from edgekernels._matrix import PackedMatrix, matmul
from edgekernels._noise import gumbel, noise_bits
from edgekernels._packing import pack, packed_bytes, unpack
from edgekernels._planes import coarser, finer, merge_planes, split_planes
from edgekernels._quantise import Scales, dequantise, fit, quantise
from edgekernels._rules import Accepted, accept, sample
from edgekernels._select import backend
from edgekernels._task import Bias, History, SparseQ

__all__ = [
    "AcceptanceTest",
    "Accepted",
    "Bias",
    "History",
    "Noise",
    "PackedMatrix",
    "Scales",
    "SparseQ",
    "accept",
    "backend",
    "coarser",
    "compile_noise",
    "compile_test",
    "dequantise",
    "finer",
    "fit",
    "gumbel",
    "matmul",
    "merge_planes",
    "noise_bits",
    "pack",
    "packed_bytes",
    "paged_attention",
    "quantise",
    "sample",
    "split_planes",
    "unpack",
]
