"""What rounds may be thought to bring and to take before any was sent: from what the server tells of its forwards.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Sequence

from sled.calibration import ANYWHERE, Calibration
from sled.messages import FORWARD_SIZES, MAX_WINDOW

DRAFT_S = 0.003  # that a draft is thought to take before one was made
MOST_DRAFTS = 16  # of a round that nobody knows anything of
LONGEST_S = 60.0  # that a forward may take: who tells of longer ones is not believed


def forwards(told: Sequence[float]) -> list[float]:
    """Seconds of a forward of 1 .. `MAX_WINDOW` + 1 tokens, which never fall.

    Args:
        told: of forwards of `FORWARD_SIZES` tokens.

    Returns:
        Straight lines between them and on behind the last; nothing if what is told is none.

    >>> each = forwards([0.03, 0.04, 0.04, 0.05, 0.06, 0.08])
    >>> len(each), round(each[3], 4), round(each[64], 4)
    (65, 0.045, 0.2)
    """
    if len(told) != len(FORWARD_SIZES) or not all(0.0 < each <= LONGEST_S for each in told):
        return []
    rising = [max(told[: i + 1]) for i in range(len(told))]
    found, i = [], 0
    for size in range(1, MAX_WINDOW + 2):
        while i < len(FORWARD_SIZES) - 2 and size > FORWARD_SIZES[i + 1]:
            i += 1
        share = (size - FORWARD_SIZES[i]) / (FORWARD_SIZES[i + 1] - FORWARD_SIZES[i])
        found.append(rising[i] + share * (rising[i + 1] - rising[i]))
    return found


def best_round(calibration: Calibration, away_s: Sequence[float], draft_s: float) -> tuple[float, float]:
    """Tokens and seconds of the round that would bring most tokens per second on a text nothing is known of.

    Args:
        calibration: how often the drafter is right.
        away_s: seconds away of a round with 0, 1, ... drafts.
        draft_s: seconds to draft a token.
    """
    hazard, tokens = 0.0, 1.0
    best = (1.0, away_s[0])
    for length in range(1, min(MOST_DRAFTS, len(away_s) - 1) + 1):
        hazard += calibration.next_hazard(ANYWHERE, length - 1)
        tokens += calibration.chance(hazard)
        seconds = length * draft_s + away_s[length]
        if tokens * best[1] > best[0] * seconds:
            best = (tokens, seconds)
    return best
