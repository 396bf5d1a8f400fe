"""What a target computes before its server takes sessions: a first forward, and steps whose time is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from sled.acceptance import RoundRows
from sled.errors import OutOfMemory, UnknownModel
from sled.messages import FORWARD_SIZES
from sled.run.answers import ServedTarget
from sled.types import Chunk, Sampling

log = logging.getLogger("sled.server")

MEASURE_S = 2.0
MOST_ROUNDS = 64
WIDTH = 5  # tokens of a round with drafts
ALONE_S = 1.0  # for forwards of one round
_EXTRA = 1.5  # of what came on top of the first forward of the size before, at most


def warm_up(target: ServedTarget) -> None:
    """One small forward, so that the first device does not pay for it; what it writes to page 0 is overwritten.

    Raises:
        UnknownModel: what comes out is no numbers.
    """
    rows = RoundRows((), Sampling(), 2, (0, 0), 2)
    (decision,) = target.verify([Chunk(bytes(8), (0, 0), 0, 1, (0,))], [rows])
    if not decision.finite:
        raise UnknownModel(
            f"{target.described.name} ({target.described.dtype}) computes logits that are not-a-number: its weights "
            "are damaged, or outgrow this dtype; try float32 or bfloat16, or another copy"
        )


class Forecast:
    """What a forward of a size that was not computed yet will about take, from those that were.

    It takes no longer than one of more tokens and rounds. Beyond the largest that has fewer of both, time grows by
    token as it did up to there, at most in proportion; where only one such is known, half of its time is taken to be
    the same for all sizes. What comes on top the first time, for compiling or capturing, is about that of the size
    before.

    >>> known = Forecast()
    >>> known.took(4, 4, 1.0), known.took(4, 4, 0.5)
    (None, None)
    >>> known.of(8, 8)
    (1.5, 0.75)
    """

    def __init__(self) -> None:
        self._took_s: dict[tuple[int, int], list[float]] = {}
        self._extra_s = 0.0  # of the first forward of a size

    def took(self, tokens: int, rounds: int, seconds: float) -> None:
        """A forward of this size was computed."""
        took_s = self._took_s.setdefault((tokens, rounds), [])
        took_s.append(seconds)
        if len(took_s) == 2:
            self._extra_s = max(0.0, took_s[0] - took_s[1])

    def of(self, tokens: int, rounds: int) -> tuple[float, float]:
        """Seconds of the first forward of this size, and of the next; 0 where nothing is known."""
        known = sorted((n, r, min(took_s)) for (n, r), took_s in self._took_s.items())
        likely_s = [seconds for n, r, seconds in known if n >= tokens and r >= rounds]
        smaller = [(n, seconds) for n, r, seconds in known if n <= tokens and r <= rounds]
        if smaller:
            likely_s.append(_grown(smaller, tokens))
        again_s = min(likely_s, default=max((seconds for *_, seconds in known), default=0.0))
        return again_s + ((tokens, rounds) not in self._took_s) * _EXTRA * self._extra_s, again_s


def _grown(smaller: Sequence[tuple[int, float]], tokens: int) -> float:
    """Seconds of so many tokens from those of fewer, (tokens, seconds) in order."""
    n, seconds = smaller[-1]
    a_token_s = 0.5 * seconds / n
    if len(smaller) > 1:
        m, before_s = smaller[-2]
        a_token_s = min(max(0.0, (seconds - before_s) / max(1, n - m)), seconds / n)
    return seconds + a_token_s * (tokens - n)


def measure_steps(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    *,
    most_rounds: int = MOST_ROUNDS,
    at_most_s: float = MEASURE_S,
    clock: Callable[[], float] = time.perf_counter,
    known: Forecast | None = None,
) -> int:
    """Find out what steps take before any device waits for one: without drafts first, then with some.

    Each is computed twice, and the shorter time told: the first of its size may be compiled or captured. The pages that
    are written must be nobody's yet.

    Args:
        target: the model.
        told: called with tokens, rounds and seconds of a step.
        most_rounds: in a step.
        at_most_s: no step is begun that would take longer, as far as is known, nor one whose memory does not suffice.
        clock: seconds.
        known: what forwards took before; it learns.

    Returns:
        How many sizes were measured.
    """
    return _measure(target, told, _sizes(target, most_rounds), at_most_s, clock, known or Forecast())


def measure_rounds(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    *,
    at_most_s: float = ALONE_S,
    clock: Callable[[], float] = time.perf_counter,
    known: Forecast | None = None,
) -> int:
    """Find out what a round of one session takes by its length, which its device is told; see `measure_steps`."""
    most = min(target.shape.max_window + 1, target.shape.max_positions)
    sizes = dict.fromkeys(min(size, most) for size in (1, WIDTH, 2, *FORWARD_SIZES[::-1]))
    room = target.shape.num_pages * target.shape.page_tokens
    steps = ((1, size) for size in sizes if size <= room)
    return _measure(target, told, steps, at_most_s, clock, known or Forecast())


def _measure(
    target: ServedTarget,
    told: Callable[[int, int, float], None],
    sizes: Iterable[tuple[int, int]],
    at_most_s: float,
    clock: Callable[[], float],
    known: Forecast,
) -> int:
    until, count = clock() + at_most_s, 0
    for rounds, width in sizes:
        tokens = rounds * width
        chunks, rows = _step(rounds, width, target.shape.page_tokens)
        took_s: list[float] = []
        first_s, again_s = known.of(tokens, rounds)
        try:
            for will_take_s in (first_s + again_s, again_s):
                if (began := clock()) + will_take_s > until:
                    return count
                target.verify(chunks, rows)
                took_s.append(clock() - began)
                known.took(tokens, rounds, took_s[-1])
        except OutOfMemory:
            log.warning("no memory for a step of usual size", extra={"rounds": rounds, "tokens": tokens})
            return count
        told(tokens, rounds, min(took_s))
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
