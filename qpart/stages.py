"""How far calibration is: stages and their share of all work.

Pure: the clock is whoever's that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qpart import effort as efforts
from qpart.effort import Effort
from qpart.network import Network, Parameters
from qpart.tables import WIDTHS

PREPARING, ROWS, PATTERNS, VERIFYING = "preparing", "noise of single tensors", "random patterns", "verifying"
Progress = Callable[[str, float], None]
"""Told the stage and the share of all work that is done, 0 .. 1."""
_MACS_PER_PARAMETER = 1e5  # quantising one at all widths takes about as long


class Stages:
    """Tells of progress: how much of all work each stage is, by what is expected of it."""

    def __init__(
        self,
        network: Network,
        parameters: Mapping[int, Parameters],
        num_inputs: int,
        row_work: int,
        chosen: Effort,
        progress: Progress,
    ) -> None:
        once = sum(efforts.work_of(network))
        cuts = network.num_nodes + 1 - (0 if chosen.all_cuts else len(efforts.dominated(network)))
        work = {
            PREPARING: once * num_inputs + _MACS_PER_PARAMETER * sum(p.weight.size for p in parameters.values()),
            ROWS: len(WIDTHS) * row_work * chosen.noise_inputs / 2,
            PATTERNS: once * chosen.num_patterns * chosen.pattern_inputs,
            VERIFYING: 4 * once * cuts * chosen.verify_inputs,
        }
        whole, done = sum(work.values()), 0.0
        self._bounds = {}
        for stage, part in work.items():
            self._bounds[stage] = done / whole, part / whole
            done += part
        self._progress, self._told = progress, 0.0

    def of(self, stage: str) -> Callable[[float], None]:
        """How a stage reports its own share."""
        start, width = self._bounds[stage]

        def tell(share: float) -> None:
            self._told = max(self._told, min(1.0, start + width * share))  # rounding must not go back
            self._progress(stage, self._told)

        tell(0.0)
        return tell
