"""The window limit as backpressure: how many tokens each device may draft so that the whole system commits most.

Pure: no sockets, clock or randomness. docs/spec/sled-goodput.md says what is maximised and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sled.gathering import Gathering
from sled.owned import Owned
from sled.plan_trials import Trials
from sled.step_cost import StepCost
from sled.survival import Survival, Survivals, ThinkTime, ThinkTimes
from sled.window_plan import Demand, Plan, Rule, best_plan, cycles, kinds, size_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REPLAN_S, REPLAN_MOST_S = 0.05, 0.5  # between plans
REPLAN_NEWS = 0.05  # rounds, in parts of those heard at this load, after which a plan is made before that most
REPLAN_SHARE = 0.25  # of the active sessions that came or went since: then a plan is made at once
AWAY = 4.0  # cycles without a verdict, after which a session is not counted as active
STRAY_ROUNDS = 32  # once in so many rounds a session's window is another, which tells drafting time from link
SCOUT_S, SCOUT_MAX_S = 1.0, 81.0  # between trials of sessions that do not draft, three times as long each time
SCOUT_BUDGET = 0.005  # of the time since the last trial is what the next one may cost, in seconds of the whole server
SCOUT_SHARE, SCOUT_ROUNDS = 64, 8  # one in so many sessions, for so many rounds
SCOUT_WAIT = 3.0  # times what so many rounds take, after which one that has not made them is waited for no longer
SCOUT_LEAST, SCOUT_HOPELESS = 3, 0.75  # after so many, one that committed less than so much of what would pay ends
MEAN_STEPS = 30.0  # steps that means of context and prefill go back
LEAST_HORIZON_S = 1.0  # that a plan is thought to last; as long as the load has lasted, where that is longer
STRANGERS = 0.5  # share of rounds without drafts, of sessions that may draft, beyond which no plan is judged by them
ALONE_SHARE, ALONE_STEPS, ALONE_AT_MOST = 0.75, 3, 12  # what the server does alone is known after so many steps of such


@dataclass(frozen=True, slots=True)
class Pace:
    """One session as the plan sees it.

    Args:
        survival: of its drafts.
        think: time between verdict and round.
        context: positions its rounds read.
        rate: tokens per second promised; 0 promises nothing.
    """

    survival: Survival
    think: ThinkTime
    context: int = 0
    rate: float = 0.0


def window_limits(paces: Sequence[Pace], cost: StepCost, max_window: int) -> list[int]:
    """The window of each session under which all together commit most tokens per second, by the model.

    Args:
        paces: the active sessions.
        cost: of steps.
        max_window: no limit is above this.

    Returns:
        A limit per session, 0 .. max_window; 0 has the server decode.

    Raises:
        ValueError: a negative `max_window`.

    Source: goodput as the aim, SmartSpec, arXiv 2406.14066; the closed network is ours.
    """
    if max_window < 0:
        raise ValueError(f"max_window is {max_window}, give 0 and more")
    if not paces:
        return []
    curves = [pace.survival.curves(max_window) for pace in paces]
    drafts = np.array([curve for _, curve in curves])
    think = np.array([[pace.think.predict(0.0), pace.think.predict(1.0)] for pace in paces])
    demand = _demand(
        np.array([curve for curve, _ in curves]),
        drafts,
        think[:, :1] + (think[:, 1:] - think[:, :1]) * _drafted(drafts),
        np.array([pace.rate for pace in paces]),
        context=float(np.mean([pace.context for pace in paces])),
    )
    plan = None
    for _ in range(3):  # each plan tells how long steps are, which the prices of the next one need
        plan = best_plan(demand, cost, plan)
    assert plan is not None
    return [int(window) for window in plan.windows]


def _drafted(drafts: Floats) -> Floats:
    """(n, K + 1) tokens that a device is expected to draft under each window; it may draft fewer than it may."""
    return np.cumsum(drafts, axis=1) - 1.0


def _demand(
    survive: Floats,
    drafts: Floats,
    think: Floats,
    rate: Floats,
    *,
    context: float = 0.0,
    prefill: float = 0.0,
    texts: float = 0.0,
    deviation: float = 0.05,
) -> Demand:
    think = np.maximum(think, 1e-6)
    think[:, 0] = 0.0
    width = np.cumsum(drafts, axis=1)
    return Demand(np.cumsum(survive, axis=1), width, think, rate, prefill, context, texts, deviation)


class GoodputPolicy:
    """Learns what steps, drafts and devices are like, and gives every session its window limit.

    A plan for all active sessions is made at most every 50 ms, at once when a quarter of them came or went.

    Args:
        max_window: no limit is above this.

    Raises:
        ValueError: a negative `max_window`.
    """

    def __init__(self, max_window: int) -> None:
        if max_window < 0:
            raise ValueError(f"max_window is {max_window}, give 0 and more")
        self.max_window = max_window
        self.cost = StepCost()
        self.plans = 0
        self._rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._owners: dict[bytes, str] = {}
        self._owned = Owned()
        self._survivals, self._thinks = Survivals(0, max(1, max_window)), ThinkTimes(0)
        self._limits: list[int] = []  # by row: what the plan says
        self._told: list[int] = []  # by row: what the device was told
        self._seen: list[float] = []  # by row: when its limit was last asked for
        self._rates: list[float] = []
        self._thinking: list[tuple[Floats, float] | None] = []  # by row: think time by window, and deviation, s
        self._came: list[bool] = []  # by row: a round since it was last told a limit with a verdict
        self._heard: list[bool] = []  # by row: a verdict since its limit was last asked for
        self._gathering = Gathering()
        self._rounds: list[int] = []  # by row: rounds with drafts
        self._decided: list[int] = []  # by row: rounds since the last plan
        self._plan: Plan | None = None
        self._undrafted = 0  # rounds of sessions that may draft and did not, since the last plan
        self._step_alone = 0  # rounds of this step that had no drafts
        self._alone: dict[int, int] = {}  # size of the load -> steps in which the server did nearly all alone
        self._asked_alone: dict[int, int] = {}  # size of the load -> steps done since it was first asked to
        self._verdicts: list[tuple[int, int, int, int]] = []  # row, drafted, accepted, limit
        self._thought: list[tuple[int, float, float]] = []  # row, drafted, seconds
        self._step_tokens, self._prefill, self._context = 0, 0.0, 0.0
        self._texts = 0.0  # share of steps with prefill
        self._planned_at, self._now = -1e9, 0.0
        self._began_at: float | None = None  # all times are counted from the first one that is told
        self._changed, self._active = 0, 0
        self._trials, self._weighed_at = Trials(), 0
        self._load, self._load_since = 0, 0.0  # about how many sessions there are, and since when
        self._heard_rounds = 0  # with drafts, at this load
        self._scouts: dict[int, int] = {}  # row -> rounds at which it has seen enough
        self._found: dict[int, int] = {}  # row of a scout -> tokens its rounds committed
        self._scout_at, self._scout_pause, self._drafters, self._scouted = SCOUT_S, SCOUT_S, 0, 0.0
        self._scouts_end = 0.0

    def opened(self, session_id: bytes, rate: float = 0.0, owner: str = "") -> None:
        """See `sled.server.WindowPolicy.opened`."""
        row = self._rows.get(session_id)
        if row is None:
            row = self._rows[session_id] = self._free.pop() if self._free else self._grow()
            self._learn()  # of who had the row before
            self._owners[session_id] = owner
            counts, sums = self._owned.past(owner, self._now) or (None, None)
            self._survivals.reset(row, counts)
            self._thinks.reset(row, sums)
            self._limits[row] = self._told[row] = -1
            self._rounds[row] = self._decided[row] = 0
            self._thinking[row], self._came[row], self._heard[row] = None, False, False
            self._changed += 1
        self._rates[row] = rate
        self._seen[row] = self._now

    def round(self, session_id: bytes, drafted: int, think_s: float | None) -> None:
        """See `sled.server.WindowPolicy.round`."""
        row = self._rows.get(session_id)
        if row is None:
            return
        self._gathering.here(row)
        self._came[row] = True
        if think_s is not None and think_s >= 0.0:
            self._thought.append((row, float(drafted), think_s))

    def verdict(self, session_id: bytes, drafted: int, accepted: int) -> None:
        """See `sled.server.WindowPolicy.verdict`."""
        self._step_tokens += drafted + 1
        row = self._rows.get(session_id)
        if row is None:
            return
        self._heard[row] = True
        if drafted == 0:
            self._step_alone += 1
        if drafted == 0 < self._told[row]:
            self._undrafted += 1
        else:
            self._decided[row] += 1
        if drafted > 0:
            self._verdicts.append((row, drafted, accepted, self._told[row]))
            self._rounds[row] += 1
            if row in self._scouts:
                self._found[row] = self._found.get(row, 0) + accepted + 1

    def step(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """See `sled.server.WindowPolicy.step`."""
        self.cost.observe(tokens, rounds, context, took_s)
        self._gathering.began()
        share = 1.0 / MEAN_STEPS
        extra = max(0, tokens - self._step_tokens)
        self._prefill += share * (extra - self._prefill)
        self._texts += share * (float(extra > 0) - self._texts)
        if rounds > 0 and self._step_alone >= ALONE_SHARE * rounds:
            size = size_of(rounds)
            self._alone[size] = self._alone.get(size, 0) + 1
        self._step_tokens = self._step_alone = 0
        if rounds > 0:
            self._context += (share if self._context else 1.0) * (context / rounds - self._context)

    def measured(self, tokens: int, rounds: int, took_s: float) -> None:
        """A step was computed to find out what it takes, before there were sessions; `step` has the arguments."""
        self.cost.observe(tokens, rounds, 0, took_s)
        if tokens == rounds > 0:
            self._alone[size_of(rounds)] = ALONE_STEPS

    def limit(self, session_id: bytes, now: float) -> int:
        """See `sled.server.WindowPolicy.limit`; 0 for a session that was not opened."""
        if self._began_at is None:
            self._began_at = now
        now -= self._began_at
        self._now = max(self._now, now)
        row = self._rows.get(session_id)
        if row is None:
            return 0
        self._seen[row] = now
        since, news = now - self._planned_at, len(self._verdicts)
        told = news > REPLAN_NEWS * self._heard_rounds or self._scouts
        if since >= (REPLAN_S if told else REPLAN_MOST_S) or self._changed > REPLAN_SHARE * self._active:
            self._replan(now)
        window = self._limits[row]
        if window < 0:  # it came after the plan was made
            window = self._limits[row] = self._newcomer(row)
        if window > 0 and self._rounds[row] % STRAY_ROUNDS == 1:
            shorter = window // 2 if self._rounds[row] == 1 else window - 1
            window = shorter if window > 1 else min(2, self.max_window)
        self._expect(row, window, now)
        self._told[row] = window
        return window

    def _expect(self, row: int, window: int, now: float) -> None:
        """Its next round, if it drafts one: a stream that begins, or that may draft and does not, is not waited for."""
        known = self._thinking[row]
        follows = self._heard[row] and (self._came[row] or self._told[row] == 0)
        if window > 0 and known is not None and follows:
            think_s = float(known[0][window])
            self._gathering.away(row, now + think_s, known[1], think_s)
        else:
            self._gathering.here(row)
        self._came[row] = self._heard[row] = False

    def begins(self, now: float) -> float:
        """See `sled.server.WindowPolicy.begins`."""
        if self._plan is None or self._plan.patience_s <= 0.0 or self._began_at is None:
            return now
        until = self._gathering.until(now - self._began_at, self._plan.patience_s)
        return max(now, self._began_at + until)

    def closed(self, session_id: bytes) -> None:
        """See `sled.server.WindowPolicy.closed`."""
        row = self._rows.pop(session_id, None)
        if row is not None:
            self._gathering.here(row)
            self._scouts.pop(row, None)
            self._free.append(row)
            self._changed += 1
            owner = self._owners.pop(session_id)
            if owner and self._rounds[row] > 0:
                self._learn()
                self._owned.ended(owner, self._survivals.learned(row), self._thinks.learned(row), self._now)

    @property
    def mean_limit(self) -> float:
        """Mean window limit told to the sessions there are."""
        told = [max(0, self._told[row]) for row in self._rows.values()]
        return sum(told) / len(told) if told else 0.0

    def _grow(self) -> int:
        row = len(self._limits)
        if row >= self._survivals.rows:
            self._survivals.grow(max(16, row * 2))
            self._thinks.grow(max(16, row * 2))
        for table in (self._limits, self._told, self._rounds, self._decided):
            table.append(-1)
        self._seen.append(0.0)
        self._thinking.append(None)
        self._came.append(False)
        self._heard.append(False)
        self._rates.append(0.0)
        return row

    def _learn(self) -> None:
        """Take in what was told since the last time."""
        if self._verdicts:
            self._heard_rounds += len(self._verdicts)
            rows, drafted, accepted, limits = np.array(self._verdicts, np.int64).T
            self._survivals.observe(rows, drafted, accepted, limits)
            self._verdicts.clear()
        if self._thought:
            values = np.array(self._thought)
            self._thinks.observe(values[:, 0].astype(np.int64), values[:, 1], values[:, 2])
            self._thought.clear()

    def _demand_of(self, rows: Ints) -> Demand:
        survive, drafts = self._survivals.curves(rows)
        z0, z1, deviation = self._thinks.lines(rows)
        think = z0[:, None] + z1[:, None] * _drafted(drafts)
        rates = np.array([self._rates[row] for row in rows.tolist()])
        relative = deviation / np.maximum(think[:, -1], 1e-6)
        scatter = float(np.clip(relative.mean(), 0.03, 0.5))
        return _demand(
            survive, drafts, think, rates,
            context=self._context, prefill=self._prefill, texts=self._texts, deviation=scatter,
        )  # fmt: skip

    def _replan(self, now: float) -> None:
        self._learn()
        if self._changed > REPLAN_SHARE * self._active:
            self._scout_pause = SCOUT_S
        if abs(size_of(len(self._rows)) - self._load) > 1:
            self._load, self._load_since, self._heard_rounds = size_of(len(self._rows)), now, 0
        elapsed, self._planned_at, self._changed = min(now - self._planned_at, 60.0), now, 0
        rows = np.fromiter(self._rows.values(), np.int64, len(self._rows))
        limits = np.array(self._limits, np.int64)
        self._survivals.relax(rows[limits[rows] == 0], elapsed)
        z0, z1, deviation = self._thinks.lines(rows)
        cycle = z0 + z1 * np.maximum(limits[rows], 0) + (4.0 * self._plan.step_s if self._plan else 1.0)
        active = now - np.array(self._seen)[rows] <= AWAY * cycle + 0.1
        rows, deviation = rows[active], deviation[active]
        self._active = len(rows)
        if not len(rows) or self.max_window == 0:
            return
        demand = self._demand_of(rows)
        for row, think, deviates in zip(rows.tolist(), demand.think, deviation.tolist(), strict=True):
            self._thinking[row] = think, deviates
        self._weigh(rows, demand, now, elapsed)
        present = self._plan
        if present is not None:
            held = limits[rows]
            held[[row in self._scouts for row in rows.tolist()]] = 0
            late = held < 0
            if late.any():
                held[late] = present.rule.windows(demand.of(np.nonzero(late)[0]))
            present = replace(present, windows=held)
        self.plans += 1
        self._plan = best_plan(
            demand, self.cost, present, self._trials.known(now), max(LEAST_HORIZON_S, now - self._load_since)
        )
        if not self._knows_alone(len(rows)):
            self._plan = replace(self._plan, windows=np.zeros(len(rows), np.int64), rule=Rule(0), patience_s=0.0)
        for row, window in zip(rows.tolist(), self._plan.windows.tolist(), strict=True):
            self._limits[row] = window
        self._scout(rows, demand, self._plan, now)

    def _knows_alone(self, sessions: int) -> bool:
        """Whether it is known, not guessed, what the server does alone: it is what no plan may fall behind.

        Prefill and devices that go on drafting may be in every step, so it is not waited for without end.
        """
        size = size_of(sessions)
        since = self._asked_alone.setdefault(size, self.cost.observations)
        if self.cost.observations - since >= ALONE_AT_MOST:
            return True
        return any(self._alone.get(near, 0) >= ALONE_STEPS for near in (size - 1, size, size + 1))

    def _weigh(self, rows: Ints, demand: Demand, now: float, elapsed: float) -> None:
        """Hold what the present plan commits against what the model says of it.

        Both count rounds with the same belief of what a round commits, so chance in acceptance does not matter: what
        is compared is how often rounds come round.
        """
        rounds = np.array(self._decided, np.float64)[rows]
        self._decided = [0] * len(self._decided)
        undrafted, self._undrafted = self._undrafted, 0
        steps, self._weighed_at = self.cost.observations - self._weighed_at, self.cost.observations
        if self._plan is None:
            return
        windows = np.maximum(np.array(self._limits, np.int64)[rows], 0)
        (kind,) = kinds(windows[None], demand, len(rows), waits=self._plan.patience_s > 0.0)
        cycle = float(demand.think.max()) + 2.0 * self._plan.step_s
        followed = undrafted <= STRANGERS * (float(rounds.sum()) + undrafted)  # else it is not the plan that was tried
        if self._trials.told(kind, now=now, elapsed_s=elapsed, cycle_s=cycle) and not self._scouts and followed:
            committed = float(rounds @ demand.gain[np.arange(len(rows)), windows]) + undrafted
            self._trials.add(committed, self._plan.goodput * elapsed, steps, now=now)

    def _scout(self, rows: Ints, demand: Demand, plan: Plan, now: float) -> None:
        """Have one in so many sessions that do not draft do so for some rounds: what changed is found out by few.

        Not those for whom drafting would not pay even if far more of it survived than is known.
        """
        idle = np.nonzero(plan.windows == 0)[0]
        if self._drafters == 0 < len(rows) - len(idle):
            self._scout_pause = SCOUT_S
        self._drafters = len(rows) - len(idle)
        if not len(idle):
            self._scouts.clear()
            return
        survive = np.diff(demand.gain[idle], axis=1, prepend=0.0)
        speed = np.cumsum(np.sqrt(survive), axis=1) / cycles(demand.think[idle], plan.step_s, busy=False)
        rounds = [self._rounds[row] for row in rows[idle].tolist()]
        open_to = idle[(speed[:, 1:].max(axis=1) > 1.0 / plan.step_s) | (np.array(rounds) == 0)]
        num, context, scouts_at_once = float(len(rows)), self._context * len(rows), max(1, len(rows) // SCOUT_SHARE)
        alone = self.cost.predict(num, num, context)
        # at worst no draft survives: one token a cycle where the server would commit one a step, and all steps longer
        lost = cycles(demand.think[idle, 1:], plan.step_s, busy=len(rows) > 1).mean() - plan.step_s
        more = scouts_at_once * float(demand.width[idle, 1:].mean() - 1.0)
        longer = self.cost.predict(num + more, num, context) - alone
        lost_s = SCOUT_ROUNDS * (float(lost) * scouts_at_once / len(rows) + longer)
        if now >= self._scout_at and len(open_to) and lost_s <= SCOUT_BUDGET * (now - self._scouted):
            self._scouted = now
            self._scout_at = now + self._scout_pause
            self._scout_pause = min(3.0 * self._scout_pause, SCOUT_MAX_S)
            first = self.plans % len(open_to)
            chosen = open_to[(first + np.arange(scouts_at_once)) % len(open_to)]
            slowest_s = float(cycles(demand.think[chosen], plan.step_s, busy=len(rows) > 1).max())
            self._scouts_end = now + SCOUT_WAIT * SCOUT_ROUNDS * slowest_s
            self._scouts = {int(rows[at]): self._rounds[rows[at]] + SCOUT_ROUNDS for at in chosen.tolist()}
            self._found.clear()
        if not self._scouts or now > self._scouts_end:  # a device decides by itself whether it drafts
            self._scouts = {}
            return
        price = (self.cost.predict(num * 1.25, num, context) - alone) / (0.25 * alone)  # what a token takes from others
        scouts = {}
        for at in open_to.tolist():
            row = int(rows[at])
            until = self._scouts.get(row, 0)
            if self._rounds[row] < until:
                cycle = cycles(demand.think[at], plan.step_s, busy=len(rows) > 1)
                worth = demand.gain[at] - min(price, 0.9) * demand.width[at]
                window = 1 + int(np.argmax((worth / cycle)[1:]))
                done = self._rounds[row] - until + SCOUT_ROUNDS
                pays = done * float(cycle[window]) / plan.step_s
                if done < SCOUT_LEAST or self._found.get(row, 0) >= SCOUT_HOPELESS * pays:
                    scouts[row], self._limits[row] = until, window
        self._scouts = scouts

    def _newcomer(self, row: int) -> int:
        if self._plan is None:
            return 0
        return int(self._plan.rule.windows(self._demand_of(np.array([row])))[0])
