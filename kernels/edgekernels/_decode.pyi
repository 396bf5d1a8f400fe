from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels.decoder.config import DecoderConfig
from edgekernels.decoder.weights import Weights

NAME: str
TILE: int

def levels() -> tuple[str, ...]: ...
def set_level(name: str) -> None: ...
def level() -> str: ...

class Model:
    def __init__(self, config: DecoderConfig, weights: Weights, floats: bool) -> None: ...

class Cache:
    def __init__(self, keys: npt.NDArray[Any], values: npt.NDArray[Any], capacity: int, padded_dim: int) -> None: ...

def forward(
    model: Model,
    cache: Cache,
    past: int,
    embedded: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    threads: int,
) -> None: ...

class Pages:
    def __init__(self, keys: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None: ...

def forward_paged(
    model: Model,
    pages: Pages,
    embedded: npt.NDArray[np.float32],
    page_table: npt.NDArray[np.int32],
    page_starts: npt.NDArray[np.int64],
    token_starts: npt.NDArray[np.int64],
    past: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    threads: int,
) -> None: ...
