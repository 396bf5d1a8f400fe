"""What a device has learned of its drafter, its link and its server: what windows that pay are decided by.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sled.by_itself import ByItself
from sled.calibration import Calibration
from sled.turnaround import Turnaround

GUESS_ROUNDS = 2.0  # that what is thought of the rate at first counts as
FIRST_ROUNDS = 2  # rounds before there is a rate
PIECE = 32.0  # tokens that are read at once, before that is known
IDLE_ROUNDS = 16  # without a token drafted, after which one is tried,
IDLE_TOKENS = 0.02  # and what that may cost of what came meanwhile


@dataclass(slots=True)
class Learned:
    """What a device has learned of its drafter and its server, kept from answer to answer.

    Attributes:
        calibration: how often the drafter is right.
        turnaround: how long rounds are away.
        draft_s: seconds to draft a token.
        read_s: seconds to read a token of the text; not a number before that is known.
        piece: tokens that are read at once, while nobody looks for a verdict.
        tokens, seconds: of late; their quotient is the rate.
        rounds: verdicts heard of.
        idle: rounds since a token was drafted.
        by_itself: what the server brings without drafts, beside what they bring.
    """

    calibration: Calibration = field(default_factory=Calibration)
    turnaround: Turnaround = field(default_factory=Turnaround)
    draft_s: float = 0.0
    read_s: float = math.nan
    piece: float = PIECE
    tokens: float = 0.0
    seconds: float = 0.0
    weight: float = 0.0
    length: float = 2.0
    rounds: int = 0
    idle: int = 0
    by_itself: ByItself = field(init=False)

    def __post_init__(self) -> None:
        self.by_itself = ByItself(self.turnaround)

    @property
    def rate(self) -> float:
        """Committed tokens per second of late; 0 before anything is known."""
        tokens, seconds = self.by_itself.promise
        if not seconds and (self.rounds < FIRST_ROUNDS or not self.seconds):
            return 0.0
        weight = GUESS_ROUNDS / (1 + self.rounds)
        return (self.tokens + weight * tokens) / (self.seconds + weight * seconds)

    @property
    def is_idle(self) -> bool:
        """Whether the drafter was left alone for so long that a look at it is due."""
        return self.idle >= IDLE_ROUNDS and self.idle * IDLE_TOKENS >= self.rate * self.draft_s
