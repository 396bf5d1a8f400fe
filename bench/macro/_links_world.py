"""One device on a link, on a virtual clock: the loop of the device's shell around a drafter, a pace and a server.

What is right at each position is drawn once for a seed, so every policy meets the same text. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from bench.macro._links_texts import Drafter, Link, Text
from sled.learned import Learned
from sled.pace import AutoPace, FixedPace, Pace
from sled.proposal import LITTLE
from sled.shadow import Shadow
from sled.window import Window

REQUEST_BYTES, REPLY_BYTES, STREAM_BYTES, TOKEN_BYTES = 150, 110, 40, 5
MAX_FLIGHTS = 2
GRACE_S = 0.005
PIECE = 32  # tokens read at once
_CLOCK_S = 1e-4  # what the device does with each round beside drafting


@dataclass(frozen=True)
class Cell:
    """One world: who drafts, over what link, and what a forward of so many tokens takes."""

    drafter: Drafter
    link: Link
    forward_s: Callable[[int], float]
    jitter: float = 0.05
    stall: float = 0.0  # chance that a forward takes four times as long
    ping: float = 1.0  # times as long as the link does a ping take; not a number: there is none
    prompt: int = 0  # tokens that both read
    prefill_s: float = 0.0  # that the server takes for them, from the opening of the answer on

    def with_prompt(self, tokens: int) -> Cell:
        """The same with a long prompt: a model reads 8 tokens while it drafts one, and a target 100 in a forward."""
        if "n-gram" in self.drafter.name:
            return self
        drafter = replace(self.drafter, read_s=self.drafter.draft_s / 8)
        return replace(self, drafter=drafter, prompt=tokens, prefill_s=tokens / 100 * self.forward_s(1))


@dataclass
class _Flight:
    size: int
    sent_at: float
    hoped: list[float]
    due_at: float = 0.0
    told_again: int = 0  # tokens that a stream had decoded already


@dataclass
class World:
    """Runs one answer of `length` tokens; `run` returns tokens per second.

    Speculative tokens are (confidence, may still be right): one that follows a wrong one is worthless, and draws its
    confidence from elsewhere in the text.
    """

    cell: Cell
    text: Text
    pace: Pace
    length: int
    limit: int
    seed: int
    now: float = 0.0
    done: int = 0
    bytes: int = 0
    rounds: int = 0
    bare_rounds: int = 0  # without drafts
    drafted: int = 0
    start: int = 0
    size: int = 0
    full: bool = False
    dry: bool = False
    chain: list[tuple[float, bool]] = field(default_factory=list)
    flights: list[_Flight] = field(default_factory=list)
    server_free_at: float = 0.0
    looked_at: float = 0.0
    waited: bool = True
    asked_at: int = -1
    streamed: int = 0
    told_again: int = 0
    has: int = 0  # tokens of prompt, text and chain that the drafter has read
    chance: random.Random = field(default_factory=random.Random)

    def run(self) -> float:
        self.chance = random.Random(self.seed)
        self.pace.begin()
        self.server_free_at = self.cell.prefill_s - self.cell.link.round_s / 2
        while self.done < self.length:
            while self.flights and self.flights[0].due_at <= self.now and self.done < self.length:
                self._verdict()
            if not self.flights and self.asked_at != self.done < self.length:
                self.asked_at = self.done
                ping_s = self.cell.link.round_s * self.cell.ping
                if self.pace.streams(self.length - self.done, ping_s, self._unread(self.done)):
                    self._follow_stream()
                    continue
            self.looked_at, self.waited = self.now, False
            if self.done < self.length and not self._act():
                self.now, self.waited = max(self.now, self.flights[0].due_at), True
        return self.done / self.now

    # -- the shell ----------------------------------------------------------------------------------

    def _hoped(self) -> list[float]:
        return [confidence for confidence, _ in self.chain[: self.start]]

    def _round(self) -> list[float]:
        return [confidence for confidence, _ in self.chain[self.start : self.start + self.size]]

    def _act(self) -> bool:
        """One step: send, take a token in, or draft one; False if there is nothing to do but to wait."""
        hoped, waited = self._hoped(), self.now - self.flights[0].sent_at if self.flights else None
        if len(self.chain) < self.start:  # the hop is missing
            return self._draft(waited)
        round_ = self._round()
        if not self.full:
            room = min(self.limit, self.length - self.done - self.start - 1)
            if self.size >= room:
                self.full = True
            elif len(self.chain) > self.start + self.size:
                if self.pace.more(round_, self.chain[self.start + self.size][0], hoped):
                    self.size += 1
                else:
                    self.full = True
                return True
            elif waited is not None:
                if self._draft(waited):
                    return True
            elif self._draft(None):
                return True
            else:
                self.full = True
        if not self.flights or (
            self.full and len(self.flights) < MAX_FLIGHTS and self.size and self.pace.send(round_, hoped)
        ):
            self._send(round_, hoped)
            return True
        return False

    def _draft(self, waited: float | None) -> bool:
        if self.dry:
            return False
        hoped, hop = [confidence for confidence, _ in self.chain[: self.start]], len(self.chain) < self.start
        position = self.done + len(self.chain)
        unread = self._unread(position)
        if not self.pace.another(self._round(), hoped, waited, hop=hop, unread=unread):
            return False
        if unread > LITTLE:
            return self._read(unread)
        alive = all(right for _, right in self.chain)
        at = position if alive else (position * 7 + 13) % len(self.text.right)
        if not self.text.speaks[at]:
            self.dry = True
            return False
        self._spend(unread)
        self.chain.append((self.text.confidence[at], alive and self.text.right[at]))
        return True

    def _send(self, round_: list[float], hoped: list[float]) -> None:
        self.now += _CLOCK_S
        cell, link = self.cell, self.cell.link
        request, reply = REQUEST_BYTES + TOKEN_BYTES * self.size, REPLY_BYTES + TOKEN_BYTES * (self.size + 1)
        self.bytes += request + reply
        self.rounds += 1
        self.bare_rounds += not self.size
        jitter = 1 + cell.jitter * self.chance.expovariate(1.0)
        arrives = self._through_cut(self.now + link.round_s / 2 * jitter + request / link.bytes_per_s)
        told_again, self.told_again = self.told_again, 0
        alive = all(right for _, right in self.chain[: self.start])
        begins = max(arrives, self.server_free_at)
        ends = (
            begins
            + cell.forward_s(self.size + 1)
            * (1 + cell.jitter * self.chance.random() + 3 * (self.chance.random() < cell.stall))
            if alive and not told_again
            else begins
        )
        self.server_free_at = ends
        due = self._through_cut(ends + link.round_s / 2 * jitter + reply / link.bytes_per_s)
        self.flights.append(_Flight(self.size, self.now, hoped, due, told_again))
        self.start += self.size + 1
        self.size, self.full = 0, False

    def _follow_stream(self) -> None:
        """The server decodes by itself; what is drafted meanwhile is not sent."""
        cell, link, pace = self.cell, self.cell.link, self.pace
        self.now += _CLOCK_S
        self.chain, self.start, self.size, self.full, self.dry = [], 0, 0, False, False
        pace.stream_begun(self.now)
        self.bytes += REQUEST_BYTES
        jitter = 1 + cell.jitter * self.chance.expovariate(1.0)
        decoded_at = self._through_cut(self.now + link.round_s / 2 * jitter + REQUEST_BYTES / link.bytes_per_s)
        decoded_at = max(decoded_at, self.server_free_at)
        came_at, shadow = 0.0, None
        while self.done < self.length:
            slow = 1 + cell.jitter * self.chance.random() + 3 * (self.chance.random() < cell.stall)
            decoded_at += cell.forward_s(1) * slow
            jitter = 1 + cell.jitter * self.chance.expovariate(1.0)
            due = decoded_at + link.round_s / 2 * jitter + STREAM_BYTES / link.bytes_per_s
            came_at = max(came_at, self._through_cut(due))
            waited = False
            while self.now < came_at:
                unread = self._unread(self.done)
                if shadow is None and pace.shadows(unread):
                    if unread > LITTLE:
                        self._read(unread)
                        continue
                    shadow = Shadow(pace, self.done)
                if shadow is None or not shadow.wants(min(self.limit, self.length - shadow.base - 1)):
                    self.now, waited = came_at, True
                else:
                    self._draft_in(shadow)
            self.now += _CLOCK_S
            self.done, self.streamed, self.bytes = self.done + 1, self.streamed + 1, self.bytes + STREAM_BYTES
            pace.streamed(1, self.now, waited=waited)
            if shadow is not None:
                right = next((i for i, token in enumerate(shadow.tokens) if token < 0), len(shadow.tokens))
                self.has = min(self.has, self.cell.prompt + shadow.base + right)
                if shadow.compared(range(shadow.base, self.done)):
                    shadow = None
            if self.done < self.length and not pace.stays(self.length - self.done, self._unread(self.done)):
                break
        # What the server decodes until it hears of that is told again.
        heard_at = self.now + link.round_s / 2
        while decoded_at + cell.forward_s(1) < heard_at and self.done + self.told_again < self.length:
            decoded_at += cell.forward_s(1)
            self.told_again += 1
        self.server_free_at = decoded_at

    def _unread(self, position: int) -> int:
        return self.cell.prompt + position - self.has if self.cell.drafter.read_s else 0

    def _read(self, unread: int) -> bool:
        """A piece of the text."""
        size = min(PIECE, unread - 1)
        took = size * self.cell.drafter.read_s * (1 + 0.1 * self.chance.random())
        self.now, self.has = self.now + took, self.has + size
        self.pace.read(size, took)
        return True

    def _spend(self, unread: int) -> None:
        """What a draft takes, with the little that is read before."""
        took = self.cell.drafter.draft_s * (1 + 0.1 * self.chance.random())
        took += max(unread - 1, 0) * self.cell.drafter.read_s
        self.now, self.has = self.now + took, self.has + unread
        self.pace.drafted(1, took)
        self.drafted += 1

    def _draft_in(self, shadow: Shadow) -> None:
        position = shadow.base + len(shadow.tokens)
        unread = self._unread(position)
        alive = all(token >= 0 for token in shadow.tokens)
        at = position if alive else (position * 7 + 13) % len(self.text.right)
        if not self.text.speaks[at]:
            shadow.end()
            return
        self._spend(unread)
        shadow.add(position if alive and self.text.right[at] else -1, self.text.confidence[at])

    def _through_cut(self, at: float) -> float:
        """When what would arrive at this time does arrive: after the cut that is on then."""
        link = self.cell.link
        if link.cut_every_s == math.inf:
            return at
        phase = at % link.cut_every_s
        return at - phase + link.cut_s + link.round_s if phase < link.cut_s and at > link.cut_every_s else at

    def _verdict(self) -> None:
        flight = self.flights.pop(0)
        drafts = self.chain[: flight.size]
        accepted = next((i for i, (_, right) in enumerate(drafts) if not right), len(drafts))
        hop = None
        holds = False
        if accepted == flight.size and len(self.chain) > flight.size:
            confidence, right = self.chain[flight.size]
            hop, holds = (confidence, right), right
        self.has = min(self.has, self.cell.prompt + self.done + accepted)
        if flight.told_again:
            accepted, holds = min(accepted, flight.told_again), False
        self.done += flight.told_again or accepted + 1
        # While a token is drafted nobody looks, until the node's own thread has taken over.
        looked_at = max(self.looked_at, flight.sent_at)
        came_at = self.now if self.waited else max(flight.due_at, looked_at + GRACE_S)
        came_at = came_at if came_at <= self.now else (looked_at + self.now) / 2
        self.now += _CLOCK_S
        stated = [confidence for confidence, _ in drafts]
        self.pace.told(stated, accepted, came_at - flight.sent_at, flight.hoped, now=self.now, hop=hop)
        self.dry = False
        if holds:
            cut = flight.size + 1
            self.chain = self.chain[cut:]
            self.start -= cut
            self.size, self.full = 0, False  # asked again, now that more is known
        else:
            if self.flights:
                self.flights.clear()
                self.pace.lost()
            self.chain, self.start, self.size, self.full = [], 0, 0, False


def flat(seconds: float) -> Callable[[int], float]:
    """A GPU's forward: nearly the same for any round."""
    return lambda tokens: seconds * (1 + 0.01 * (tokens - 1))


