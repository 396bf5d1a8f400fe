"""Acceptance and sampling: the checked functions over whichever backend is in use."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekernels import _checks, _select


class Accepted(NamedTuple):
    """Verdict of a batch: accepted drafts int32 (batch,) and the token after them, int32 (batch,)."""

    accepted: npt.NDArray[np.int32]
    next_token: npt.NDArray[np.int32]


def accept(
    logits: npt.NDArray[np.float32],
    drafts: npt.NDArray[np.int32],
    row_starts: npt.NDArray[np.int64],
    *,
    temperature: Any,
    top_k: Any = 0,
    top_p: Any = 1.0,
    seed: Any = 0,
    position: Any = 0,
    out: Accepted | None = None,
    num_threads: int = 1,
) -> Accepted:
    """Accept drafts as long as they are what the target itself chooses, and give the token that follows.

    Row i of a sequence chooses y_i: the argmax of the logits at temperature 0, otherwise the argmax over
    the surviving ids of logits / temperature + gumbel(noise_bits(seed, position + i, ids)). Drafts are
    accepted while they equal y_i; the first y_i that differs, or the y of the last row, is the next token.
    Rows behind it are not read. The tokens follow the target's law whatever the drafts are.

    Args:
        logits: target logits float32 (rows, vocab), C-contiguous; NaN counts as -inf.
        drafts: int32 (rows - batch,); sequence b has drafts[row_starts[b] - b : row_starts[b + 1] - b - 1].
            An id outside the vocabulary is never accepted.
        row_starts: int64 (batch + 1,); sequence b owns the rows row_starts[b] : row_starts[b + 1], at least
            one, that is one more than it has drafts.
        temperature: scalar or (batch,); 0 is greedy.
        top_k: scalar or (batch,), integers; keep the top_k largest logits and their ties, 0 is off.
        top_p: scalar or (batch,); keep the smallest set of most likely ids with this mass, 1 is off.
        seed: scalar or (batch,), integers 0 .. 2**64 - 1.
        position: scalar or (batch,), integers; absolute position of the token which the first row decides.
        out: arrays to write and return instead of new ones.
        num_threads: upper bound of threads; sequences are shared out among them.

    Returns:
        Accepted counts and next tokens, int32 (batch,) each.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    Source: drafter-invariant speculative decoding, arXiv 2408.07978; docs/spec/kernels.md.

    >>> logits = np.log(np.array([[.1, .9], [.8, .2]], np.float32))
    >>> accept(logits, np.array([1], np.int32), np.array([0, 2]), temperature=0)
    Accepted(accepted=array([1], dtype=int32), next_token=array([0], dtype=int32))
    """
    logits = _checks.logits(logits)
    rows = logits.shape[0]
    row_starts = _checks.row_starts(row_starts, rows)
    batch = len(row_starts) - 1
    drafts = _checks.array("drafts", drafts, np.int32, 1)
    if len(drafts) != rows - batch:
        raise ValueError(f"drafts has {len(drafts)} ids; pass {rows - batch}, one less than rows per sequence")
    accepted, next_token = (None, None) if out is None else out
    verdict = Accepted(
        _checks.output("out.accepted", accepted, batch), _checks.output("out.next_token", next_token, batch)
    )
    _select.active.accept(
        logits,
        drafts,
        row_starts,
        temperature=_checks.temperature(temperature, batch),
        top_k=_checks.top_k(top_k, batch),
        top_p=_checks.top_p(top_p, batch),
        seed=_checks.seed(seed, batch),
        position=_checks.position(position, batch),
        accepted=verdict.accepted,
        next_token=verdict.next_token,
        num_threads=_checks.num_threads(num_threads),
    )
    return verdict


def sample(
    logits: npt.NDArray[np.float32],
    *,
    temperature: Any,
    top_k: Any = 0,
    top_p: Any = 1.0,
    seed: Any = 0,
    position: Any = 0,
    token_ids: npt.NDArray[np.int32] | None = None,
    out: npt.NDArray[np.int32] | None = None,
    num_threads: int = 1,
) -> npt.NDArray[np.int32]:
    """Choose one token for each row, as accept does: what a device drafts with, and a server without drafts.

    Args:
        logits: float32 (rows, vocab), C-contiguous; NaN counts as -inf.
        temperature: scalar or (rows,); 0 is greedy.
        top_k: scalar or (rows,), integers; 0 is off.
        top_p: scalar or (rows,); 1 is off.
        seed: scalar or (rows,), integers 0 .. 2**64 - 1.
        position: scalar or (rows,), integers; absolute position of the token which the row decides.
        token_ids: int32 (vocab,), the target's id of each column of a drafter with columns of its own. Noise
            is keyed by these ids, ties go to the lowest of them, and they are returned.
        out: int32 (rows,) to write and return instead of a new array.
        num_threads: upper bound of threads; rows are shared out among them.

    Returns:
        Chosen ids int32 (rows,).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    Source: Gumbel-max, Maddison et al., arXiv 1411.0030; docs/spec/kernels.md.

    >>> sample(np.zeros((1, 3), np.float32), temperature=0, token_ids=np.array([7, 5, 6], np.int32))
    array([5], dtype=int32)
    """
    logits = _checks.logits(logits)
    rows = logits.shape[0]
    if token_ids is not None:
        token_ids = _checks.token_ids(token_ids, logits.shape[1])
    chosen = _checks.output("out", out, rows)
    _select.active.sample(
        logits,
        temperature=_checks.temperature(temperature, rows),
        top_k=_checks.top_k(top_k, rows),
        top_p=_checks.top_p(top_p, rows),
        seed=_checks.seed(seed, rows),
        position=_checks.position(position, rows),
        token_ids=token_ids,
        chosen=chosen,
        num_threads=_checks.num_threads(num_threads),
    )
    return chosen
