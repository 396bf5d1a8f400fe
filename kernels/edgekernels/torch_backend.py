"""`accept` and `sample` for torch tensors, on the device where they lie: a server on a GPU never copies its logits.

The answers are those of `edgekernels.accept`: noise words and masses are integers, equal to the bit. Only the
logarithm of the noise may differ in its last bit. All rows of a batch are decided at once. On CUDA the scores of the
coupled rule come from one Triton kernel where Triton is installed.
"""

import functools
import importlib.util
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import torch

from edgekernels import _checks
from edgekernels import _torch_ops as ops
from edgekernels._reference import REJECTION_DOMAIN, philox
from edgekernels._reference_rejection import BLOCK
from edgekernels._rules import kind_of
from edgekernels._sampling import Filters, rules
from edgekernels._task import REJECTION, RULE, Bias, History, SparseQ
from edgekernels._torch_changes import changed_logits

Tensor = Any  # torch.Tensor
CHUNK = 1 << 22  # scores made at once where a kernel does not make them one by one


class Accepted(NamedTuple):
    """Verdict of a batch, on the device of the logits: int32 (batch,) each."""

    accepted: Tensor
    next_token: Tensor


class _Rows(NamedTuple):
    """A batch, row by row."""

    logits: Tensor  # float32 without NaN, or as given if a kernel reads them
    rules: dict[str, Tensor]  # (rows,) each
    records: npt.NDArray[np.void]  # the same on the host, with the position of each row
    top: Tensor  # (rows,)


@torch.no_grad()
def accept(
    logits: Tensor,
    drafts: Tensor,
    row_starts: npt.NDArray[np.int64],
    *,
    temperature: Any,
    rule: str = "coupled",
    q: Tensor | SparseQ | None = None,
    seed: Any = 0,
    position: Any = 0,
    history: History | None = None,
    bias: Bias | None = None,
    **filters: Unpack[Filters],
) -> Accepted:
    """Accept drafts as `edgekernels.accept` does, for tensors.

    Args:
        logits: (rows, vocab) of float32, float16 or bfloat16, on any device.
        drafts: int32 or int64 (rows - batch,), on any device.
        row_starts: int64 (batch + 1,), numpy, on the host: they lay out the work.
        temperature: scalar or (batch,), on the host like all parameters.
        rule: "coupled", "rejection" or "greedy".
        q: float32 (rows - batch, vocab) on the device of the logits, or SparseQ of numpy arrays.
        seed: scalar or (batch,).
        position: scalar or (batch,).
        history: numpy arrays, as for `edgekernels.accept`.
        bias: numpy arrays, as for `edgekernels.accept`.
        **filters: see Filters.

    Returns:
        Accepted counts and next tokens, on the device of the logits.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.
    """
    count, vocab = _checked(logits)
    starts = _checks.row_starts(row_starts, count)
    batch = len(starts) - 1
    _check_ids("drafts", drafts, (count - batch,), "one less than rows each")
    if q is not None and not isinstance(q, torch.Tensor | SparseQ):
        raise TypeError(f"q is {type(q).__name__}; pass a tensor, torch.from_numpy(q), or edgekernels.SparseQ")
    kind, own = kind_of(rule, q is not None, False)
    if own is not None:
        raise ValueError("rule is a test of compile_test, which runs on the host; pass 'rejection'")
    temperature = 0.0 if rule == "greedy" else temperature
    records = rules(batch, temperature=temperature, seed=seed, position=position, filters=filters)
    drafts = drafts.to(device=logits.device, dtype=torch.int64)
    if batch == 0:
        empty = torch.empty(0, dtype=torch.int32, device=logits.device)
        return Accepted(empty, empty.clone())
    history, bias = _checks.history(history, batch, vocab), _checks.bias(bias, batch, vocab)
    rows = _lay_out(changed_logits(logits, records, starts, drafts, history, bias), records, starts)
    tokens = _chosen(rows, None) if kind != REJECTION else _likeliest(rows)
    of_draft = torch.from_numpy(np.setdiff1d(np.arange(count), starts[1:] - 1)).to(logits.device)
    passes = tokens[of_draft] == drafts
    first = torch.from_numpy(starts[:-1].copy()).to(logits.device)
    if kind == REJECTION:
        return _rejected(rows, drafts, q, of_draft, passes, starts, tokens)
    accepted = _count(passes, starts)
    return Accepted(accepted.to(torch.int32), tokens[first + accepted].to(torch.int32))


