"""Libraries that have low-bit formats of their own: what they make of the values is near them, not the same."""

import ctypes
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.micro._bits_case import COLUMNS, ROWS, Case


class Gguf:
    """gguf-py's Q4_0 or Q8_0: a float16 scale for every 32 values and no offset."""

    BITS = (4, 8)
    NEEDS = "gguf"

    def __init__(self, case: Case) -> None:
        import gguf

        self.gguf, self.case = gguf, case
        self.kind = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}[case.bits]
        self.blocks = self.quantise()

    def dequantise(self) -> NDArray[np.float32]:
        return self.gguf.quants.dequantize(self.blocks, self.kind)

    def quantise(self) -> NDArray[np.uint8]:
        return self.gguf.quants.quantize(self.case.values, self.kind)


_KINDS = {2: ("q2_K", 256, 84), 3: ("q3_K", 256, 110), 4: ("q4_0", 32, 18), 8: ("q8_0", 32, 34)}
"""Of ggml: the name of a format, values and bytes of a block."""


class Ggml:
    """ggml's C functions for whole rows: Q2_K, Q3_K, Q4_0, Q8_0, as llama.cpp calls them."""

    BITS = (2, 3, 4, 8)
    NEEDS = "llama_cpp"

    def __init__(self, case: Case) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None
        assert spec.origin is not None
        library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
        name, block, num_bytes = _KINDS[case.bits]
        self.case = case
        self.read, self.write = library[f"dequantize_row_{name}"], library[f"quantize_{name}"]
        self.read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self.write.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        self.write.restype = ctypes.c_size_t
        self.blocks = np.zeros(case.values.size // block * num_bytes, np.uint8)
        self.floats = np.empty_like(case.values)
        assert self.quantise().any()

    def dequantise(self) -> NDArray[np.float32]:
        self.read(self.blocks.ctypes.data, self.floats.ctypes.data, self.floats.size)
        return self.floats

    def quantise(self) -> NDArray[np.uint8]:
        written = self.write(self.case.values.ctypes.data, self.blocks.ctypes.data, ROWS, COLUMNS, None)
        assert written == len(self.blocks)
        return self.blocks


class Torchao:
    """torchao's affine codes of groups of 64 values with an integer zero; packing of its prototype below 8 bits."""

    BITS = (2, 3, 4, 8)
    NEEDS = "torchao"

    def __init__(self, case: Case) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.prototype.dtypes.uintx import bitpacking
            from torchao.quantization.quant_primitives import dequantize_affine, quantize_affine

        self.torch, self.case, self.bitpacking = torch, case, bitpacking
        self.functions = quantize_affine, dequantize_affine
        self.values = torch.from_numpy(case.values)
        groups = case.values.reshape(ROWS, -1, 64)
        low, high = groups.min(2), groups.max(2)
        self.top = (1 << case.bits) - 1
        scale = (high - low) / self.top
        self.scale = torch.from_numpy(scale)
        self.zero = torch.from_numpy(np.rint(-low / scale).astype(np.int32))
        self.packed = self.quantise()

    def quantise(self) -> Any:
        codes = self.functions[0](self.values, (1, 64), self.scale, self.zero, self.torch.uint8, 0, self.top)
        return codes if self.case.bits == 8 else self.bitpacking.pack_cpu(codes, self.case.bits)

    def dequantise(self) -> NDArray[np.float32]:
        codes = self.packed
        if self.case.bits < 8:
            codes = self.bitpacking.unpack_cpu(codes, self.case.bits)
        return self.functions[1](
            codes, (1, 64), self.scale, self.zero, self.torch.uint8, 0, self.top, output_dtype=self.torch.float32
        ).numpy()


class Bitsandbytes:
    """bitsandbytes on a CPU: NF4 in blocks of 64 values, or its dynamic 8 bits in blocks of 256."""

    BITS = (4, 8)
    NEEDS = "bitsandbytes"

    def __init__(self, case: Case) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from bitsandbytes import functional

        self.values, self.case = torch.from_numpy(case.values), case
        if case.bits == 4:
            self.write = lambda: functional.quantize_4bit(self.values, blocksize=64, quant_type="nf4")
            self.read = functional.dequantize_4bit
        else:
            self.write = lambda: functional.quantize_blockwise(self.values, blocksize=256)
            self.read = functional.dequantize_blockwise
        self.packed = self.write()

    def quantise(self) -> Any:
        return self.write()

    def dequantise(self) -> NDArray[np.float32]:
        return self.read(*self.packed).numpy()


LIBRARIES = {"gguf": Gguf, "ggml": Ggml, "torchao": Torchao, "bitsandbytes": Bitsandbytes}
