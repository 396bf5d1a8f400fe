"""Other ways to quantise and pack rows of floats, and back, as their users would write them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.micro._bits_case import COLUMNS, Case


def layout(bits: int) -> tuple[int, int]:
    """Bytes of the smallest word made of whole codes, and the codes in it."""
    num_bytes = bits if 8 % bits else 1
    return num_bytes, num_bytes * 8 // bits


class Numpy:
    """Shifts and masks over whole arrays, into arrays made once. The words of 3-bit codes are 3 bytes."""

    def __init__(self, case: Case, packed: NDArray[np.uint8]) -> None:
        self.case, self.packed = case, packed
        self.word_bytes, self.per_word = layout(case.bits)
        self.codes = np.empty(case.values.shape, np.uint8)
        self.floats = np.empty_like(case.values)
        self.bytes = np.empty_like(packed)
        self.scale, self.offset = case.scale[:, None], case.offset[:, None]

    def unpack(self) -> None:
        words: Any = self.packed
        if self.word_bytes > 1:
            parts = self.packed.reshape(-1, self.word_bytes)
            words = parts[:, 0].astype(np.uint32)
            for k in range(1, self.word_bytes):
                words |= parts[:, k].astype(np.uint32) << (8 * k)
        columns = self.codes.reshape(-1, self.per_word)
        mask = (1 << self.case.bits) - 1
        for k in range(self.per_word):
            columns[:, k] = (words >> (k * self.case.bits)) & mask

    def pack(self) -> None:
        columns = self.codes.reshape(-1, self.per_word)
        words = columns[:, 0].astype(np.uint32 if self.word_bytes > 1 else np.uint8)
        for k in range(1, self.per_word):
            words |= columns[:, k].astype(words.dtype) << (k * self.case.bits)
        parts = self.bytes.reshape(-1, self.word_bytes)
        for k in range(self.word_bytes):
            parts[:, k] = words >> (8 * k)

    def dequantise(self) -> NDArray[np.float32]:
        if self.case.bits < 8:
            self.unpack()
        codes = self.codes if self.case.bits < 8 else self.packed.reshape(self.codes.shape)
        np.multiply(codes, self.scale, out=self.floats)
        np.add(self.floats, self.offset, out=self.floats)
        return self.floats

    def quantise(self) -> NDArray[np.uint8]:
        np.subtract(self.case.values, self.offset, out=self.floats)
        np.divide(self.floats, self.scale, out=self.floats)
        np.rint(self.floats, out=self.floats)
        np.clip(self.floats, 0, (1 << self.case.bits) - 1, out=self.floats)
        np.copyto(self.codes, self.floats, casting="unsafe")
        if self.case.bits == 8:
            return self.codes.reshape(-1)
        self.pack()
        return self.bytes


class Torch:
    """The same in torch, in place where it can be; torch's own quantised tensors know no odd widths and no packing."""

    def __init__(self, case: Case, packed: NDArray[np.uint8]) -> None:
        import torch

        self.torch, self.case = torch, case
        self.word_bytes, self.per_word = layout(case.bits)
        self.values, self.packed = torch.from_numpy(case.values), torch.from_numpy(packed)
        self.scale, self.offset = torch.from_numpy(case.scale)[:, None], torch.from_numpy(case.offset)[:, None]
        self.codes = torch.empty(case.values.shape, dtype=torch.uint8)
        self.bytes = torch.empty_like(self.packed)
        self.floats = torch.empty_like(self.values)

    def unpack(self) -> None:
        words = self.packed
        if self.word_bytes > 1:
            parts = self.packed.reshape(-1, self.word_bytes)
            words = parts[:, 0].to(self.torch.int32)
            for k in range(1, self.word_bytes):
                words |= parts[:, k].to(self.torch.int32) << (8 * k)
        columns = self.codes.reshape(-1, self.per_word)
        mask = (1 << self.case.bits) - 1
        for k in range(self.per_word):
            columns[:, k] = (words >> (k * self.case.bits)) & mask

    def pack(self) -> None:
        columns = self.codes.reshape(-1, self.per_word)
        words = columns[:, 0].to(self.torch.int32 if self.word_bytes > 1 else self.torch.uint8)
        for k in range(1, self.per_word):
            words |= columns[:, k].to(words.dtype) << (k * self.case.bits)
        parts = self.bytes.reshape(-1, self.word_bytes)
        for k in range(self.word_bytes):
            parts[:, k] = (words >> (8 * k)) & 255

    def dequantise(self) -> NDArray[np.float32]:
        if self.case.bits < 8:
            self.unpack()
        codes = self.codes if self.case.bits < 8 else self.packed.reshape(self.codes.shape)
        self.torch.mul(codes, self.scale, out=self.floats)
        return self.floats.add_(self.offset).numpy()

    def quantise(self) -> NDArray[np.uint8]:
        self.torch.sub(self.values, self.offset, out=self.floats)
        self.codes.copy_(self.floats.div_(self.scale).round_().clamp_(0, (1 << self.case.bits) - 1))
        if self.case.bits == 8:
            return self.codes.reshape(-1).numpy()
        self.pack()
        return self.bytes.numpy()


class Edgekernels:
    """The functions under test."""

    def __init__(self, case: Case, packed: NDArray[np.uint8]) -> None:
        from edgekernels import dequantise, quantise

        self.case, self.packed = case, packed
        self.functions = dequantise, quantise
        self.rows = {"scale": case.scale, "offset": case.offset}
        self.floats, self.bytes = np.empty_like(case.values), np.empty_like(packed)

    def dequantise(self) -> NDArray[np.float32]:
        return self.functions[0](self.packed, self.case.bits, columns=COLUMNS, out=self.floats, **self.rows)

    def quantise(self) -> NDArray[np.uint8]:
        return self.functions[1](self.case.values, self.case.bits, out=self.bytes, **self.rows)


PEERS: dict[str, Callable[[Case, NDArray[np.uint8]], Any]] = {
    "edgekernels": Edgekernels,
    "numpy": Numpy,
    "torch": Torch,
}
