"""Which windows commit most tokens per second: plans for a batch server and thinking devices, made and weighed.

Pure: no sockets, clock or randomness. The model is a closed queueing network with one server that takes all that waits
into its next step (docs/spec/sled-goodput.md): plans are made by a price for computed tokens, and weighed by rolling
the network forward for some tens of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from sled.gathering import LATE, LATE_SHARE
from sled.step_cost import StepCost

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = tuple[int, int, int, bool]

PRICES = np.array([0.0, 0.2, 0.4, 0.6, 0.75])  # committed tokens that one computed token must bring
MAX_SEATS = 32  # sessions that a plan is weighed with; beyond, each stands for several
WARM_STEPS, STEPS = 6, 22
TRIAL = 1.03  # a plan of a kind that was never in force is thought so much better, or a root of it
HYSTERESIS = 1.01  # a plan replaces the present one if it commits so much more
BLUR = 0.25  # of a step, by which an arrival misses or catches the next one
NOISE = 0.17  # breadth of a step's deviation, so that no plan rests on arrivals that hit a step's end exactly
PATIENCE = (0.0, 0.15, 0.4)  # of a mean step, that a step may wait for rounds that are about to come
UNWAITED = 0.97  # of what the model says is believed of waiting that was not tried: it rests on when rounds come
RARE_TEXTS = 0.6  # of the steps have a text to compute, where waiting in the others is thought of
PATIENT = 1.02  # a step waits if the plan commits so much more for it
_PHASES = (np.arange(4096) * 0.6180339887498949) % 1.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What sessions would do under every window 0 .. K.

    Args:
        gain: (n, K + 1) tokens a round commits.
        width: (n, K + 1) tokens it computes, drafts and the one before them.
        think: (n, K + 1) seconds between verdict and round; 0 for window 0, which the server decodes.
        rate: (n,) tokens per second promised; 0 promises nothing.
        prefill: tokens of prefill in a mean step.
        texts: share of the steps that have prefill; no step is put off beside it.
        context: positions that a round reads.
        deviation: relative, of think times.
    """

    gain: Floats
    width: Floats
    think: Floats
    rate: Floats
    prefill: float = 0.0
    context: float = 0.0
    texts: float = 0.0
    deviation: float = 0.05

    def of(self, which: Ints) -> Demand:
        """That of some of the sessions."""
        return replace(
            self, gain=self.gain[which], width=self.width[which], think=self.think[which], rate=self.rate[which]
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """How a plan chooses windows: the same `window` for all, or by `price` where steps take `step_s`.

    `busy` tells whether the server has a step under way whenever a round arrives.
    """

    window: int = -1
    step_s: float = 0.0
    price: float = 0.0
    busy: bool = True

    def windows(self, demand: Demand) -> Ints:
        """(n,) the window of each session."""
        if self.window >= 0:
            return np.full(len(demand.gain), min(self.window, demand.gain.shape[1] - 1))
        cycle = cycles(demand.think, self.step_s, busy=self.busy)
        worth: Ints = np.argmax((demand.gain - self.price * demand.width) / cycle, axis=1)
        return worth


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows (n,), where they come from, and what they are expected to commit, tokens/s, at which mean step.

    `patience_s` is how long a step waits for rounds that are about to come.
    """

    windows: Ints
    rule: Rule
    goodput: float
    step_s: float
    patience_s: float = 0.0


def cycles(think: Floats, step_s: float, *, busy: bool = True) -> Floats:
    """Seconds from verdict to verdict: think, wait for the step under way, be in the next.

    A round that arrives while a step runs waits for its end: with steps back to back a cycle is a whole number of them,
    blurred where arrivals scatter around a step's end. One with no think time is in every step.
    """
    if not busy:
        return think + step_s
    steps = think / step_s
    whole = 1.0 + sum(np.clip((steps - m) / BLUR + 0.5, 0.0, 1.0) for m in (1, 2))
    whole = np.where(steps > 2.5, steps + 0.5, whole)
    return np.where(think > 0.0, (whole + 1.0) * step_s, step_s)


def size_of(sessions: int) -> int:
    """About how many sessions: half octaves."""
    return round(2.0 * math.log2(max(1, sessions)))


def kinds(windows: Ints, demand: Demand, sessions: int, *, waits: bool = False) -> list[Kind]:
    """What makes plans (plans, n) alike: about how many sessions, mean drafts, whom the server decodes, if steps wait.

    A device may draft fewer tokens than it may, and then two windows are one.
    """
    size = size_of(sessions)
    drafts = demand.width[np.arange(windows.shape[1]), windows] - 1.0
    means, alone = drafts.mean(axis=1).tolist(), (windows == 0).mean(axis=1).tolist()
    return [
        (size, round(2.0 * math.log2(1.0 + mean)), math.ceil(share) + math.floor(share), waits)
        for mean, share in zip(means, alone, strict=True)
    ]


def best_plan(
    demand: Demand,
    cost: StepCost,
    present: Plan | None = None,
    known: Mapping[Kind, float] | None = None,
    horizon_s: float = math.inf,
) -> Plan:
    """The plan that commits most, by the model.

    Among the plans are window 0 for all and every fixed window, so none of these is expected to do better.

    Args:
        demand: of the sessions.
        cost: of steps.
        present: the plan that holds, its windows in the order of these sessions; it stays unless another is better by
            the hysteresis.
        known: for kinds of plans that were in force, what they committed in parts of what the model says. A kind that
            never was is thought better, so that each that may be best is tried once. None tries nothing.
        horizon_s: seconds that a plan is thought to last; it has to make up for what the change to it costs.
    """
    top = demand.gain.shape[1] - 1
    rules = _rules(demand, cost, present.step_s if present else 0.0)
    seats, weight = _seats(demand)
    sample = demand.of(seats)
    chosen: list[Ints] = []
    origin: list[Rule | None] = []
    seen = set()
    if present is not None:
        held = np.minimum(present.windows, top)
        chosen.append(held[seats])
        origin.append(None)
        seen.add(chosen[0].tobytes())
    for made, windows in _windows_of(rules, sample):
        key = windows.tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(windows)
            origin.append(made)
    plans = np.stack(chosen)
    by_patience, steps_s = most_patient(plans, sample, weight, cost)
    worth = _worth(known, kinds(plans, sample, len(demand.gain))) if known is not None else np.ones_like(by_patience)
    wanted = by_patience * worth
    wanted[1:] /= PATIENT
    which, every = np.argmax(wanted, axis=0), np.arange(len(plans))
    goodput, step_s, hoped = by_patience[which, every], steps_s[which, every], (by_patience * worth)[which, every]
    patience_s = np.array(PATIENCE)[which] * step_s
    if origin[0] is None and horizon_s < math.inf:
        # whom the server decoded commits nothing while it drafts its first round
        begins = (plans[0] == 0) & (plans > 0)
        idle_s = (begins * sample.think[np.arange(len(seats)), plans]).mean(axis=1)
        hoped = hoped * (1.0 - np.minimum(idle_s / horizon_s, 1.0))
    best = int(np.argmax(hoped))
    if origin[0] is None and hoped[best] < hoped[0] * HYSTERESIS:
        best = 0
    rule = origin[best]
    if rule is not None:
        windows = rule.windows(demand)
    else:
        assert present is not None
        rule, windows = present.rule, held
    windows = keep_promises(windows, demand, float(step_s[best]))
    return Plan(windows, rule, float(goodput[best]), float(step_s[best]), float(patience_s[best]))


def _worth(known: Mapping[Kind, float], of: list[Kind]) -> Floats:
    """(patiences, plans) what the model's word is thought to be worth; `of` are their kinds if no step waits.

    The more plans of so many sessions were tried, the more the model is trusted for the others. One whose steps wait is
    believed no more than the same one without, which is believed whatever became of the other.
    """
    tried = {kind[:2] for kind in known}
    hope = TRIAL ** (1.0 / (1.0 + sum(kind[0] == of[0][0] for kind in known)))
    # what the server does alone was measured: there is nothing to hope
    plain = [known.get(kind, 1.0 if kind[:2] in tried or kind[2] == 2 else hope) for kind in of]
    waits = []
    for kind, worth in zip(of, plain, strict=True):
        waits.append(known.get((*kind[:3], True), UNWAITED * min(1.0, worth)))
    return np.array([plain] + [waits] * (len(PATIENCE) - 1))


def most_patient(windows: Ints, demand: Demand, weight: Floats, cost: StepCost) -> tuple[Floats, Floats]:
    """`roll_forward` of some plans under every patience, by patience and plan: (patiences, plans) each."""
    goodput, step_s = (np.zeros((len(PATIENCE), len(windows))) for _ in range(2))
    goodput[:], step_s[:] = -1.0, 1.0
    # else nobody is waited for, or most steps may not wait
    some = (windows > 0).any(axis=1) & (len(demand.gain) > 1 and demand.texts < RARE_TEXTS)
    rows, which = np.nonzero(np.outer(np.array(PATIENCE) > 0.0, some) | (np.array(PATIENCE) == 0.0)[:, None])
    goodput[rows, which], step_s[rows, which] = roll_forward(
        windows[which], demand, weight, cost, np.array(PATIENCE)[rows]
    )
    return goodput, step_s


def roll_forward(
    windows: Ints, demand: Demand, weight: Floats, cost: StepCost, patience: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Tokens per second and mean step, seconds, of some plans: the network is followed for some tens of steps.

    Args:
        windows: (plans, n) the window of each session under each plan.
        demand: of the n sessions.
        weight: (n,) sessions that each stands for.
        cost: of steps.
        patience: (plans,) how long a step waits for rounds that are expected, once there is something to do, in parts
            of a mean step. As in `Gathering`, which cannot know when they come, until they are there or late.
    """
    plans, num = windows.shape
    at = np.arange(num)[:, None]
    patient = bool(np.any(patience))
    windows = windows.T
    think = demand.think[at, windows]
    # the sums of a step: rounds, computed tokens, committed tokens
    parts = np.stack([np.ones_like(think), demand.width[at, windows], demand.gain[at, windows]]) * weight[:, None]
    price = cost.lines()
    ready = think * _PHASES[:num, None]
    now, before = np.zeros(plans), np.zeros(plans)
    committed, seconds, busy, steps = np.zeros(plans), np.zeros(plans), np.zeros(plans), 0.0
    swing = demand.deviation * 12.0**0.5  # phases are evenly spread over 0 .. 1
    turns = np.arange(WARM_STEPS + STEPS)
    late = 1.0 + swing * (_PHASES[(turns[:, None] * (num + 17) + at[:, 0] + num) % 4096] - 0.5)
    expected, given_up = ready.copy(), ready.copy()
    grace = (1.0 + LATE * demand.deviation + LATE_SHARE) * think
    edge = np.minimum(np.arange(1.0, STEPS + 1), np.arange(STEPS, 0.0, -1))
    shares = np.minimum(1.0, edge / 6.0)  # no edge counts whole
    slow = 1.0 + NOISE * (_PHASES[3 : 7 * (WARM_STEPS + STEPS) : 7] - 0.5)
    slow /= float(slow[WARM_STEPS:] @ shares) / float(shares.sum())
    mean = np.zeros(plans)
    for step in range(WARM_STEPS + STEPS):
        now = np.maximum(now, ready.min(axis=0))
        if patient:
            until = now + patience * mean
            if _PHASES[step + 1] >= demand.texts:  # a step with a text does not wait, and who comes late scatters
                there = np.minimum(ready, given_up).max(axis=0, where=expected <= until, initial=0.0)
                now = np.maximum(now, np.minimum(there, until))
        waiting = ready <= now
        rounds, tokens, gain = np.einsum("knp,np->kp", parts, waiting)
        took = price(tokens + demand.prefill, rounds, rounds * demand.context)
        took *= slow[step]
        now = now + took
        mean += (took - mean) / (step + 1.0)
        if step >= WARM_STEPS:
            share = float(shares[step - WARM_STEPS])
            committed += share * gain
            seconds += share * (now - before)
            busy += share * took
            steps += share
        before = now
        np.copyto(ready, now + think * late[step][:, None], where=waiting)
        if patient:
            np.copyto(expected, now + think, where=waiting)
            np.copyto(given_up, now + grace, where=waiting)
    return committed / seconds, busy / steps


def _rules(demand: Demand, cost: StepCost, step_s: float) -> list[Rule]:
    """Every fixed window, and prices at several lengths of a step, that of the present plan among them."""
    num, top = len(demand.gain), demand.gain.shape[1] - 1
    rules = [Rule(0)]
    rules += [Rule(k) for k in range(1, top + 1) if k <= 4 or (k % 2 == 0 and (k <= 8 or k % 8 == 0)) or k == top]
    each = demand.context
    times = [cost.predict(num + demand.prefill, num, each * num)]
    half = max(1.0, num / 2.0)
    times.append(cost.predict(half * (1.0 + top // 2) + demand.prefill, half, each * half))
    if step_s > 0.0:
        times.append(step_s)
    spread = num > 1 and bool(np.ptp(demand.gain[:, -1]) > 1e-3 or np.ptp(demand.think[:, -1]) > 1e-5)
    if spread:
        rules += [Rule(-1, t, float(price)) for t in times for price in PRICES]
        rules += [Rule(-1, times[0], float(price), busy=False) for price in PRICES[::2]]
    return rules


def _windows_of(rules: list[Rule], demand: Demand) -> Iterator[tuple[Rule, Ints]]:
    """`Rule.windows` of each, together for those that differ in price alone."""
    for (step_s, busy, fixed), group in groupby(rules, key=lambda rule: (rule.step_s, rule.busy, rule.window >= 0)):
        alike = list(group)
        if fixed:
            yield from ((rule, rule.windows(demand)) for rule in alike)
            continue
        cycle = cycles(demand.think, step_s, busy=busy)
        gain, width = demand.gain / cycle, demand.width / cycle
        prices = np.array([rule.price for rule in alike])[:, None, None]
        yield from zip(alike, np.argmax(gain - prices * width, axis=2), strict=True)


def _seats(demand: Demand) -> tuple[Ints, Floats]:
    """Sessions that stand for all, evenly over their survival, and how many each stands for."""
    num = len(demand.gain)
    if num <= MAX_SEATS:
        return np.arange(num), np.ones(num)
    order = np.argsort(demand.gain[:, -1], kind="stable")
    seats: Ints = order[((np.arange(MAX_SEATS) + 0.5) * num / MAX_SEATS).astype(np.int64)]
    return seats, np.full(MAX_SEATS, num / MAX_SEATS)


def keep_promises(windows: Ints, demand: Demand, step_s: float) -> Ints:
    """Decode on the server for those whom drafting would keep under the rate they were promised."""
    at = np.arange(len(windows))
    speed = demand.gain[at, windows] / cycles(demand.think[at, windows], step_s)
    late = (speed < demand.rate) & (speed < 1.0 / step_s)
    return np.where(late, 0, windows)
