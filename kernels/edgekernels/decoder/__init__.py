"""A native decoder for language models of the Llama family: numpy and the kernels, neither torch nor transformers.

>>> from edgekernels.decoder import load_decoder            # doctest: +SKIP
>>> decoder = load_decoder("model.gguf")                    # doctest: +SKIP
>>> cache = decoder.new_cache()                             # doctest: +SKIP
>>> decoder.forward([1, 2, 3], cache).argmax()              # doctest: +SKIP
"""

from edgekernels.decoder.cache import KVCache
from edgekernels.decoder.config import DecoderConfig, DecoderError
from edgekernels.decoder.model import Decoder, load_decoder
from edgekernels.decoder.paged import KVPages
from edgekernels.decoder.reduce import reduced
from edgekernels.decoder.weights import Layer, Linear, Weights

__all__ = [
    "Decoder",
    "DecoderConfig",
    "DecoderError",
    "KVCache",
    "KVPages",
    "Layer",
    "Linear",
    "Weights",
    "load_decoder",
    "reduced",
]
