"""A server, its devices and their links on a virtual clock, for window policies to be held against each other.

Pure and seeded. Step times come from the measured tables of docs/spec/sled-goodput.md, acceptance by position too. The
server starts a step as soon as anything waits and takes all that waits; a device that drafts thinks between a verdict
and its next round; one whose window is 0 is decoded by the server and is in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sled.server import WindowPolicy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

H100_ROUNDS = np.array([1.0, 8, 32, 64, 128, 256])
H100_WIDTHS = np.array([1.0, 3, 5, 9])
_H100_MS = np.array(
    [
        [6.4, 6.7, 6.7, 7.0],
        [6.9, 7.3, 7.4, 7.7],
        [7.5, 9.2, 9.8, 12.6],
        [8.5, 11.8, 14.4, 20.7],
        [10.4, 19.6, 25.8, 38.1],
        [14.5, 36.2, 48.8, 75.1],
    ]
)
CPU_TOKENS = (1.0, 2.0, 4.0, 5.0, 9.0, 16.0, 32.0)
_CPU_FP32_MS = (27.8, 30.6, 48.1, 50.3, 64.0, 64.5, 80.0)
_CPU_BF16_MS = (28.9, 31.1, 31.9, 32.4, 33.8, 35.6, 40.9)


def _h100(tokens: float, rounds: float) -> float:
    """8B-shaped target, bf16, context 512; between the measured cells linear, beyond them by the last slope."""
    width = tokens / max(rounds, 1.0)
    if rounds < 1.0:  # prefill alone: as one session's
        rounds, width = 1.0, tokens
    i = int(np.clip(np.searchsorted(H100_ROUNDS, rounds) - 1, 0, 4))
    j = int(np.clip(np.searchsorted(H100_WIDTHS, width) - 1, 0, 2))
    x = (rounds - H100_ROUNDS[i]) / (H100_ROUNDS[i + 1] - H100_ROUNDS[i])
    y = (width - H100_WIDTHS[j]) / (H100_WIDTHS[j + 1] - H100_WIDTHS[j])
    a, b, c, d = _H100_MS[i, j], _H100_MS[i + 1, j], _H100_MS[i, j + 1], _H100_MS[i + 1, j + 1]
    return float(a + x * (b - a) + y * (c - a) + x * y * (a - b - c + d)) * 1e-3


def _cpu(table: Sequence[float]) -> Callable[[float, float], float]:
    slope = (table[-1] - table[-3]) / (CPU_TOKENS[-1] - CPU_TOKENS[-3])

    def step(tokens: float, rounds: float) -> float:
        beyond = max(0.0, tokens - CPU_TOKENS[-1])
        return float(np.interp(tokens, CPU_TOKENS, table) + beyond * slope) * 1e-3

    return step


def _serving(tokens: float, rounds: float) -> float:
    """`sled serve` in fp32 on two cores shared with its load: fitted by hand to bench/results/serving.json."""
    return 0.065 + 0.0016 * tokens + 0.0024 * rounds


STEP_TIMES: dict[str, Callable[[float, float], float]] = {
    "h100": _h100,
    "cpu_bf16": _cpu(_CPU_BF16_MS),
    "cpu_fp32": _cpu(_CPU_FP32_MS),
    "serving": _serving,
}
"""Seconds of a step of so many tokens and rounds, without noise."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """A kind of device.

    Args:
        passes: for each position the probability that its draft survives if those before it did.
        draft_s: seconds to draft one token.
        most: drafts it makes at most, whatever the limit.
        ahead: it goes on drafting while a round is away, behind what it hopes to be the target's own token.
    """

    passes: tuple[float, ...]
    draft_s: float
    most: int = 1 << 10
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """Which devices there are: kinds with their shares, and the round trip of their links, s."""

    kinds: tuple[tuple[Drafter, float], ...]
    link_s: float

    def lay_out(self, num: int, max_window: int) -> tuple[Floats, list[Drafter]]:
        """Conditional survival (num, max_window), and the kind of each device, kinds evenly interleaved."""
        kinds, shares = [kind for kind, _ in self.kinds], np.array([share for _, share in self.kinds])
        have = np.zeros(len(kinds))
        passes, devices = np.empty((num, max_window)), []
        for i in range(num):
            choice = int(np.argmax(shares * (i + 1) / shares.sum() - have))
            have[choice] += 1
            known = kinds[choice].passes
            passes[i] = [known[min(j, len(known) - 1)] for j in range(max_window)]
            devices.append(kinds[choice])
        return passes, devices


class Fixed:
    """The same window for every session, whatever happens."""

    def __init__(self, window: int) -> None:
        self.window = window


@dataclass(slots=True)
class Outcome:
    """What a run came to: by phase committed tokens per second after warm-up, mean limit and changes of limits."""

    goodput: list[float]
    mean_limit: list[float]
    limit_changes_by_phase: list[int]
    steps: int
    verdicts: int


@dataclass(frozen=True, slots=True)
class Phase:
    """So many active sessions for so many seconds, of which the first `settle_s` are not counted."""

    sessions: int
    seconds: float
    settle_s: float


@dataclass(slots=True)
class World:
    """Everything a policy can be run in.

    Args:
        step_time: seconds of a step of so many tokens and rounds.
        fleet: the devices.
        max_window: drafts a round may have.
        batch_tokens: tokens in one step; what came last waits for the next.
        context: positions each session has, for what the policy is told.
        noise: relative deviation of step and think times.
        seed: of everything random.
        answer: tokens after which a session ends and another takes its place; 0 has none end. First answers are cut
            short by different lengths.
        prompt: tokens of prefill before a session's first round.
    """

    step_time: Callable[[float, float], float]
    fleet: Fleet
    max_window: int = 8
    batch_tokens: int = 4608
    context: int = 512
    noise: float = 0.05
    seed: int = 0
    answer: int = 0
    prompt: int = 0

    def run(self, policy: WindowPolicy | Fixed, phases: Sequence[Phase]) -> Outcome:
        """Let the population follow `phases`; sessions beyond the number wanted leave, new ones open."""
        return _Run(self, policy, phases).go()


class _Run:
    def __init__(self, world: World, policy: WindowPolicy | Fixed, phases: Sequence[Phase]) -> None:
        self.world, self.phases = world, phases
        self.policy = None if isinstance(policy, Fixed) else policy
        self.fixed = policy.window if isinstance(policy, Fixed) else 0
        num = max(phase.sessions for phase in phases)
        self.rng = np.random.default_rng(world.seed)
        self.passes, devices = world.fleet.lay_out(num, world.max_window)
        self.draft_s = np.array([device.draft_s for device in devices])
        self.most = np.array([device.most for device in devices], np.int64)
        self.ahead = np.array([device.ahead for device in devices])
        self.spared_s = np.zeros(num)  # of drafting its next round: done while the last one was away
        self.sent_at = np.zeros(num)
        self.gain = np.cumsum(np.cumprod(np.insert(self.passes, 0, 1.0, axis=1), axis=1), axis=1)
        self.limit = np.zeros(num, np.int64)
        self.drafts = np.zeros(num, np.int64)  # of the next round: what the device makes of its limit
        self.left = np.full(num, np.iinfo(np.int64).max)  # tokens of its answer
        self.prompt = np.zeros(num, np.int64)  # tokens of prefill in its next step
        self.ready_at = np.full(num, np.inf)  # when its round is there, or its stream has begun
        self.told_at = np.zeros(num)  # last verdict
        self.fresh = np.ones(num, bool)  # its next arrival is the beginning of a round that the policy has not heard of
        self.now, self.steps, self.verdicts, self.changes, self.generation = 0.0, 0, 0, 0, 0
        self.ids: list[bytes] = [b""] * num
        self.active = 0

    def go(self) -> Outcome:
        goodput, mean_limit, changes = [], [], []
        for phase in self.phases:
            self.resize(phase.sessions)
            end, counted_from = self.now + phase.seconds, self.now + phase.settle_s
            committed, limits, steps, began = 0.0, 0.0, 0, None
            while self.now < end:
                tokens, started = self.step()
                if started >= counted_from:
                    began = started if began is None else began
                    committed += tokens
                    limits += float(self.limit[: self.active].mean())
                    steps += 1
            goodput.append(committed / (self.now - (began if began is not None else counted_from)))
            mean_limit.append(limits / max(steps, 1))
            changes.append(self.changes - sum(changes))
        return Outcome(goodput, mean_limit, changes, self.steps, self.verdicts)

    def resize(self, wanted: int) -> None:
        for i in range(wanted, self.active):
            self.ready_at[i] = np.inf
            if self.policy is not None:
                self.policy.closed(self.ids[i])
        for i in range(self.active, wanted):
            self.open(i, -(-self.world.answer * (i + 1) // wanted))
        new = np.arange(self.active, wanted)
        self.active = wanted
        self.think(new, first=True)

    def open(self, i: int, answer: int) -> None:
        self.generation += 1
        self.ids[i] = self.generation.to_bytes(8, "little")
        limit = self.fixed
        if self.policy is not None:
            self.policy.opened(self.ids[i], owner=str(i))
            limit = min(self.policy.limit(self.ids[i], self.now), self.world.max_window)
        self.limit[i], self.drafts[i] = limit, min(limit, self.most[i])
        self.told_at[i], self.fresh[i], self.prompt[i] = np.nan, True, self.world.prompt
        if self.world.answer:
            self.left[i] = answer

    def reopen(self, who: Ints, accepted: Ints) -> None:
        """Sessions whose answer is complete give their place to others, which the same devices open."""
        self.left[who] -= accepted + 1
        ended = who[self.left[who] <= 0]
        for i in ended.tolist():
            if self.policy is not None:
                self.policy.closed(self.ids[i])
            self.open(i, self.world.answer)
        self.think(ended)

    def think(self, who: NDArray[np.int64], *, first: bool = False) -> None:
        """When the next round of each is there, counted from now."""
        drafting_s = np.maximum(0.0, self.drafts[who] * self.draft_s[who] - self.spared_s[who])
        self.spared_s[who] = 0.0
        seconds = self.world.fleet.link_s + drafting_s
        seconds = seconds * (1.0 + self.world.noise * self.rng.standard_normal(len(who)).clip(-3, 3))
        if first:  # not all in the same moment
            seconds = seconds + self.rng.random(len(who)) * 0.02
        self.ready_at[who] = self.sent_at[who] = self.now + seconds

    def draft_ahead(self, who: Ints, accepted: Ints) -> None:
        """Drafts made while a round was away are the next one's if all of it, and the token hoped for, came true."""
        drafts, draft_s = self.drafts[who], self.draft_s[who]
        right = self.rng.random(len(who)) < self.passes[who, np.minimum(drafts, self.world.max_window - 1)]
        right &= self.ahead[who] & (accepted == drafts) & (drafts > 0)
        spent_s = np.minimum(self.now - self.sent_at[who], (self.most[who] + 1) * draft_s)
        self.spared_s[who] = np.where(right, np.maximum(0.0, spent_s - draft_s), 0.0)

    def step(self) -> tuple[float, float]:
        """One step of the server; returns the committed tokens and when it began."""
        world = self.world
        self.now = max(self.now, float(self.ready_at.min()))
        if self.policy is not None:
            self.gather(self.policy)
        started = self.now
        who = np.nonzero(self.ready_at <= self.now)[0]
        widths = self.drafts[who] + self.prompt[who] + 1
        if int(widths.sum()) > world.batch_tokens:
            order = np.argsort(self.ready_at[who], kind="stable")
            keep = order[: max(1, int(np.searchsorted(np.cumsum(widths[order]), world.batch_tokens, "right")))]
            who = np.sort(who[keep])
            widths = self.drafts[who] + self.prompt[who] + 1
        tokens = int(widths.sum())
        self.prompt[who] = 0
        took = world.step_time(float(tokens), float(len(who)))
        took *= 1.0 + world.noise * float(np.clip(self.rng.standard_normal(), -3, 3))
        self.now += took
        self.steps += 1
        self.verdicts += len(who)
        alive = self.rng.random((len(who), world.max_window)) < self.passes[who]
        alive &= np.arange(world.max_window) < self.drafts[who, None]
        accepted = np.logical_and.accumulate(alive, axis=1).sum(axis=1)
        # what is counted is the mean of what these rounds commit, so that chance does not choose the best window
        committed = float(self.gain[who, self.drafts[who]].sum())
        if self.ahead.any():
            self.draft_ahead(who, accepted)
        if self.policy is None:
            self.told_at[who] = self.now
            self.think(who[self.limit[who] > 0])
            self.ready_at[who[self.limit[who] == 0]] = self.now
        else:
            self.tell(self.policy, who, accepted, tokens, took)
        if world.answer:
            self.reopen(who, accepted)
        return committed, started

    def gather(self, policy: WindowPolicy) -> None:
        """Tell of the rounds that have come, and wait for as many more as the policy waits for."""
        while True:
            for i in np.nonzero(self.fresh & (self.ready_at <= self.now))[0].tolist():
                self.fresh[i] = False
                if self.limit[i] > 0:
                    think_s = float(self.ready_at[i] - self.told_at[i])
                    policy.round(self.ids[i], int(self.drafts[i]), None if np.isnan(think_s) else think_s)
            if (self.prompt[self.ready_at <= self.now] > 0).any():
                return  # nothing is put off beside a text that is to be computed
            until = policy.begins(self.now)
            if until <= self.now:
                return
            self.now = min(until, float(self.ready_at.min(where=self.ready_at > self.now, initial=np.inf)))

    def tell(
        self, policy: WindowPolicy, who: NDArray[np.int64], accepted: NDArray[np.int64], tokens: int, took: float
    ) -> None:
        drafted = self.limit[who].tolist()
        for i, good in zip(who.tolist(), accepted.tolist(), strict=True):
            policy.verdict(self.ids[i], int(self.drafts[i]), good)
        policy.step(tokens, len(who), len(who) * self.world.context, took)
        new = [min(policy.limit(self.ids[i], self.now), self.world.max_window) for i in who.tolist()]
        self.changes += sum(a != b for a, b in zip(drafted, new, strict=True))
        self.limit[who] = new
        self.drafts[who] = np.minimum(self.limit[who], self.most[who])
        self.told_at[who] = self.now
        was, now = np.array(drafted), np.array(new)
        thinking = (was > 0) | (now > 0)  # a stream that goes on needs no word from its device
        self.fresh[who[thinking]] = True
        self.think(who[thinking])
        # the stream of one that stays at 0 is in the next step
        self.ready_at[who[~thinking]] = self.now