@torch.no_grad()
def sample(
    logits: Tensor,
    *,
    temperature: Any,
    seed: Any = 0,
    position: Any = 0,
    token_ids: Tensor | None = None,
    history: History | None = None,
    bias: Bias | None = None,
    **filters: Unpack[Filters],
) -> Tensor:
    """Choose one token for each row as `edgekernels.sample` does; int32 (rows,) on the device of the logits.

    Args:
        logits: (rows, vocab) of float32, float16 or bfloat16, on any device.
        temperature: scalar or (rows,), on the host like all parameters.
        seed: scalar or (rows,).
        position: scalar or (rows,).
        token_ids: int32 or int64 (vocab,), rising, the target's id of each column, on the device of the logits.
        history: numpy arrays; ids are columns.
        bias: numpy arrays; ids are columns.
        **filters: see Filters.
    """
    count, vocab = _checked(logits)
    records = rules(count, temperature=temperature, seed=seed, position=position, filters=filters)
    if token_ids is not None:
        _check_columns(token_ids, vocab, logits.device)
    if count == 0:
        return torch.empty(0, dtype=torch.int32, device=logits.device)
    history, bias = _checks.history(history, count, vocab), _checks.bias(bias, count, vocab)
    starts = np.arange(count + 1)
    none = torch.empty(0, dtype=torch.int64, device=logits.device)
    rows = _lay_out(changed_logits(logits, records, starts, none, history, bias), records, starts)
    chosen = _chosen(rows, token_ids)
    return (chosen if token_ids is None else token_ids.to(torch.int64)[chosen]).to(torch.int32)


def noise_words(seeds: Any, positions: Any, ids: Tensor) -> Tensor:
    """Noise words (rows, n), as int64, of ids (n,) on their device, for seeds and positions (rows,) on the host."""
    seeds = torch.from_numpy(np.asarray(seeds, np.uint64).view(np.int64)).to(ids.device)
    return ops.noise_words(seeds, torch.as_tensor(np.asarray(positions, np.int64)).to(ids.device), ids.to(torch.int64))


def _checked(logits: Tensor) -> tuple[int, int]:
    if not isinstance(logits, torch.Tensor) or logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        found = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"logits is {found}; pass a tensor of float32, float16 or bfloat16")
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= _checks.MAX_VOCAB:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; pass (rows, 1 .. {_checks.MAX_VOCAB})")
    return logits.shape[0], logits.shape[1]


def _check_ids(name: str, value: Any, shape: tuple[int], remedy: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; pass a tensor, torch.from_numpy({name})")
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} is {value.dtype}; pass {name}.to(torch.int32)")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; pass {shape}, {remedy}")


def _check_columns(token_ids: Any, vocab: int, device: Any) -> None:
    _check_ids("token_ids", token_ids, (vocab,), "one id for each column")
    if token_ids.device != device:
        raise ValueError(f"token_ids is on {token_ids.device}; pass token_ids.to({str(device)!r}), as the logits")
    if not bool((token_ids[1:] > token_ids[:-1]).all()):
        raise ValueError("token_ids does not rise; sort the columns, or use edgekernels.sample")
    first, last = torch.stack((token_ids[0], token_ids[-1])).tolist()
    if first < 0 or last > _checks.MAX_ID:
        raise ValueError(f"token_ids spans {first} .. {last}; pass ids 0 .. {_checks.MAX_ID}")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _lay_out(logits: Tensor, records: npt.NDArray[np.void], starts: npt.NDArray[np.int64]) -> _Rows:
    """One rule for each row, on the host and on the device."""
    counts = np.diff(starts)
    by_row = np.repeat(records, counts)
    by_row["position"] += (np.arange(len(by_row)) - np.repeat(starts[:-1], counts)).astype(np.uint64)
    device = {
        name: torch.from_numpy(np.ascontiguousarray(by_row[name].view(np.int64) if kind == np.uint64 else by_row[name]))
        for name, kind in ((name, RULE[name]) for name in RULE.names or () if RULE[name] != np.float32)
    }
    on_device = {name: values.to(logits.device) for name, values in device.items()}
    return _Rows(logits, on_device, by_row, logits.amax(dim=1).to(torch.float32))


