"""Apply the acceptance rule where the logits lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sled import acceptance
from sled.acceptance import Decision, RoundRows
from sled.types import Logprob


def decide(logits: Tensor, rounds: Sequence[RoundRows]) -> list[Decision]:
    """Decide rounds on the device of their logits.

    Args:
        logits: (rows, vocab), float32, float16 or bfloat16, contiguous; rows under a mask are changed.
        rounds: in the order of the rows, len(draft) + 1 rows each.
    """
    if not rounds:
        return []
    if logits.device.type == "cpu":
        threads = torch.get_num_threads()
        if logits.dtype == torch.bfloat16:
            return acceptance.decide(logits.view(torch.uint16).numpy(), rounds, num_threads=threads)
        finite = torch.isfinite(logits.amax(dim=1)).numpy()
        return acceptance.decide(logits.numpy(), rounds, finite=finite, num_threads=threads)
    return _decide_on_device(logits, rounds)


def _decide_on_device(logits: Tensor, rounds: Sequence[RoundRows]) -> list[Decision]:
    from edgekernels import torch_backend

    device, starts = logits.device, acceptance.row_starts(rounds)
    finite = torch.isfinite(logits.amax(dim=1))
    raw = logits
    if any(r.allowed is not None for r in rounds):
        if any(r.num_logprobs >= 0 for r in rounds):
            raw = logits.clone()
        _forbid(logits, rounds, starts)
    found = torch.zeros(2, len(rounds), dtype=torch.int32, device=device)
    for group in acceptance.groups(rounds, starts, logits.shape[1]):
        rows = logits if group.rows is None else logits[torch.from_numpy(group.rows).to(device)]
        drafts = torch.from_numpy(group.drafts).to(device)
        found[:, torch.tensor(group.members, device=device)] = torch.stack(
            torch_backend.accept(rows, drafts, group.row_starts, **group.arguments)
        )
    good = torch.zeros(len(rounds), dtype=torch.int32, device=device)
    of_row = torch.from_numpy(np.repeat(np.arange(len(rounds)), np.diff(starts))).to(device)
    good.index_add_(0, of_row, (~finite).to(torch.int32))
    accepted, tokens, bad = torch.cat([found, good[None]]).tolist()
    return [
        Decision(a, t, not b, _logprobs(raw, r, start, a, t) if r.num_logprobs >= 0 and not b else ())
        for r, start, a, t, b in zip(rounds, starts.tolist(), accepted, tokens, bad, strict=False)
    ]


def _forbid(logits: Tensor, rounds: Sequence[RoundRows], starts: NDArray[np.int64]) -> None:
    """Set logits of tokens that a mask does not allow to -inf."""
    vocab, device = logits.shape[1], logits.device
    ids = torch.arange(vocab, device=device)
    for r, start in zip(rounds, starts.tolist(), strict=False):
        if r.allowed is not None:
            words = torch.from_numpy(acceptance.mask_words(r.allowed, vocab).view(np.int32)).to(device)
            allowed = (words[:, ids // 32] >> (ids % 32).to(torch.int32)) & 1
            logits[start : start + len(words)].masked_fill_(allowed == 0, -torch.inf)


def _logprobs(raw: Tensor, r: RoundRows, start: int, accepted: int, next_token: int) -> tuple[Logprob, ...]:
    chosen = [*r.draft[:accepted], next_token]
    rows = raw[start : start + len(chosen)].float().log_softmax(dim=1)
    values = rows[torch.arange(len(chosen)), torch.tensor(chosen, device=rows.device)].tolist()
    top = rows.topk(min(r.num_logprobs, rows.shape[1]), dim=1)
    pairs = zip(values, top.indices.tolist(), top.values.tolist(), strict=True)
    return tuple(Logprob(value, list(zip(ids, own, strict=True))) for value, ids, own in pairs)
