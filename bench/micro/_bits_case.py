"""What the benchmarks of low-bit codes work on."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 4096, 512  # 8 MiB of float32, with the codes within L3


@dataclass(frozen=True)
class Case:
    """Values (rows, columns) of a normal law, quantised over the range of each row to some width."""

    bits: int
    values: NDArray[np.float32] = field(init=False, repr=False)
    scale: NDArray[np.float32] = field(init=False, repr=False)
    offset: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
        steps = np.float32((1 << self.bits) - 1)
        for name, value in (("values", values), ("scale", np.ptp(values, axis=1) / steps), ("offset", values.min(1))):
            object.__setattr__(self, name, value)
