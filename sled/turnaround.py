"""How long a round is away, by its length, learned from rounds that came back.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sled.calibration import rising
from sled.messages import MAX_WINDOW

FOLLOW = 0.15  # how fast the drift follows
QUICK = 0.5  # a round that takes so much of the usual moves it all the way
FORGET = 0.99  # of the past of every length, with each round
STEADY_ROUNDS = 20.0  # rounds of a length that its mean goes back
PRIOR_ROUNDS = 0.7  # rounds of a length that what is known of the one before it counts as
TOKEN_SHARE = 0.003  # of a turnaround, that one token more is thought to cost: little, so that it is tried
TRIED_ROUNDS = 3.0  # rounds of a length that are enough to know it
UNHEARD = 0.3  # rounds that a length nothing was heard of counts as, against its neighbours
NEWS = 0.15  # of a turnaround: a round that differs by more from others of its length counts as by so much,
FIRST_NEWS = 0.6  # and the first of its length as by so much from the trend
STALL = 1.6  # a round away for longer than so many times the usual teaches no more than that,
STALLS = 3  # unless so many before it were, too: then that is how the link is now


class Turnaround:
    """Time from sending a round to its verdict: what a round of each length takes, and a drift common to all.

    Link, queue and forward cannot be told apart from here and need not be. What matters is how much longer a longer
    round is away. Forwards cost in steps, so each length has a mean of its own, and the curve never falls. A length
    that is longer than all that were tried is thought as good as the longest: a step is found by running into it, and a
    straight line through a step would forbid all that lies behind. Between two that were tried the line is as good a
    guess as any, where otherwise each length would have to be run into. The drift follows link and load, whatever
    lengths are asked.
    """

    def __init__(self) -> None:
        self._drift = 0.0
        self._queued_drift: float | None = None  # the same for a round that waited behind another one of ours
        self._count = [0.0] * (MAX_WINDOW + 1)
        self._mean = [0.0] * (MAX_WINDOW + 1)
        self._curve = [0.0] * (MAX_WINDOW + 1)
        self._expected: list[float] | None = None  # as the server told, up to the link
        self._longest = self._stalls = 0
        self._known = self._known_lengths = False
        self._with_reading = False  # all that is known is a round in which the server has read

    def expect(self, away_s: Sequence[float]) -> None:
        """What rounds are thought to take: of lengths that were tried that says nothing, of others how much they rise.

        Args:
            away_s: seconds of a round with 0, 1, ... `MAX_WINDOW` drafts; they never fall.

        Raises:
            ValueError: another number of them.
        """
        if len(away_s) != MAX_WINDOW + 1:
            raise ValueError(f"{len(away_s)} lengths, expected {MAX_WINDOW + 1}")
        self._expected = list(away_s)
        if self._known_lengths:
            self._draw()
        else:
            self._curve = list(away_s)

    def of(self, length: int) -> float:
        """Expected seconds away of a round with so many drafts; 0 before anything is known."""
        return max(self._curve[length] + self._drift, 0.0)

    def rise(self, length: int, further: int) -> float:
        """Seconds that so many further drafts keep a round of `length` away."""
        return self._curve[min(length + further, MAX_WINDOW)] - self._curve[length]

    def little_known(self, lengths: Iterable[int]) -> int | None:
        """The first of these lengths that was hardly tried of late; None if all were."""
        return next((length for length in lengths if self._count[length] < TRIED_ROUNDS), None)

    def told(self, length: int, took_s: float, *, reads: bool = False) -> None:
        """A round with so many drafts was away so long, and waited behind no other one of ours.

        Args:
            length: drafts.
            took_s: seconds.
            reads: the server has read the prompt in that time, for nobody knows how long.
        """
        usual_s = self.of(length)
        if reads and usual_s and took_s >= usual_s:
            return
        if self._known:
            took_s = self._without_stall(length, took_s)
            if took_s < (1.0 if self._with_reading else QUICK) * usual_s:  # nothing but a better link, or server, can
                self._drift += took_s - self._drift - self._curve[length]  # be so quick
        self._with_reading = reads and not self._known
        self._known = True
        self._learn(length, took_s - self._drift)
        self._drift += FOLLOW * (took_s - self._drift - self._curve[length])

    def told_queued(self, length: int, took_s: float) -> None:
        """The verdict of a round that waited behind another one of ours came so long after the other one's.

        How long it was away says nothing, but among such rounds what length makes of it is the same.
        """
        if not self._known:
            return
        if self._queued_drift is None:
            self._queued_drift = took_s - self._curve[length]
        took_s = self._without_stall(length, took_s)
        self._learn(length, took_s - self._queued_drift)
        self._queued_drift += FOLLOW * (took_s - self._queued_drift - self._curve[length])

    def _without_stall(self, length: int, took_s: float) -> float:
        """What a round took, unless it is much more than usual and those before it were not."""
        bound = STALL * self.of(length) + 1e-3
        self._stalls = self._stalls + 1 if took_s > bound else 0
        return min(took_s, bound) if self._stalls <= STALLS else took_s

    def _learn(self, length: int, took_s: float) -> None:
        self._longest = max(self._longest, length)
        for i in range(self._longest + 1):
            self._count[i] *= FORGET
        self._count[length] += 1.0
        news = took_s - self._mean[length]
        if self._known_lengths:  # a change of all lengths is for the drift to follow
            tried = self._count[length] > 1.5
            news = took_s - (self._mean[length] if tried else self._curve[length])
            bound = (NEWS if tried else FIRST_NEWS) * self.of(length)
            news = max(-bound, min(news, bound)) + (0.0 if tried else self._curve[length] - self._mean[length])
        self._known_lengths = True
        self._mean[length] += news / min(self._count[length], STEADY_ROUNDS)
        self._draw()

    def _draw(self) -> None:
        """The curve: each length by its mean, and where little is known of it by the one before it.

        One that was never tried is on the line from the one before it to the next one that was, if there is any.
        """
        size = self._longest + 1
        counts = self._count[:size]
        tried = first = next(i for i, count in enumerate(counts) if count)
        drawn, before = [], self._mean[first] - self._rise_of(0, first)
        for length, (count, mean) in enumerate(zip(counts, self._mean, strict=False)):
            further = self._rise_of(length - 1, length) if length else 0.0
            if not count and length > first:
                while tried < length or not counts[tried]:  # the longest one was tried
                    tried += 1
                further = max(further, (self._mean[tried] - before) * self._share_of(length, tried))
            before = (count * mean + PRIOR_ROUNDS * (before + further)) / (count + PRIOR_ROUNDS)
            drawn.append(before)
        self._curve[:size] = rising(drawn, [count + UNHEARD for count in counts])
        for i in range(size, MAX_WINDOW + 1):
            self._curve[i] = self._curve[i - 1] + self._rise_of(i - 1, i)

    def _rise_of(self, length: int, to: int) -> float:
        """Seconds by which a round of `to` drafts is longer away than one of `length`, as far as nothing was tried."""
        if self._expected is not None:
            return self._expected[to] - self._expected[length]
        return (to - length) * TOKEN_SHARE * max(self._mean[self._longest], 0.0)

    def _share_of(self, length: int, to: int) -> float:
        """Of the rise from the length before to `to`, what is at `length`: as the server told, or an even share."""
        whole = self._rise_of(length - 1, to) if self._expected is not None else 0.0
        return self._rise_of(length - 1, length) / whole if whole > 0.0 else 1.0 / (to - length + 1)
