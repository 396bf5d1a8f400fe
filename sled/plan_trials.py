"""What window plans committed, held against what the model said of them.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

from sled.window_plan import Kind

SETTLE_CYCLES = 2.0  # of a new plan are not counted
ENOUGH_STEPS, MEMORY_STEPS = 24.0, 80.0  # of a plan: enough to be known by, remembered
DOUBT_STEPS = 6.0  # for which what a plan commits is thought to be what the model says
HOPELESS = 0.93  # of what was expected: such a trial ends early
OLD_S = 120.0  # after which it is tried again
LEFT = 0.98  # of what the model says, at most, of a kind that was left at once: it promised more than it kept
LEAST, MOST = 0.7, 1.3


@dataclass(slots=True)
class _Trial:
    committed: float = 0.0
    expected: float = 0.0
    steps: float = 0.0
    at: float = 0.0
    left: bool = False

    @property
    def ratio(self) -> float:
        """Committed in parts of expected; 1 if nothing was seen: as if some steps before had kept to the model."""
        before = self.expected * DOUBT_STEPS / max(self.steps, 1.0)
        return (self.committed + before) / (self.expected + before) if self.expected > 0.0 else 1.0

    @property
    def is_enough(self) -> bool:
        """Whether it lasted long enough to be known by; one far behind what was expected ends early."""
        return self.steps >= ENOUGH_STEPS or (self.steps >= ENOUGH_STEPS / 3 and self.ratio < HOPELESS)

    def worth(self, *, alone: bool) -> float:
        """What the model's word is worth for plans of this kind."""
        if alone:
            return 1.0
        ratio = min(max(self.ratio, LEAST), MOST)
        return ratio if self.is_enough else min(ratio, LEFT)


class Trials:
    """Kinds of plans that were in force, and what they committed in parts of what was expected.

    A batch server with thinking devices can settle in more than one rhythm, and the model follows one of them.
    """

    def __init__(self) -> None:
        self._trials: dict[Kind, _Trial] = {}
        self._kind: Kind = (-1, -1, -1, False)
        self._settled_at = 0.0

    def told(self, kind: Kind, *, now: float, elapsed_s: float, cycle_s: float) -> bool:
        """Whether a plan of this kind was in force, and settled, for all of the time since the last call.

        Args:
            kind: of the plan in force.
            now: seconds.
            elapsed_s: since the last call.
            cycle_s: from verdict to verdict of the slowest session.
        """
        if kind != self._kind:
            if kind[0] == self._kind[0] and self._kind[2] != 2:
                self._leave(now)
            self._kind, self._settled_at = kind, now + SETTLE_CYCLES * cycle_s
        return now - elapsed_s >= self._settled_at

    def _leave(self, now: float) -> None:
        """The kind in force was left for another at the same load: it had its chance, however short that was."""
        trial = self._trials.get(self._kind)
        if trial is None or now - trial.at > OLD_S:
            trial = self._trials[self._kind] = _Trial(at=now)
        trial.left = True

    def add(self, committed: float, expected: float, steps: int, *, now: float) -> None:
        """Count what the plan in force did.

        Args:
            committed: tokens, each round counted with the mean of what such a round commits.
            expected: tokens in the same time.
            steps: in that time.
            now: seconds.
        """
        trial = self._trials.get(self._kind)
        if trial is None or now - trial.at > OLD_S:
            trial = self._trials[self._kind] = _Trial()
        fade = max(0.0, 1.0 - steps / MEMORY_STEPS)
        trial.committed = trial.committed * fade + committed
        trial.expected = trial.expected * fade + expected
        trial.steps = trial.steps * fade + steps
        trial.at = now

    def known(self, now: float) -> dict[Kind, float]:
        """Committed in parts of expected, of kinds that were in force for long enough, and lately.

        What the server does alone is known without trial: 1.
        """
        return {
            kind: trial.worth(alone=kind[2] == 2)
            for kind, trial in self._trials.items()
            if now - trial.at <= OLD_S and (trial.left or trial.is_enough)
        }
