import numpy as np
import numpy.typing as npt

from edgekernels._matrix import PackedMatrix

NAME: str

def levels() -> tuple[str, ...]: ...
def set_level(name: str) -> None: ...
def level() -> str: ...
def pack(codes: npt.NDArray[np.uint8], bits: int, data: npt.NDArray[np.uint8]) -> int: ...
def row_codes(matrix: PackedMatrix, rows: npt.NDArray[np.int64], codes: npt.NDArray[np.uint8]) -> None: ...
def row_values(matrix: PackedMatrix, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None: ...
def values(matrix: PackedMatrix, values: npt.NDArray[np.float32]) -> None: ...
def multiply(
    matrix: PackedMatrix,
    x: npt.NDArray[np.float32],
    *,
    bias: npt.NDArray[np.float32] | None,
    y: npt.NDArray[np.float32],
    quantised: bool,
    num_threads: int,
) -> None: ...
def quantise_tokens(
    x: npt.NDArray[np.float32],
    group: int,
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float32],
) -> None: ...
