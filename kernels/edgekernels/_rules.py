"""Acceptance and sampling: the checked functions over whichever backend is in use."""

from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt

from edgekernels import _checks, _select
from edgekernels._hooks import AcceptanceTest, Noise
from edgekernels._sampling import Filters, rules
from edgekernels._task import COUPLED, REJECTION, Bias, History, SparseQ, Task


class Accepted(NamedTuple):
    """Verdict of a batch: accepted drafts int32 (batch,) and the token after them, int32 (batch,)."""

    accepted: npt.NDArray[np.int32]
    next_token: npt.NDArray[np.int32]


def accept(
    logits: npt.NDArray[Any],
    drafts: npt.NDArray[np.int32],
    row_starts: npt.NDArray[np.int64],
    *,
    temperature: Any,
    rule: str | AcceptanceTest = "coupled",
    q: npt.NDArray[np.float32] | SparseQ | None = None,
    seed: Any = 0,
    position: Any = 0,
    history: History | None = None,
    bias: Bias | None = None,
    noise: Noise | None = None,
    out: Accepted | None = None,
    num_threads: int = 1,
    **filters: Unpack[Filters],
) -> Accepted:
    """Accept drafts by one of three rules, and give the token that follows them.

    Row i of a sequence stands for the token at `position + i`; it is asked whether draft i is accepted. The
    first draft that is not is replaced by a token of that row; if all are, the last row gives one more. Rows
    behind a rejection are not read.

    - "coupled": the row chooses y_i, the argmax over the surviving ids of logits / temperature +
      gumbel(noise_bits(seed, position + i, ids)); the draft is accepted if it equals y_i, and y_i is the token.
      Tokens follow the target's law whatever the drafts are.
    - "rejection": the draft is accepted if u * q < p, and the token is sampled from max(p - q, 0). Tokens follow
      the target's law if each draft was sampled from its q.
    - "greedy": the row chooses its largest logit, as both others do at temperature 0.

    Logits are changed in this order, as in transformers: bias, repetition, frequency and presence penalty,
    temperature, top-k, top-p, min-p. Penalties of row i count the accepted drafts before it as generated tokens.

    Args:
        logits: target logits (rows, vocab), C-contiguous: float32, float16, or the bits of bfloat16 as uint16. NaN
            counts as -inf.
        drafts: int32 (rows - batch,); sequence b has drafts[row_starts[b] - b : row_starts[b + 1] - b - 1].
            An id outside the vocabulary is never accepted.
        row_starts: int64 (batch + 1,); sequence b owns the rows row_starts[b] : row_starts[b + 1], at least
            one, that is one more than it has drafts.
        temperature: scalar or (batch,); 0 is greedy.
        rule: "coupled", "rejection", "greedy", or a test of `compile_test` in place of u * q < p.
        q: for "rejection": float32 (rows - batch, vocab), or SparseQ; None is a drafter that is certain.
        seed: scalar or (batch,), integers 0 .. 2**64 - 1.
        position: scalar or (batch,), integers; absolute position of the token which the first row decides.
        history: tokens which penalties count.
        bias: what is added to some logits.
        noise: one of `compile_noise` in place of noise_bits, for "coupled".
        out: arrays to write and return instead of new ones; they share memory with nothing else here.
        num_threads: upper bound of threads; sequences are shared out among them, or the vocabulary of a single one.
        **filters: top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, each a scalar or
            (batch,): see Filters.

    Returns:
        Accepted counts and next tokens, int32 (batch,) each.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.
        Exception: what the caller's own noise or test raised; RuntimeError if Numba compiled it.

    Source: coupled: arXiv 2408.07978; rejection: Leviathan et al., arXiv 2211.17192; docs/spec/kernels-acceptance.md.

    >>> logits = np.log(np.array([[.1, .9], [.8, .2]], np.float32))
    >>> accept(logits, np.array([1], np.int32), np.array([0, 2]), temperature=0)
    Accepted(accepted=array([1], dtype=int32), next_token=array([0], dtype=int32))
    """
    logits, dtype = _checks.logits(logits)
    rows, vocab = logits.shape
    row_starts = _checks.row_starts(row_starts, rows)
    batch = len(row_starts) - 1
    drafts = _checks.array("drafts", drafts, np.int32, 1)
    if len(drafts) != rows - batch:
        raise ValueError(f"drafts has {len(drafts)} ids; pass {rows - batch}, one less than rows per sequence")
    kind, accepts = kind_of(rule, q is not None, noise is not None)
    history, bias = _checks.history(history, batch, vocab), _checks.bias(bias, batch, vocab)
    q = _checks.law_of_drafts(q, rows - batch, vocab)
    accepted, next_token = _outputs(out, batch, (logits, drafts, row_starts, history, bias, q))
    task = Task(
        logits,
        dtype,
        kind,
        rules(
            batch, temperature=0.0 if rule == "greedy" else temperature, seed=seed, position=position, filters=filters
        ),
        row_starts,
        drafts,
        None,
        history,
        bias,
        q,
        _checks.noise(noise),
        accepts,
        accepted,
        next_token,
        _checks.num_threads(num_threads),
    )
    _decide(task)
    return Accepted(task.accepted, task.next_token)


