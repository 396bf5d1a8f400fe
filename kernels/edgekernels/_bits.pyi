from typing import Any

import numpy as np
import numpy.typing as npt

NAME: str

def levels() -> tuple[str, ...]: ...
def set_level(name: str) -> None: ...
def level() -> str: ...
def cache_bytes() -> int: ...
def pack(codes: npt.NDArray[np.uint8], bits: int, packed: npt.NDArray[np.uint8]) -> int: ...
def unpack(packed: npt.NDArray[np.uint8], bits: int, codes: npt.NDArray[np.uint8]) -> None: ...
def quantise(
    values: npt.NDArray[np.float32],
    bits: int,
    *,
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    align_rows: bool,
    packed: npt.NDArray[np.uint8],
) -> None: ...
def dequantise(
    packed: npt.NDArray[np.uint8],
    bits: int,
    *,
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    align_rows: bool,
    values: npt.NDArray[Any],
) -> None: ...
def split(packed: npt.NDArray[np.uint8], num_codes: int, bits: int, planes: npt.NDArray[np.uint8]) -> None: ...
def merge(planes: npt.NDArray[np.uint8], num_codes: int, bits: int, packed: npt.NDArray[np.uint8]) -> None: ...
def fit(
    values: npt.NDArray[np.float32],
    bits: int,
    *,
    grid: int,
    search: bool,
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
) -> int: ...
