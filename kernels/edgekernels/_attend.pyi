from typing import Any

import numpy as np
import numpy.typing as npt

NAME: str

def levels() -> tuple[str, ...]: ...
def set_level(name: str) -> None: ...
def level() -> str: ...
def attend(
    query: npt.NDArray[Any],
    keys: npt.NDArray[Any],
    values: npt.NDArray[Any],
    page_table: npt.NDArray[np.int32],
    page_starts: npt.NDArray[np.int64],
    token_starts: npt.NDArray[np.int64],
    past: npt.NDArray[np.int64],
    *,
    scale: float,
    window: int,
    softcap: float,
    out: npt.NDArray[Any],
    num_threads: int,
) -> bool: ...