def _outputs(
    out: object, batch: int, sources: tuple[object, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Two arrays to write, apart from each other and from the sources."""
    if out is not None and not isinstance(out, tuple | list):
        raise TypeError(f"out is {out!r}; pass edgekernels.Accepted(accepted, next_token)")
    if out is not None and len(out) != 2:
        raise ValueError(f"out has {len(out)} entries; pass edgekernels.Accepted(accepted, next_token)")
    own, token = (None, None) if out is None else out
    accepted = _checks.output("out.accepted", own, batch, sources)
    return accepted, _checks.output("out.next_token", token, batch, sources, accepted)


def _decide(task: Task) -> None:
    """Let the backend decide, and raise what a hook raised meanwhile: C cannot."""
    hook = task.noise if task.noise is not None else task.accepts
    before = None if hook is None else hook.failures.newest
    _select.active.decide(task)
    if hook is not None and hook.failures.newest is not None and hook.failures.newest is not before:
        raise hook.failures.newest[0]


def kind_of(rule: object, has_q: bool, has_noise: bool) -> tuple[int, AcceptanceTest | None]:
    """Which of the two ways to decide a rule asks for, and the caller's own test if it is one."""
    own = isinstance(rule, AcceptanceTest)
    if not own and not isinstance(rule, str):
        raise TypeError(f"rule is {rule!r}; pass 'coupled', 'rejection', 'greedy', or a test of compile_test")
    if not own and rule not in ("coupled", "rejection", "greedy"):
        raise ValueError(f"rule is {rule!r}; pass 'coupled', 'rejection', 'greedy', or a test of compile_test")
    kind = REJECTION if own or rule == "rejection" else COUPLED
    if has_q and kind == COUPLED:
        raise ValueError(f"q is given with rule={rule!r}; pass rule='rejection', the rule which uses it")
    if has_noise and kind == REJECTION:
        raise ValueError("noise is given with rejection; pass rule='coupled', the rule which uses it")
    return kind, rule if isinstance(rule, AcceptanceTest) else None


def sample(
    logits: npt.NDArray[Any],
    *,
    temperature: Any,
    seed: Any = 0,
    position: Any = 0,
    token_ids: npt.NDArray[np.int32] | None = None,
    history: History | None = None,
    bias: Bias | None = None,
    noise: Noise | None = None,
    out: npt.NDArray[np.int32] | None = None,
    num_threads: int = 1,
    **filters: Unpack[Filters],
) -> npt.NDArray[np.int32]:
    """Choose one token for each row by the coupled rule: what a device drafts with, and a server without drafts.

    Args:
        logits: (rows, vocab), C-contiguous: float32, float16, or the bits of bfloat16 as uint16. NaN counts as -inf.
        temperature: scalar or (rows,); 0 is greedy.
        seed: scalar or (rows,), integers 0 .. 2**64 - 1.
        position: scalar or (rows,), integers; absolute position of the token which the row decides.
        token_ids: int32 (vocab,), the target's id of each column of a drafter with columns of its own. Noise
            is keyed by these ids, ties go to the lowest of them, and they are returned.
        history: tokens of each row's sequence, which penalties count; ids are columns.
        bias: what is added to some logits of each row; ids are columns.
        noise: one of `compile_noise` in place of noise_bits.
        out: int32 (rows,) to write and return instead of a new array.
        num_threads: upper bound of threads; rows are shared out among them, or the vocabulary of a single one.
        **filters: top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, each a scalar or
            (rows,): see Filters.

    Returns:
        Chosen ids int32 (rows,).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.
        Exception: what the caller's own noise raised; RuntimeError if Numba compiled it.

    Source: Gumbel-max, Maddison et al., arXiv 1411.0030; docs/spec/kernels.md.

    >>> sample(np.zeros((1, 3), np.float32), temperature=0, token_ids=np.array([7, 5, 6], np.int32))
    array([5], dtype=int32)
    """
    logits, dtype = _checks.logits(logits)
    rows, vocab = logits.shape
    columns = None if token_ids is None else _checks.token_ids(token_ids, vocab)
    history, bias = _checks.history(history, rows, vocab), _checks.bias(bias, rows, vocab)
    task = Task(
        logits,
        dtype,
        COUPLED,
        rules(rows, temperature=temperature, seed=seed, position=position, filters=filters),
        None,
        None,
        columns,
        history,
        bias,
        None,
        _checks.noise(noise),
        None,
        np.empty(rows, np.int32),
        _checks.output("out", out, rows, logits, columns, history, bias),
        _checks.num_threads(num_threads),
    )
    _decide(task)
    return task.next_token
