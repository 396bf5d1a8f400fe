"""How many inputs and patterns calibration takes, so that a large network needs minutes and a small one all of them.

Pure, and decided before anything runs: the same question has the same answer on a fast machine and on a slow one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qpart.network import Network
from qpart.tables import WIDTHS

NOISE_WORK, PATTERN_WORK, VERIFY_WORK = 6e12, 6e12, 8e12
"""Work of a stage at effort 1, in multiply-accumulates: about two minutes on two cores."""
_MACS_PER_ITEM = 50
"""Writing a number takes as long as so many multiply-accumulates; what is not a large product lives by it."""
NUM_PATTERNS, LEAST_PATTERNS = 200, 60
NOISE_INPUTS, LEAST_NOISE_INPUTS = 1000, 64
LEAST_PATTERN_INPUTS = 300
_DISTINCT = 0.6  # share of the patterns of all cuts and levels that are no pattern of another level


class Effort(msgspec.Struct, frozen=True):
    """What calibration does.

    Attributes:
        noise_inputs: most inputs that measure one tensor.
        num_patterns: random patterns for the budget map.
        pattern_inputs: inputs that each of them runs on; another pattern runs on others.
        verify_inputs: inputs on which the patterns of all cuts and levels are verified.
        all_cuts: whether every cut is verified, or only those that the next one does not dominate.
    """

    noise_inputs: int
    num_patterns: int
    pattern_inputs: int
    verify_inputs: int
    all_cuts: bool


def work_of(network: Network) -> tuple[int, ...]:
    """Work of every node for one input, in multiply-accumulates."""
    items = (network.items(i + 1) for i in range(network.num_nodes))
    return tuple(macs + _MACS_PER_ITEM * size for macs, size in zip(network.macs, items, strict=True))


def choose(
    network: Network,
    row_work: Sequence[int],
    num_inputs: int,
    num_levels: int,
    *,
    effort: float = 1.0,
    num_patterns: int | None = None,
    noise_inputs: int | None = None,
) -> Effort:
    """Everything where it is cheap; where it is not, as much as the effort allows, and never less than the least.

    Args:
        network: to calibrate.
        row_work: of every tensor measured alone, for one input and one width.
        num_inputs: that there are.
        num_levels: that are verified at each cut.
        effort: times the work of a stage; 1 means minutes.
        num_patterns, noise_inputs: instead of what would be chosen.
    """
    work = sum(work_of(network))
    fitting = effort * NOISE_WORK / (len(WIDTHS) * max(1, sum(row_work)))
    noise = noise_inputs or _within(NOISE_INPUTS, fitting, LEAST_NOISE_INPUTS)
    patterns, each = num_patterns or NUM_PATTERNS, num_inputs
    if patterns * each * work > effort * PATTERN_WORK:
        each = _within(num_inputs, effort * PATTERN_WORK / (patterns * work), LEAST_PATTERN_INPUTS)
        fitting = effort * PATTERN_WORK / (each * work)
        patterns = num_patterns or _within(NUM_PATTERNS, fitting, LEAST_PATTERNS)
    runs, verify = _DISTINCT * num_levels * (network.num_nodes + 1), num_inputs
    all_cuts = runs * verify * work <= effort * VERIFY_WORK
    if not all_cuts:
        runs = _DISTINCT * num_levels * (network.num_nodes + 1 - len(dominated(network)))
        verify = _within(num_inputs, effort * VERIFY_WORK / (runs * work), LEAST_PATTERN_INPUTS)
    return Effort(min(noise, num_inputs), patterns, each, verify, all_cuts)


def dominated(network: Network) -> frozenset[int]:
    """Cuts that the next one beats whatever is asked: it computes nothing more, loads the same and sends no more.

    Between a convolution and its ReLU, say, where the same numbers would travel with twice the range.
    """
    found = set()
    for cut in range(network.num_nodes - 1):
        node, here, behind = network.nodes[cut], network.live[cut], network.live[cut + 1]
        costs_nothing = node.op.weight_shape is None and network.macs[cut] == 0
        smaller = len(behind) <= len(here) and sum(map(network.items, behind)) <= sum(map(network.items, here))
        if cut and costs_nothing and smaller:
            found.add(cut)
    return frozenset(found)


def _within(most: int, wanted: float, least: int) -> int:
    return min(most, max(least, int(wanted)))
