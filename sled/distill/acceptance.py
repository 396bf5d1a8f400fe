"""What a student's drafts would be worth: acceptance on texts that the target wrote and the student never saw.

At each position of an answer the student drafts one token behind the text as it is, which is what a draft deep in a
round sees, too, if it comes that far. Whether it is accepted given the token y that the target wrote has a closed form:

- greedy: the student's likeliest token is y;
- coupled sampling (both take argmax(log-probability + the same Gumbel noise)): 1 / sum_i max(p_i, q_i p_y / q_y);
- rejection sampling: min(1, q_y / p_y), on average sum_i min(p_i, q_i).

Source: coupled acceptance from the competing exponentials of drafter-invariant speculation (arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sled.distill.corpus import Rows
from sled.distill.learner import Learner
from sled.distill.sampler import HELD_OUT_TEMPERATURES

Tensor = Any  # torch.Tensor
WINDOWS = (1, 2, 4, 8)
_MOST_TEXTS = {"cpu": 4}  # of each temperature; elsewhere _TEXTS
_TEXTS = 64


@dataclass(slots=True)
class Acceptance:
    """At one temperature, counted over texts.

    Attributes:
        positions: that the target wrote.
        accepted: expected number of accepted drafts at them, by the rule devices use by default.
        by_rejection: likewise by the rejection rule; the same where greedy.
        rounds: by window, rounds of that many drafts; drafts: by window, those accepted.
        reached: in rounds of the longest window, how often each place was reached; kept: how often accepted.
    """

    positions: int = 0
    accepted: float = 0.0
    by_rejection: float = 0.0
    rounds: dict[int, int] = field(default_factory=lambda: dict.fromkeys(WINDOWS, 0))
    drafts: dict[int, int] = field(default_factory=lambda: dict.fromkeys(WINDOWS, 0))
    reached: list[int] = field(default_factory=lambda: [0] * WINDOWS[-1])
    kept: list[int] = field(default_factory=lambda: [0] * WINDOWS[-1])

    def add(self, chance: NDArray[np.float64], by_rejection: float, hits: Sequence[bool]) -> None:
        """Count one text: chances of acceptance, their sum by the rejection rule, and what came of them."""
        self.positions += len(chance)
        self.accepted += float(chance.sum())
        self.by_rejection += by_rejection
        for window in WINDOWS:
            for length, limit in rounds_of(hits, window):
                self.rounds[window] += 1
                self.drafts[window] += length
                if window == WINDOWS[-1]:
                    for place in range(min(length + 1, limit)):
                        self.reached[place] += 1
                        self.kept[place] += place < length

    def figures(self) -> dict[str, Any]:
        """As reported: rates, mean accepted drafts by window, and the rate at each place of a round."""
        return {
            "acceptance": round(self.accepted / max(1, self.positions), 4),
            "rejection_rule": round(self.by_rejection / max(1, self.positions), 4),
            "positions": self.positions,
            "mean_accepted": {str(k): round(self.drafts[k] / max(1, self.rounds[k]), 3) for k in WINDOWS},
            "by_place": [round(k / r, 3) if r else None for k, r in zip(self.kept, self.reached, strict=True)],
        }


def rounds_of(hits: Sequence[bool], window: int) -> list[tuple[int, int]]:
    """Accepted drafts of each round, and how many it could have, if an answer is decoded by rounds of `window` drafts.

    >>> rounds_of([True, False, True, True], 2)
    [(1, 2), (2, 2)]
    """
    found, at = [], 0
    while at < len(hits):
        limit = min(window, len(hits) - at)
        length = 0
        while length < limit and hits[at + length]:
            length += 1
        found.append((length, limit))
        at += length + 1  # the target's own token follows
    return found


def coupled_chance(p: Tensor, q: Tensor, has: Tensor, p_y: Tensor, q_y: Tensor) -> Tensor:
    """Chance that argmax(log q + g) is y, given that argmax(log p + g) is.

    Args:
        p: the target's probabilities of the student's ids (n, vocab).
        q: the student's (n, vocab).
        has: bool (n,), whether y is among these ids.
        p_y: the target's probability of y (n,); q_y: the student's.
    """
    others = (1 - p.sum(dim=-1)).clamp_min(0.0)
    ratio = (p_y / q_y.clamp_min(1e-30)).clamp_max(1e30)
    total = others + torch.maximum(p, q * ratio[:, None]).sum(dim=-1)
    return torch.where(has, 1 / total.clamp_min(1.0), 0.0)


@torch.no_grad()
def measure(learners: Sequence[Learner], rows: Rows, at_once: int) -> dict[str, dict[str, Any]]:
    """Figures by student and temperature ("greedy", "0.7", "1.0") over held-out texts.

    Args:
        learners: the students.
        rows: held out.
        at_once: texts of a forward, the last one filled up: always as many as a step of training has, for which
            everything is compiled already.
    """
    chance = np.random.default_rng(0)
    device = learners[0].teacher.device
    most = _MOST_TEXTS.get(device.type, _TEXTS)
    found: dict[str, dict[str, Any]] = {learner.name: {} for learner in learners}
    for temperature in HELD_OUT_TEMPERATURES:
        at = np.nonzero(np.isclose(rows.temperatures, temperature))[0][:most]
        sums = {learner.name: Acceptance() for learner in learners}
        for first in range(0, len(at), at_once):
            own = at[first : first + at_once]
            tokens = torch.from_numpy(rows.tokens[np.resize(own, at_once)].astype(np.int64)).to(device)
            written = torch.from_numpy(rows.written[own]).to(device)
            target = learners[0].teacher.hidden(tokens)
            for learner in learners:
                hidden = learner.hidden(tokens)
                for row in range(len(own)):
                    if written[row, 1:].any():
                        one = (tokens[row], written[row], target[row], hidden[row])
                        sums[learner.name].add(*_text(learner, temperature, *one, chance))
        for name, acceptance in sums.items():
            found[name][f"{temperature:.1f}" if temperature else "greedy"] = acceptance.figures()
    return found


def _text(
    learner: Learner,
    temperature: float,
    tokens: Tensor,
    written: Tensor,
    target: Tensor,
    hidden: Tensor,
    chance: np.random.Generator,
) -> tuple[NDArray[np.float64], float, list[bool]]:
    """One text: chances, their sum by the rejection rule, hits."""
    wanted = written[1:]
    y = tokens[1:][wanted]
    own_logits = (hidden[:-1][wanted] @ learner.student.head.to(hidden.dtype).T).float()
    if not temperature:
        greedy = (learner.ids[own_logits.argmax(-1)] == y).cpu().numpy()
        return greedy.astype(np.float64), float(greedy.sum()), greedy.tolist()
    logits = learner.teacher.head(target[:-1][wanted])[:, : learner.teacher.num_ids].float()
    every = (logits / temperature).softmax(-1)
    p, q = every[:, learner.ids], (own_logits / temperature).softmax(-1)
    has, place = learner.has[y], learner.own[y][:, None]
    chances = coupled_chance(p, q, has, every.gather(1, y[:, None])[:, 0], q.gather(1, place)[:, 0])
    found = chances.double().cpu().numpy()
    return found, float(torch.minimum(p, q).sum()), (chance.random(len(found)) < found).tolist()
