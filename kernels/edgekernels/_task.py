"""What a backend is asked to decide: checked arrays, one rule for each sequence."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekernels._hooks import AcceptanceTest, Noise

FLOAT32, FLOAT16, BFLOAT16 = range(3)  # as in csrc/accept.h
COUPLED, REJECTION = range(2)

# One per sequence: the fields of ek_rule in csrc/accept.h, in its order.
RULE = np.dtype(
    [
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("log_min_p", np.float64),
        ("top_k", np.int64),
        ("seed", np.uint64),
        ("position", np.uint64),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("spare", np.float32),
    ]
)

Ids: TypeAlias = npt.NDArray[np.int32]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


class History(NamedTuple):
    """The tokens of every sequence so far, which penalties count.

    Args:
        ids: int32 (n,), sequence after sequence; ids are columns of the logits.
        starts: int64 (batch + 1,); sequence b has ids[starts[b] : starts[b + 1]].
        num_prompt: scalar or (batch,), integers; so many at the beginning of each are its prompt, which only the
            repetition penalty counts.
    """

    ids: Ids
    starts: Ints
    num_prompt: Any = 0


class Bias(NamedTuple):
    """What is added to some logits of every sequence.

    Args:
        ids: int32 (n,), columns of the logits, in any order; several values of one id add up.
        values: float32 (n,); -inf forbids an id.
        starts: int64 (batch + 1,); sequence b has ids[starts[b] : starts[b + 1]].
    """

    ids: Ids
    values: Floats
    starts: Ints


class SparseQ(NamedTuple):
    """The law each draft was sampled from, by its ids of positive probability.

    Args:
        ids: int32 (n,), rising for each draft.
        probabilities: float32 (n,).
        starts: int64 (drafts + 1,); draft d has ids[starts[d] : starts[d + 1]].
    """

    ids: Ids
    probabilities: Floats
    starts: Ints


class Task(NamedTuple):
    """A batch to decide; None where something is not wanted."""

    logits: npt.NDArray[Any]  # (rows, vocab): float32, float16, or uint16 with the bits of bfloat16
    dtype: int
    kind: int
    rules: npt.NDArray[np.void]  # (batch,) of RULE
    row_starts: Ints | None  # one row each
    drafts: Ids | None
    token_ids: Ids | None
    history: History | None  # num_prompt int64 (batch,)
    bias: Bias | None
    q: Floats | SparseQ | None
    noise: Noise | None
    accepts: AcceptanceTest | None
    accepted: Ids  # written
    next_token: Ids  # written
    num_threads: int
