import numpy as np
import numpy.typing as npt

NAME: str

def levels() -> tuple[str, ...]: ...
def set_level(name: str) -> None: ...
def level() -> str: ...
def accept(
    logits: npt.NDArray[np.float32],
    drafts: npt.NDArray[np.int32],
    row_starts: npt.NDArray[np.int64],
    *,
    temperature: npt.NDArray[np.float64],
    top_k: npt.NDArray[np.int64],
    top_p: npt.NDArray[np.float64],
    seed: npt.NDArray[np.uint64],
    position: npt.NDArray[np.uint64],
    accepted: npt.NDArray[np.int32],
    next_token: npt.NDArray[np.int32],
    num_threads: int,
) -> None: ...
def sample(
    logits: npt.NDArray[np.float32],
    *,
    temperature: npt.NDArray[np.float64],
    top_k: npt.NDArray[np.int64],
    top_p: npt.NDArray[np.float64],
    seed: npt.NDArray[np.uint64],
    position: npt.NDArray[np.uint64],
    token_ids: npt.NDArray[np.int32] | None,
    chosen: npt.NDArray[np.int32],
    num_threads: int,
) -> None: ...
def noise_bits(seed: int, position: int, token_ids: npt.NDArray[np.int32], words: npt.NDArray[np.uint32]) -> None: ...
