"""The specification in numpy: what the logits become, and which survive (docs/spec/kernels*.md)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels._task import BFLOAT16, Task

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LOG2_E = 1.4426950408889634
MASS_BITS = 30
LOWEST_LOG2 = np.float32(-32)
EXP2_SERIES = np.array(
    [1.0, 0.69314718, 0.24022651, 0.055504109, 0.0096181291, 0.0013333558, 0.00015403530], np.float32
)


def as_float32(row: npt.NDArray[Any], dtype: int) -> Floats:
    """One row (vocab,) as float32; NaN as -inf."""
    bits16 = dtype == BFLOAT16
    values: Floats = (row.astype(np.uint32) << 16).view(np.float32) if bits16 else row.astype(np.float32)
    values[np.isnan(values)] = -np.inf
    return values


class Changes:
    """Bias and penalties of one sequence: what they touch, and what becomes of the logits."""

    def __init__(self, task: Task, b: int) -> None:
        vocab, rule = task.logits.shape[1], task.rules[b]
        self.repetition, self.frequency, self.presence = rule["repetition"], rule["frequency"], rule["presence"]
        self.bias = np.zeros(vocab, np.float32)
        self.count = np.zeros(vocab, np.float32)  # generated tokens
        self.seen = np.zeros(vocab, np.bool_)
        biased = False
        if task.bias is not None:
            here = slice(task.bias.starts[b], task.bias.starts[b + 1])
            np.add.at(self.bias, task.bias.ids[here], task.bias.values[here])
            biased = here.stop > here.start
        if task.history is not None:
            ids = task.history.ids[task.history.starts[b] : task.history.starts[b + 1]]
            self.seen[ids] = True
            np.add.at(self.count, ids[int(task.history.num_prompt[b]) :], np.float32(1))
        self.any = biased or self.repetition != 1 or self.frequency != 0 or self.presence != 0

    def see(self, token: int) -> None:
        """Count an accepted draft as generated, for the rows behind it."""
        self.seen[token] = True
        self.count[token] += 1

    def apply(self, logits: Floats) -> Floats:
        """The logits (vocab,) after bias, repetition, frequency and presence, each step rounded to float32."""
        if not self.any:
            return logits
        with np.errstate(all="ignore"):
            changed: Floats = logits + self.bias
            penalised = np.where(changed < 0, changed * self.repetition, changed / self.repetition)
            changed = np.where(self.seen, penalised, changed)
            changed = changed - self.frequency * self.count
            changed = changed - np.where(self.count > 0, self.presence, np.float32(0))
        changed[np.isnan(changed)] = -np.inf
        return changed


def masses(logits: Floats, top: np.float32, scale: np.float32) -> Ints:
    """Integer masses trunc(2**(30 + (logit - top) * scale)): sums and comparisons of them are exact."""
    with np.errstate(over="ignore"):  # to -inf, which has mass 0
        exponent = np.maximum((logits - top) * scale, LOWEST_LOG2)  # float32 from here to the end
    whole = np.rint(exponent)
    fraction = exponent - whole
    series = np.full_like(fraction, EXP2_SERIES[-1])
    for coefficient in EXP2_SERIES[-2::-1]:
        series = series * fraction + coefficient
    mass: Ints = np.ldexp(series, whole.astype(np.int32) + MASS_BITS).astype(np.int64)
    return mass


def filter_floor(logits: Floats, temperature: float, top_k: int, top_p: float, log_min_p: float) -> np.float32:
    """The floor of top-k, top-p and min-p on logits (vocab,), none of them NaN or +inf, one of them finite."""
    floor = np.float32(-np.inf)
    if 0 < top_k < len(logits):
        floor = np.partition(logits, -top_k)[-top_k]
    if top_p < 1.0:
        descending = np.sort(logits[logits >= floor])[::-1]
        mass = np.cumsum(masses(descending, descending[0], np.float32((1.0 / temperature) * LOG2_E)))
        floor = descending[np.argmax(mass >= top_p * float(mass[-1]))]
    with np.errstate(over="ignore"):
        least_likely = np.float32(np.float64(logits.max()) + temperature * log_min_p)
    return max(floor, least_likely)
