"""Bias and penalties of a batch as a few scattered updates of its logits."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgekernels._task import Bias, History

Tensor = Any  # torch.Tensor


def changed_logits(
    logits: Tensor,
    records: npt.NDArray[np.void],
    starts: npt.NDArray[np.int64],
    drafts: Tensor,
    history: History | None,
    bias: Bias | None,
) -> Tensor:
    """Logits with -inf for NaN, after bias and penalties: float32, or as they are if nothing has to change.

    A row counts the drafts before it as generated; it matters only if they are accepted.
    """
    penalised = (records["repetition"] != 1) | (records["frequency"] != 0) | (records["presence"] != 0)
    if bias is None and not penalised.any():
        nan = torch.isnan(logits)
        return torch.where(nan, -torch.inf, logits) if bool(nan.any()) else logits
    places, numbers = _updates(records, penalised, starts, drafts.tolist(), history, bias, logits.shape[1])
    rows, ids = torch.from_numpy(places).to(logits.device)
    add, seen, count, repetition, frequency, presence = torch.from_numpy(numbers).to(logits.device)
    changed = torch.where(torch.isnan(logits), -torch.inf, logits.to(torch.float32))
    value = changed[rows, ids] + add
    value = torch.where(seen > 0, torch.where(value < 0, value * repetition, value / repetition), value)
    value = value - frequency * count
    value = value - torch.where(count > 0, presence, 0.0)
    changed[rows, ids] = torch.where(torch.isnan(value), -torch.inf, value)
    return changed


def _updates(
    records: npt.NDArray[np.void],
    penalised: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
    drafts: list[int],
    history: History | None,
    bias: Bias | None,
    vocab: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(row, id) of every logit that changes, and its bias, whether seen, count and three penalties."""
    places: list[tuple[int, int]] = []
    numbers: list[tuple[Any, ...]] = []
    for b, record in enumerate(records):
        added: dict[int, np.float32] = {}
        if bias is not None:
            here = slice(int(bias.starts[b]), int(bias.starts[b + 1]))
            for i, value in zip(bias.ids[here].tolist(), bias.values[here], strict=True):
                added[i] = added.get(i, np.float32(0)) + value
        seen, generated = set[int](), Counter[int]()
        if history is not None and penalised[b]:
            ids = history.ids[history.starts[b] : history.starts[b + 1]].tolist()
            seen, generated = set(ids), Counter(ids[int(history.num_prompt[b]) :])
        penalties = (record["repetition"], record["frequency"], record["presence"])
        for row in range(int(starts[b]), int(starts[b + 1])):
            if row > starts[b] and penalised[b] and 0 <= drafts[row - 1 - b] < vocab:
                seen.add(drafts[row - 1 - b])
                generated[drafts[row - 1 - b]] += 1
            for i in seen | added.keys():
                places.append((row, i))
                numbers.append((added.get(i, 0.0), i in seen, generated[i], *penalties))
    shape = np.array(places, np.int64).reshape(-1, 2).T.copy()
    return shape, np.array(numbers, np.float32).reshape(-1, 6).T.copy()
