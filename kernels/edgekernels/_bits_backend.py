"""What a backend offers for low-bit codes, with checked arguments."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

GRIDS = ("asymmetric", "symmetric", "even")  # in the order of ek_grid in bits.h
FORMATS = ("float32", "float16", "bfloat16")  # in the order of ek_format in bits.h
DTYPES = (np.float32, np.float16, np.uint16)  # of the arrays which hold them

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class BitsBackend(Protocol):
    """Kernels of low-bit codes; packed and planes are flat, whatever align_rows says.

    scale and offset are (rows * groups,), one of each for every `columns / groups` columns.
    """

    NAME: str

    def pack(self, codes: Bytes, bits: int, packed: Bytes) -> int: ...

    def unpack(self, packed: Bytes, bits: int, codes: Bytes) -> None: ...

    def quantise(
        self, values: Floats, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, packed: Bytes
    ) -> None: ...

    def dequantise(
        self, packed: Bytes, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, values: npt.NDArray[Any]
    ) -> None: ...

    def split(self, packed: Bytes, num_codes: int, bits: int, planes: Bytes) -> None: ...

    def merge(self, planes: Bytes, num_codes: int, bits: int, packed: Bytes) -> None: ...

    def fit(self, values: Floats, bits: int, *, grid: int, search: bool, scale: Floats, offset: Floats) -> int: ...
