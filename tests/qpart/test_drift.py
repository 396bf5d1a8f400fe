"""Drift in a simulated world: followed when it lasts, not when it is noise, and not when the download costs more."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from qpart.drift import Averages, Drift, DriftLimits, Seen, predicted
from qpart.errors import RequestError
from qpart.plan import plan
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile
from qpart.solve import Solver
from tests.qpart.planner_cases import dense, random_tables

# Where the uplink is slow it pays to run a layer here; where it is fast, to send the input. All of it does not fit.
TABLES = random_tables(dense(512, 64, 16, 8192), 3, law=True)
SOLVER, SERVER = Solver(TABLES), ServerProfile(macs_per_s=1e10)
ROUND_S = 0.01


def request(up: float, inferences: int = 100_000, macs_per_s: float = 2e6) -> Request:
    return Request(
        accuracy=0.05,
        device=DeviceProfile(macs_per_s=macs_per_s, joules_per_mac=0, memory_bytes=60_000),
        channel=Channel(up_bits_per_s=up, down_bits_per_s=3e6, round_trip_s=ROUND_S),
        inferences=inferences,
    )


@functools.cache
def planned(asked: Request):
    return plan(SOLVER, asked, SERVER)


def test_there_is_something_to_adapt_to():
    slow, fast = planned(request(2e4)).pattern.cut, planned(request(1e6)).pattern.cut
    assert fast == 0 < slow < TABLES.network.num_nodes


@dataclass
class World:
    """A device whose uplink has a rate of its own at every moment; one inference after another."""

    rate_at: object
    slower_at: object = staticmethod(lambda t: 1.0)
    noise: float = 0.1
    seed: int = 0
    now: float = 0.0
    cost_s: float = 0.0
    asked: int = 0
    switches: list = field(default_factory=list)

    def run(self, first: Request, seconds: float, policy: str, limits=None):
        """Seconds of all inferences, downloads included; the policy is never, always or drift."""
        chance, answered = random.Random(self.seed), 0
        asked, cached = first, frozenset()
        found = planned(asked)
        drift = Drift(asked, found, limits)
        while self.now < seconds:
            row, true_up = found.rows[found.pattern.cut], self.rate_at(self.now)
            head_s = row.device_time_s * asked.device.macs_per_s / first.device.macs_per_s * self.slower_at(self.now)
            up_s = 8 * row.up_bytes / true_up * math.exp(chance.gauss(0, self.noise))
            sent_at = self.now + head_s
            at = sent_at + ROUND_S + up_s + row.server_time_s
            self.cost_s += at - self.now
            self.now, answered = at + 0.02, answered + 1
            if policy == "never":
                continue
            drift.see(Seen(at, sent_at, row.up_bytes, 1, head_s, row.server_time_s, ROUND_S))
            if policy == "always":
                now = request(self.rate_at(self.now))
            elif drift.wants_plan(now=self.now):
                now = drift.measured()
            else:
                continue
            self.asked += 1
            other = planned(replace(now, cached=cached))
            changed = (other.pattern.cut, other.pattern.live_bits) != (found.pattern.cut, found.pattern.live_bits)
            if policy == "always" or drift.worth(now, other):
                if changed:
                    self.switches.append((self.now, other.pattern.cut))
                    self.cost_s += 8 * other.pattern.download_bytes / now.channel.down_bits_per_s
                nodes = TABLES.network.parametric[: len(other.pattern.weight_bits)]
                cached |= frozenset(zip(nodes, other.pattern.weight_bits, strict=True))
                asked, found = now, other
                drift.take(now, other, now=self.now)
            else:
                drift.decline(now, now=self.now)
        return self.cost_s / answered


def test_a_steady_channel_is_left_alone():
    world = World(lambda t: 1e5, noise=0.5)
    world.run(request(1e5), 120.0, "drift")
    assert world.asked == 0


def test_a_lasting_change_is_followed_within_seconds_and_back():
    world = World(lambda t: 2e4 if 30 <= t < 80 else 1e6)
    world.run(request(1e6), 130.0, "drift")
    assert [cut > 0 for _, cut in world.switches] == [True, False]
    (down_at, _), (up_at, _) = world.switches
    assert 30 < down_at < 40
    assert 80 < up_at < 92


def test_a_device_that_slows_down_gives_its_part_away():
    world = World(lambda t: 4e4, slower_at=lambda t: 8.0 if t > 30 else 1.0)
    world.run(request(4e4), 60.0, "drift")
    assert [cut for _, cut in world.switches] == [0]


def test_a_dip_shorter_than_the_hold_time_changes_nothing():
    world = World(lambda t: 2e4 if 30 <= t < 31 else 1e6)
    world.run(request(1e6), 60.0, "drift", DriftLimits(half_life_s=0.5))
    assert world.asked == 0


def test_a_rate_that_jumps_to_and_fro_makes_no_flapping():
    """Ten changes a second around the break-even point: what is averaged hardly moves."""
    world = World(lambda t: 3e4 if int(t * 10) % 2 else 1e5, noise=0.3)
    world.run(request(5e4), 120.0, "drift")
    assert len(world.switches) <= 1


def test_a_download_that_never_pays_is_not_made():
    """Five inferences are left: nothing that has to be loaded is worth it, whatever the channel does."""
    drift = Drift(request(1e6, inferences=20), planned(request(1e6, inferences=20)))
    row = drift._row
    for i in range(15):
        at = 1.0 + i
        drift.see(Seen(at, at - 0.9, row.up_bytes, 1, 0.0, row.server_time_s, ROUND_S))
    assert drift.wants_plan(now=16.0)
    asked = drift.measured()
    assert asked.inferences == 5
    assert asked.channel.up_bits_per_s < 1e4
    dear = replace(asked, channel=replace(asked.channel, down_bits_per_s=1e3))
    assert not drift.worth(dear, planned(dear))
    drift.decline(dear, now=16.0)
    for i in range(20):
        at = 17.0 + i
        drift.see(Seen(at, at - 0.9, row.up_bytes, 1, 0.0, row.server_time_s, ROUND_S))
        assert not drift.wants_plan(now=at), "it is what is expected now"


def walk(seed: int, step: float):
    """A rate whose logarithm walks at random between 10 kbit/s and 3 Mbit/s, a step each second."""
    chance, rates = random.Random(seed), [1e5]
    for _ in range(400):
        rates.append(min(3e6, max(1e4, rates[-1] * math.exp(chance.gauss(0, step)))))
    return lambda t: rates[int(t)]


@pytest.mark.parametrize("step", [0.1, 0.4])
def test_regret_under_a_random_walk_is_small_and_switches_are_few(step):
    """Against planning anew after every inference with the true rate (which nobody has), and against never doing so."""
    total = {"never": 0.0, "always": 0.0, "drift": 0.0}
    asked = switches = others = 0
    for seed in range(3):
        for policy in total:
            world = World(walk(seed, step), noise=0.2, seed=seed)
            total[policy] += world.run(request(1e5), 150.0, policy)
            if policy == "drift":
                asked, switches = asked + world.asked, switches + len(world.switches)
            elif policy == "always":
                others += len(world.switches)
    assert total["always"] <= total["drift"] * 1.01
    assert total["drift"] < total["never"]
    assert total["drift"] < 1.2 * total["always"]
    assert switches <= asked <= 4 * 150 / 5, "questions stand 5 s apart at least"
    assert switches < max(8, others)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "regret", "most", "never"), [(0.1, 0.045, 8, 0.13), (0.4, 0.09, 30, 0.12)])
def test_regret_is_what_the_guide_says(step, regret, most, never):
    total, switches = {"never": 0.0, "always": 0.0, "drift": 0.0}, 0
    for seed in range(10):
        for policy in total:
            world = World(walk(seed, step), noise=0.2, seed=seed)
            total[policy] += world.run(request(1e5), 300.0, policy)
            switches += len(world.switches) * (policy == "drift")
    assert total["drift"] < (1 + regret) * total["always"]
    assert total["never"] > (1 + never) * total["always"]
    assert switches <= most


def test_overlapping_requests_do_not_look_like_a_slow_channel():
    """By hand: 1,000 bytes at 80 kbit/s travel 0.1 s; two are always on their way, so each waits for the one before."""
    averages, half_s, server_s = Averages(half_life_s=5.0), 0.02, 0.03
    sent, arrived = [0.0, 0.0], []
    for i in range(20):
        began = max(sent[i] + half_s, arrived[-1] if arrived else 0.0)
        arrived.append(began + 0.1)
        at = arrived[i] + server_s + half_s
        sent.append(at)
        averages.add(Seen(at, sent[i], 1000, 1, 0.5, server_s, 2 * half_s))
    assert averages.up_bits_per_s == pytest.approx(80_000)
    assert averages.head_s == pytest.approx(0.5)
    assert averages.round_trip_s == pytest.approx(0.04)


def test_what_is_predicted_as_planned_is_the_plan_without_its_download():
    asked = replace(request(2e4, inferences=1000), channel=replace(request(2e4).channel, tx_watts=2.0, rx_watts=1.0))
    found = planned(asked)
    row = found.rows[found.pattern.cut]
    load_s = 8 * row.download_bytes / (1000 * 3e6)
    assert row.download_bytes
    assert predicted(row, asked, asked) == pytest.approx(row.objective - load_s)
    halved = replace(asked, channel=replace(asked.channel, up_bits_per_s=1e4))
    same = next(each for each in plan(SOLVER, halved, SERVER).rows if each.cut == row.cut)
    if same.live_bits == row.live_bits and same.weight_bits == row.weight_bits:
        assert predicted(row, asked, halved) == pytest.approx(same.objective - load_s)


def test_an_unknown_round_trip_and_nonsense_leave_the_plan_as_it_is():
    drift = Drift(request(1e6), planned(request(1e6)))
    drift.see(Seen(1.0, 2.0, 100, 1, 0.0, 50.0, math.nan))  # a server that says more than there was
    assert drift.measured().channel.round_trip_s == ROUND_S
    assert 1e6 / 1e4 <= drift.measured().channel.up_bits_per_s <= 1e6 * 1e4


@pytest.mark.parametrize("bad", [{"half_life_s": 0.0}, {"margin": 0.0}, {"hold_s": -1.0}, {"gain": math.inf}])
def test_limits_are_checked(bad):
    with pytest.raises(RequestError, match=next(iter(bad))):
        Drift(request(1e6), planned(request(1e6)), DriftLimits(**bad))
