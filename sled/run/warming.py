"""What a target computes before its server takes sessions: a first forward, and steps whose time is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from sled.acceptance import RoundRows
from sled.errors import OutOfMemory
from sled.messages import FORWARD_SIZES
from sled.run.answers import ServedTarget
from sled.targets import Target
from sled.types import Chunk, Sampling

log = logging.getLogger("sled.server")

MEASURE_S = 2.0
MOST_ROUNDS = 64
WIDTH = 5  # tokens of a round with drafts
ALONE_S = 1.0  # for forwards of one round


def warm_up(target: Target) -> None:
    """One small forward, so that the first device does not pay for it; what it writes to page 0 is overwritten."""
    rows = RoundRows((), Sampling(), 2, (0, 0), 2)
    (decision,) = target.verify([Chunk(bytes(8), (0, 0), 0, 1, (0,))], [rows])
    assert decision.finite


def measure_steps(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    *,
    most_rounds: int = MOST_ROUNDS,
    at_most_s: float = MEASURE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Find out what steps take before any device waits for one: without drafts first, then with some.

    Each is computed twice, and the shorter time told: the first of its size may be compiled or captured. The pages that
    are written must be nobody's yet.

    Args:
        target: the model.
        told: called with tokens, rounds and seconds of a step.
        most_rounds: in a step.
        at_most_s: no further step is begun after so many seconds, nor one whose memory does not suffice.
        clock: seconds.

    Returns:
        How many sizes were measured.
    """
    return _measure(target, told, _sizes(target, most_rounds), at_most_s, clock)


def measure_rounds(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    *,
    at_most_s: float = ALONE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Find out what a round of one session takes by its length, which its device is told; see `measure_steps`."""
    most = min(target.shape.max_window + 1, target.shape.max_positions)
    sizes = dict.fromkeys(min(size, most) for size in (1, WIDTH, 2, *FORWARD_SIZES[::-1]))
    room = target.shape.num_pages * target.shape.page_tokens
    return _measure(target, told, ((1, size) for size in sizes if size <= room), at_most_s, clock)


def _measure(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    sizes: Iterable[tuple[int, int]],
    at_most_s: float,
    clock: Callable[[], float],
) -> int:
    until, count = clock() + at_most_s, 0
    for rounds, width in sizes:
        chunks, rows = _step(rounds, width, target.shape.page_tokens)
        took_s: list[float] = []
        try:
            for _ in range(2):
                if (began := clock()) >= until:
                    return count
                target.verify(chunks, rows)
                took_s.append(clock() - began)
        except OutOfMemory:
            log.warning("no memory for a step of usual size", extra={"rounds": rounds, "tokens": rounds * width})
            return count
        told(rounds * width, rounds, min(took_s))
        count += 1
    return count


def _sizes(target: ServedTarget, most_rounds: int) -> Iterator[tuple[int, int]]:
    """(rounds, tokens of each): powers of two, as far as there are pages."""
    shape = target.shape
    for width in (1, min(WIDTH, shape.max_window + 1, shape.max_positions)):
        rounds = 1
        while rounds <= min(most_rounds, MOST_ROUNDS) and rounds * -(-width // shape.page_tokens) <= shape.num_pages:
            yield rounds, width
            rounds *= 2


def _step(rounds: int, width: int, page_tokens: int) -> tuple[list[Chunk], list[RoundRows]]:
    """So many texts of one token, each with `width` - 1 drafts."""
    pages = -(-width // page_tokens)
    chunks = [
        Chunk(i.to_bytes(8, "little"), (0,) * width, 0, width, tuple(range(i * pages, (i + 1) * pages)))
        for i in range(rounds)
    ]
    return chunks, [RoundRows((0,) * (width - 1), Sampling(), 1, (0,), 1)] * rounds