def stepped(seconds: float) -> Callable[[int], float]:
    """A CPU's forward in float32, as measured (sled.md, 7), scaled to `seconds` for one token."""
    return _between(
        (1, 27.8), (2, 30.6), (4, 48.1), (5, 50.3), (9, 64.0), (16, 64.5), (32, 80.0), (65, 120.0), first_s=seconds
    )


def jumping(seconds: float) -> Callable[[int], float]:
    """A forward of one token is a special case, and all others take nearly twice as long (one thread, no AMX)."""
    return _between((1, 60.0), (2, 105.0), (9, 112.0), (17, 135.0), (65, 300.0), first_s=seconds)


def _between(*knots: tuple[int, float], first_s: float) -> Callable[[int], float]:
    least = knots[0][1]

    def forward(tokens: int) -> float:
        for (x0, y0), (x1, y1) in pairwise(knots):
            if tokens <= x1:
                return first_s * (y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)) / least
        return first_s * knots[-1][1] / least

    return forward


FORWARDS = {
    "flat 5 ms": flat(0.005),
    "flat 15 ms": flat(0.015),
    "flat 60 ms": flat(0.060),
    "steps 28 ms": stepped(0.0278),
    "steps 50 ms": stepped(0.050),
    "jump 60 ms": jumping(0.060),
}
FIXED = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)


def rate_of(cell: Cell, pace: Callable[[], Pace], limit: int, *, tokens: int, answers: int, seed: int) -> float:
    """Tokens per second over some answers."""
    done, spent_s = 0, 0.0
    for number in range(answers):
        text = Text.of(cell.drafter, tokens + 200, seed * 1000 + number)
        world = World(cell, text, pace(), tokens, limit, seed * 1000 + number)
        world.run()
        done, spent_s = done + world.done, spent_s + world.now
    return done / spent_s


def compare(
    cell: Cell, *, tokens: int, answers: int, seed: int, sizes: Sequence[int] = FIXED
) -> tuple[float, int, float]:
    """Tokens per second with auto, which begins knowing nothing; the best fixed window, and what that does."""
    learned = Learned()
    auto = rate_of(cell, lambda: AutoPace(learned), 16, tokens=tokens, answers=answers, seed=seed)
    fixed = {
        size: rate_of(cell, lambda size=size: FixedPace(Window(size)), size, tokens=tokens, answers=answers, seed=seed)
        for size in sizes
    }
    best = max(fixed, key=fixed.__getitem__)
    return auto, best, fixed[best]