def _likeliest(rows: _Rows) -> Tensor:
    return ops.lowest_at(rows.logits.to(torch.float32), rows.top)


def _floors(rows: _Rows, which: Tensor, on_host: npt.NDArray[np.bool_]) -> Tensor:
    records, vocab = rows.records[on_host], rows.logits.shape[1]
    top_k = records["top_k"][(records["top_k"] > 0) & (records["top_k"] < vocab)]
    active = {"top_k": int(top_k.max()) if len(top_k) else 0, "top_p": bool((records["top_p"] < 1).any())}
    own = {name: values[which] for name, values in rows.rules.items()}
    return ops.filter_floor(rows.logits[which].to(torch.float32), own, active)


def _chosen(rows: _Rows, token_ids: Tensor | None) -> Tensor:
    """Columns (rows,) chosen by the coupled rule."""
    random = rows.records["temperature"] > 0
    tokens = _likeliest(rows) if not random.all() else torch.zeros_like(rows.top, dtype=torch.int64)
    which = torch.from_numpy(np.flatnonzero(random)).to(rows.logits.device)
    if not len(which):
        return tokens
    floors = _floors(rows, which, random)
    ids = torch.arange(rows.logits.shape[1], device=which.device) if token_ids is None else token_ids.to(torch.int64)
    own = [rows.rules[name][which] for name in ("temperature", "seed", "position")]
    if which.is_cuda and _has_triton():
        from edgekernels._triton_kernels import best_scores

        best = best_scores(rows.logits, which, floors, own, None if token_ids is None else ids)
    else:
        parts: list[Any] = []
        size = max(1, CHUNK // rows.logits.shape[1])
        for i in range(0, len(which), size):
            part = slice(i, i + size)
            logits = rows.logits[which[part]].to(torch.float32)
            parts.append(ops.best_scores(logits, floors[part], [values[part] for values in own], ids))
        best = torch.cat(parts)
    certain = torch.isinf(rows.top[which])
    tokens[which] = torch.where(certain, ops.lowest_at(rows.logits[which].to(torch.float32), rows.top[which]), best)
    return tokens


def _count(passes: Tensor, starts: npt.NDArray[np.int64]) -> Tensor:
    """How many drafts pass (batch,) before the first that does not."""
    lengths = np.diff(starts) - 1
    width = int(lengths.max())
    places = np.concatenate([b * width + np.arange(n) for b, n in enumerate(lengths)]).astype(np.int64)
    table = torch.zeros(len(lengths) * width, dtype=torch.int64, device=passes.device)
    table[torch.from_numpy(places).to(passes.device)] = passes.to(torch.int64)
    return table.view(len(lengths), width).cumprod(dim=1).sum(dim=1)


def _uniforms(records: npt.NDArray[np.void], stream: int, device: Any) -> Tensor:
    counter = np.zeros((len(records), 4), np.uint64)
    counter[:, 0], counter[:, 3] = stream, REJECTION_DOMAIN
    counter[:, 1], counter[:, 2] = records["position"] & ops.LOW, records["position"] >> np.uint64(32)
    keys: Any = (records["seed"] & np.uint64(ops.LOW), records["seed"] >> np.uint64(32))
    words = philox(counter, keys).astype(np.uint64)
    numbers = ((words[:, 0] << np.uint64(32) | words[:, 1]) >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(numbers).to(device)


def _dense(q: Any, drafts: Tensor, wanted: Tensor, vocab: int) -> Tensor:
    """q (n, vocab) of the wanted drafts (n,); 0 where one is -1."""
    if not len(drafts):
        return torch.zeros(len(wanted), vocab, dtype=torch.float32, device=wanted.device)
    if isinstance(q, torch.Tensor):
        return torch.where((wanted >= 0)[:, None], q[wanted.clamp_min(0)], 0.0)
    laid_out = torch.zeros(len(wanted), vocab, dtype=torch.float32, device=wanted.device)
    if q is None:
        token = drafts[wanted.clamp_min(0)]
        known = torch.nonzero((wanted >= 0) & (token >= 0) & (token < vocab))[:, 0]
        laid_out[known, token[known]] = 1.0
        return laid_out
    for row, draft in enumerate(wanted.tolist()):
        if draft >= 0:
            here = slice(int(q.starts[draft]), int(q.starts[draft + 1]))
            ids = torch.from_numpy(q.ids[here].astype(np.int64)).to(wanted.device)
            laid_out[row, ids] = torch.from_numpy(q.probabilities[here]).to(wanted.device)
    return laid_out


def _q_of_drafts(q: Any, drafts: Tensor, vocab: int) -> Tensor:
    """The probability (drafts,) of each draft under its own law."""
    known = (drafts >= 0) & (drafts < vocab)
    token = torch.where(known, drafts, 0)
    if q is None:
        return known.to(torch.float32)
    if isinstance(q, torch.Tensor):
        return torch.where(known, q.gather(1, token[:, None])[:, 0], 0.0)
    found = np.zeros(len(drafts), np.float32)
    for draft, one in enumerate(drafts.tolist()):
        here = slice(int(q.starts[draft]), int(q.starts[draft + 1]))
        found[draft] = q.probabilities[here][q.ids[here] == one].sum()
    return torch.from_numpy(found).to(drafts.device)


def _rejected(
    rows: _Rows,
    drafts: Tensor,
    q: Tensor | SparseQ | None,
    of_draft: Tensor,
    greedy: Tensor,
    starts: npt.NDArray[np.int64],
    tokens: Tensor,
) -> Accepted:
    vocab, device = rows.logits.shape[1], rows.logits.device
    if isinstance(q, torch.Tensor):
        if q.shape != (len(drafts), vocab) or q.dtype != torch.float32 or q.device != device:
            raise ValueError(
                f"q is {q.dtype} {tuple(q.shape)} on {q.device}; pass float32 {(len(drafts), vocab)} on {device}"
            )
    else:
        q = _checks.law_of_drafts(q, len(drafts), vocab)
    random = (rows.rules["temperature"] > 0) & ~torch.isinf(rows.top)
    temperature = torch.where(random, rows.rules["temperature"], 1.0)
    everything = torch.arange(len(rows.top), device=device)
    own = rows._replace(rules=rows.rules | {"temperature": temperature})
    floors = _floors(own, everything, np.ones(len(rows.top), np.bool_))
    masses, weights, sums = ops.weigh(rows.logits.to(torch.float32), temperature, floors)
    known = (drafts >= 0) & (drafts < vocab)
    token = torch.where(known, drafts, 0)
    weight = weights[of_draft].gather(1, (token // BLOCK)[:, None])[:, 0]
    mass = masses.view(len(masses), -1)[of_draft].gather(1, token[:, None])[:, 0]
    p = mass.to(torch.float64) * weight / sums.sum(dim=1)[of_draft].to(torch.float64)
    chance = _q_of_drafts(q, drafts, vocab)
    u = _uniforms(rows.records, 0, device)[of_draft]
    drawn = known & (chance > 0) & (u * chance.to(torch.float64) < p)
    accepted = _count(torch.where(random[of_draft], drawn, greedy), starts)
    first = torch.from_numpy(starts[:-1].copy()).to(device)
    row = first + accepted
    last = torch.from_numpy(starts[1:] - 1).to(device)
    draft = torch.where(row < last, row - torch.arange(len(row), device=device), -1)
    left = ops.residual(masses[row], weights[row], sums[row], _dense(q, drafts, draft, vocab))
    emitted = ops.emit(left, weights[row], _uniforms(rows.records, 1, device)[row])
    return Accepted(accepted.to(torch.int32), torch.where(random[row], emitted, tokens[row]).to(torch.int32))
