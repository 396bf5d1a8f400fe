"""Every fault does what it says, worked by hand; random scripts of them leave the bus's promises standing."""

from __future__ import annotations

from collections import Counter

import pytest

from edgebus.answerer import Answerer
from edgebus.config import Limits
from edgebus.errors import DeadlineExceeded, LinkLost, NodeClosed, Refused
from edgebus.messages import Request as RequestHeader
from edgebus.testing import (
    NodeClock,
    Script,
    SimNetwork,
    at,
    bandwidth,
    between,
    clock,
    corrupt,
    crash,
    delay,
    duplicate,
    for_seeds,
    freeze,
    half_open,
    heal,
    loss,
    partition,
    reorder,
    reset,
    restart,
)
from edgebus.testing.nodes import SimNode

HOP_S = 0.01  # every message takes this long on a sound cable
LIMITS = Limits(heartbeat_s=2.0, silence_s=5.0, resend_s=1.0)  # the hand-worked times below follow from these


class Pair:
    """A server that answers in capitals at once, a device linked to it, and what was executed when."""

    def __init__(self, *steps, seed=1, **options):
        self.net = SimNetwork(seed, delay_s=(HOP_S, HOP_S), reorder=False, script=Script(*steps), **options)
        self.executed = []
        self.lives = 1
        self.server = self.net.node("server", self.handle, LIMITS, on_restart=self.again)
        self.device = self.net.node("device", limits=LIMITS)
        self.link = self.net.connect(self.device, self.server)

    def handle(self, request):
        self.executed.append((round(self.net.clock.now, 6), request.payload))
        request.reply(request.payload.upper())

    def again(self):
        self.lives += 1

    def ask(self, payload=b"x", *, at_s=None, timeout_s=30.0):
        """Send now, or at a time; a list that gets the pending request and the time it was done."""
        if at_s is not None:
            self.net.run(at_s - self.net.clock.now)
        return self.link.send_request("shout", payload, timeout_s=timeout_s)

    def done_at(self, pending, limit_s=60.0):
        assert self.net.run_until(pending.done, limit_s)
        return round(self.net.clock.now, 6)

    @property
    def state(self):
        return str(self.link.attached.link.state)


# -- cables ---------------------------------------------------------------------------------------------


def test_sound_network_takes_two_hops():
    pair = Pair()
    pending = pair.ask(at_s=1.0)
    assert pair.done_at(pending) == 1.0 + 2 * HOP_S
    assert pair.executed == [(1.0 + HOP_S, b"x")]


def test_loss_one_way_takes_answers_but_not_requests():
    pair = Pair(at(1.0, loss(1.0, "server", "device", one_way=True)))
    pending = pair.ask(at_s=1.5, timeout_s=3.0)
    assert pair.done_at(pending) == 4.5
    assert pair.executed == [(1.5 + HOP_S, b"x")]
    assert pair.net.counts["lost"] > 0
    with pytest.raises(DeadlineExceeded, match="no answer"):
        pending.result()


def test_loss_both_ways_is_over_when_it_ends():
    pair = Pair(between(1.0, 3.0, loss(1.0, "server", "device")))
    pending = pair.ask(at_s=1.5)
    # Resent after 1 s, and after 2 s more, which is 4.5.
    assert pair.done_at(pending) == 4.5 + 2 * HOP_S


def test_loss_adds_up_with_that_of_the_network():
    lost = []
    for steps in ((), (at(0.0, loss(0.5)),)):
        pair = Pair(*steps, loss=0.5)
        pair.net.run(600.0)
        lost.append(pair.net.counts["lost"] / pair.net.counts["sent"])
    assert lost[0] == pytest.approx(0.5, abs=0.1)
    assert lost[1] == pytest.approx(0.75, abs=0.1)


def test_delay_is_added_in_its_direction_only():
    pair = Pair(at(0.5, delay(0.5, 0.5, "device", "server", one_way=True)))
    pending = pair.ask(at_s=1.0)
    assert pair.done_at(pending) == 1.5 + 2 * HOP_S
    assert pair.executed == [(1.5 + HOP_S, b"x")]


def test_duplicates_arrive_and_are_executed_once():
    pair = Pair(at(0.5, duplicate(1.0)))
    pair.net.run(1.0)
    before = len(pair.net.trace)
    pending = pair.ask()
    pair.done_at(pending)
    pair.net.run(0.5)
    # The request twice, at the same time; its answer twice: there was none yet to give again.
    assert len(pair.net.trace) - before == 2 + 2
    assert pair.net.counts["duplicated"] == 2
    assert len(pair.executed) == 1


def test_reorder_lets_the_second_request_overtake_the_first():
    pair = Pair(between(1.0, 1.05, reorder(1.0, 0.3, "device", "server")))
    first = pair.ask(b"first", at_s=1.02)
    second = pair.ask(b"second", at_s=1.1)
    assert pair.done_at(second) == 1.1 + 2 * HOP_S
    assert pair.done_at(first) == pytest.approx(1.02 + 0.3 + 2 * HOP_S)
    assert [payload for _, payload in pair.executed] == [b"second", b"first"]
    assert pair.net.counts["held_back"] == 1


def test_bandwidth_makes_messages_queue_up():
    pair = Pair(at(0.5, bandwidth(1000.0, "device", "server", one_way=True)))
    pair.net.run(1.0)
    before = pair.link.stats().bytes_sent
    pendings = [pair.ask(bytes(400)) for _ in range(2)]
    pair.net.run(0.0)
    each = (pair.link.stats().bytes_sent - before) / 2
    assert 400 < each < 500
    assert pair.done_at(pendings[0]) == pytest.approx(1.0 + each / 1000 + 2 * HOP_S)
    assert pair.done_at(pendings[1]) == pytest.approx(1.0 + 2 * each / 1000 + 2 * HOP_S)


def test_partition_takes_what_is_on_its_way_and_is_found_by_silence():
    pair = Pair(at(1.005, partition("device", "server")), at(9.0, heal("server", "device")))
    pending = pair.ask(at_s=1.0)
    pair.net.run(0.5)
    assert pair.net.counts["cut_off"] == 1
    assert pair.executed == []
    assert pair.state == "up"  # nobody is told
    pair.net.run(6.0)
    assert pair.state != "up"
    assert 9.0 < pair.done_at(pending) < 10.1


def test_partition_of_all_cables_of_a_node():
    pair = Pair(at(1.0, partition("server")))
    other = pair.net.node("other", pair.handle)
    link = pair.net.connect(pair.device, other)
    cut, sound = pair.ask(at_s=1.5, timeout_s=2.0), link.send_request("shout", timeout_s=2.0)
    pair.done_at(cut)
    assert (cut.outcome, sound.outcome) == ("expired", "answered")


def test_nobody_dials_through_a_cut_cable():
    pair = Pair(at(0.0, partition("device", "server")), at(20.0, heal("device", "server")))
    pair.net.run(20.0)
    assert pair.net.counts["sent"] == 0
    assert pair.done_at(pair.ask()) < 20.2


def test_half_open_carries_one_direction():
    pair = Pair(at(1.0, half_open("device", "server")))
    pair.net.run(1.1)
    before = len(pair.net.trace)
    pending = pair.ask(timeout_s=2.0)
    pair.done_at(pending)
    directions = {(source, target) for _, source, target, _ in pair.net.trace[before:]}
    assert ("device", "server") not in directions
    assert pair.executed == []
    pair.net.run(8.0)
    assert ("server", "device") in {(source, target) for _, source, target, _ in pair.net.trace[before:]}


def test_corrupted_headers_are_counted_malformed_and_their_requests_sent_again():
    pair = Pair(between(1.0, 1.5, corrupt(1.0, "device", "server", one_way=True)))
    pending = pair.ask(at_s=1.2)
    assert pair.done_at(pending) == 2.2 + 2 * HOP_S
    assert pair.server.hub.malformed == pair.net.counts["corrupted"] == 1
    assert len(pair.executed) == 1


@for_seeds(30)
def test_bytes_flipped_anywhere_break_nothing(seed):
    pair = Pair(at(0.0, corrupt(0.5, anywhere=True)), seed=seed)
    for number in range(40):
        pair.net.call_later(0.2 * number, lambda: pair.ask(bytes(3), timeout_s=5.0))
    pair.net.run(20.0)
    assert pair.net.counts["corrupted"] > 0
    pair.net.apply(heal())
    pair.net.apply(restart("device"))  # its ids may have been made up meanwhile; those of a new life are not
    pair.net.run(20.0)
    pending = pair.ask(b"still there")
    pair.done_at(pending)
    assert pending.result().payload == b"STILL THERE"


def test_reset_is_told_and_dialled_again():
    pair = Pair(at(1.005, reset("server", "device")))
    pending = pair.ask(at_s=1.0)
    pair.net.run_until(lambda: pair.state == "dialling", 0.006)
    assert pair.state == "dialling"
    # A hop to dial, two for hello and welcome, two for request and answer.
    assert pair.done_at(pending) == pytest.approx(1.005 + 5 * HOP_S)
    assert pair.link.stats().reconnects == 1


# -- nodes ----------------------------------------------------------------------------------------------


def test_crashed_listener_is_away_and_comes_back_without_memory():
    pair = Pair(at(2.0, crash("server", down_s=3.0)))
    first = pair.ask(at_s=1.0)
    pair.done_at(first)
    hub = pair.server.hub
    pair.net.run(1.1)
    assert not pair.server.is_up
    assert pair.state == "dialling"
    second = pair.ask()
    assert 5.0 < pair.done_at(second) < 5.0 + 0.1 + 5 * HOP_S
    assert pair.server.hub is not hub
    assert (pair.lives, pair.server.life) == (2, 2)


def test_power_cut_is_told_when_the_node_is_back():
    pair = Pair(at(2.0, crash("server", down_s=2.0, told=False)))
    pair.net.run(3.0)
    assert pair.state == "up"
    pending = pair.ask()
    pair.net.run(0.9)
    assert (pair.state, pending.done()) == ("up", False)
    assert 4.0 < pair.done_at(pending) < 4.0 + 6 * HOP_S


def test_crash_without_a_time_lasts_until_the_restart():
    pair = Pair(at(1.0, crash("server")), at(50.0, restart("server")))
    pair.net.run(49.0)
    assert not pair.server.is_up
    assert 50.0 < pair.done_at(pair.ask()) < 50.2


def test_crashed_dialler_loses_its_requests_and_dials_again_as_somebody_new():
    pair = Pair(at(2.0, crash("device", down_s=1.0)))
    pair.net.run(1.5)
    [before] = [attached.hello_id for attached in pair.server.hub.links]
    pair.net.partition(pair.device, pair.server)
    lost = pair.ask()
    pair.net.run(0.6)
    pair.net.heal(pair.device, pair.server)
    with pytest.raises(NodeClosed):
        lost.result()
    with pytest.raises(NodeClosed, match="device has crashed"):
        pair.ask()
    pair.net.run(1.0)
    assert pair.done_at(pair.ask(b"new")) < 3.2
    assert pair.executed[-1][1] == b"new"
    assert len({attached.hello_id for attached in pair.server.hub.links} - {before}) == 1
    assert [past.cancelled for past in pair.link.past] == [1]
    assert pair.link.stats().started == pair.link.stats().answered == 1


def test_answer_of_an_earlier_life_goes_nowhere():
    pair = Pair()
    held = []
    pair.server.handler = held.append
    pending = pair.ask(at_s=1.0)
    pair.net.run(0.5)
    pair.net.restart(pair.server)
    held[0].reply(b"from the dead")
    pair.net.run(0.5)
    assert len(held) == 2  # asked again, of the new life
    held[1].reply(b"from the living")
    pair.done_at(pending)
    assert pending.result().payload == b"from the living"


def test_what_an_application_planned_dies_with_its_node():
    pair = Pair(at(1.0, restart("server")))
    rung = []
    pair.server.call_later(0.9, lambda: rung.append("before"))
    pair.server.call_later(1.1, lambda: rung.append("after"))
    pair.net.run(3.0)
    assert rung == ["before"]


def test_frozen_node_does_nothing_and_then_everything():
    pair = Pair(at(1.0, freeze("server", 2.0)))
    rung = []
    pair.server.call_later(1.5, lambda: rung.append(pair.net.clock.now))
    pendings = [pair.ask(b"%d" % n, at_s=1.2 + n / 10) for n in range(3)]
    pair.net.run_until(lambda: False, 1.5)
    assert (pair.executed, rung) == ([], [])
    assert pair.done_at(pendings[2]) == 3.0 + HOP_S
    assert pair.executed[:3] == [(3.0, b"0"), (3.0, b"1"), (3.0, b"2")]
    assert rung == [3.0]
    assert all(pending.done() for pending in pendings)


def test_frozen_timers_do_not_run_but_the_clock_goes_on():
    pair = Pair(at(1.0, freeze("device", 20.0)))
    pending = pair.ask(at_s=0.995, timeout_s=5.0)
    pair.net.run(19.0)
    assert not pending.done()  # its deadline was at 5.995, but nobody was there to see it
    assert all(at_s < 1.0 + HOP_S for at_s, source, _, _ in pair.net.trace if source == "device")
    assert pair.done_at(pending) == 21.0
    # The answer had been waiting in the socket all the time, and is read before the clock is looked at.
    assert pending.outcome == "answered"


def test_freeze_longer_than_the_silence_limit_loses_nothing():
    pair = Pair(at(1.0, freeze("server", 12.0)))
    pending = pair.ask(at_s=2.0)
    pair.net.run(6.0)
    assert pair.state != "up"
    assert 13.0 < pair.done_at(pending) < 14.1
    assert len(pair.executed) == 1


def test_frozen_node_can_be_killed():
    pair = Pair(at(1.0, freeze("server", 5.0)), at(2.0, restart("server")))
    pending = pair.ask(at_s=1.5)
    assert 2.0 < pair.done_at(pending) < 2.2
    assert pair.lives == 2


def test_request_of_a_frozen_node_waits_and_dies_with_it():
    pair = Pair(at(1.0, freeze("device", 1.0)), at(3.0, freeze("device", 5.0)), at(4.0, crash("device", down_s=1.0)))
    pending = pair.ask(at_s=1.5)
    assert pair.done_at(pending) == 2.0 + 2 * HOP_S
    lost = pair.ask(at_s=3.5)
    assert pair.done_at(lost) == 4.0
    with pytest.raises(NodeClosed):
        lost.result()


# -- clocks ---------------------------------------------------------------------------------------------


def outcomes_with(*steps):
    """Two requests answered, one never, one dropped; with what was executed when."""
    pair = Pair(*steps)
    held = []

    def handle(request):
        if request.payload == b"late":
            held.append(request)
        elif request.payload == b"asks":
            request.reply(b"%d" % (request.remaining_s() > 1.0))
        elif request.payload != b"dropped":
            pair.handle(request)

    pair.server.handler = handle
    pendings = [pair.ask(payload, at_s=3.0, timeout_s=4.0) for payload in (b"x", b"late", b"dropped", b"asks")]
    pair.net.run(30.0)
    assert pendings[3].result().payload == b"1"
    return [pending.outcome for pending in pendings], pair.executed


RIGHT = ["answered", "expired", "refused", "answered"]


@pytest.mark.parametrize("node", ["device", "server"])
@pytest.mark.parametrize("skew_s", [-1e6, -1000.0, 0.5, 1000.0, 1e6])
def test_clock_skew_changes_nothing(node, skew_s):
    assert outcomes_with(at(0.0, clock(node, skew_s=skew_s))) == outcomes_with()
    assert outcomes_with()[0] == RIGHT


@pytest.mark.parametrize("node", ["device", "server"])
@pytest.mark.parametrize("drift", [0.97, 0.999, 1.001, 1.03])
def test_drifting_clocks_do_not_change_outcomes(node, drift):
    assert outcomes_with(at(0.0, clock(node, skew_s=77.0, drift=drift)))[0] == RIGHT


@pytest.mark.parametrize("node", ["device", "server"])
@pytest.mark.parametrize("jump_s", [-3600.0, -1.0, 1.0, 3600.0])
def test_jumps_between_requests_do_not_change_outcomes(node, jump_s):
    assert outcomes_with(at(2.0, clock(node, jump_s=jump_s)))[0] == RIGHT


@pytest.mark.parametrize("jump_s", [-3600.0, -1.0, 1.0])
def test_jumps_of_the_server_during_a_request_do_not_change_outcomes(jump_s):
    assert outcomes_with(at(3.5, clock("server", jump_s=jump_s)))[0] == RIGHT


def test_bus_that_compares_clocks_is_found_out(monkeypatch):
    """The mutant: what arrives is dated by the sender's clock."""

    def receive(self, route, frames):
        [other] = [node for node in self._net._nodes.values() if node is not self]
        self.hub.receive(route, frames, None, now=other.now)

    monkeypatch.setattr(SimNode, "receive", receive)
    assert outcomes_with()[0] == RIGHT
    with pytest.raises((AssertionError, Refused, LinkLost, DeadlineExceeded)):
        assert outcomes_with(at(0.0, clock("device", skew_s=-1000.0)))[0] == RIGHT


def test_timers_of_a_wrong_clock_come_when_it_says_so():
    net = SimNetwork(1)
    node = net.node("node")
    net.apply(clock("node", skew_s=1e9, drift=0.1))
    rung = []
    node.call_later(1.0, lambda: rung.append(net.clock.now))
    net.run(20.0)
    assert rung == [pytest.approx(10.0, abs=1e-5)]


def test_clock_set_back_delays_its_timers():
    net = SimNetwork(1)
    node = net.node("node")
    rung = []
    node.call_later(5.0, lambda: rung.append(net.clock.now))
    net.call_later(3.0, lambda: net.apply(clock("node", jump_s=-4.0)))
    net.run(20.0)
    assert rung == [9.0]


def test_true_time_is_never_a_hair_too_early():
    net = SimNetwork(1)
    wrong = NodeClock(net.clock)
    for skew_s, drift in ((1e9, 0.1), (-1e6, 1.03), (1 / 3, 0.97), (0.0, 1.0)):
        wrong.change(skew_s=skew_s, drift=drift)
        for number in range(200):
            reading = wrong.now + number / 7
            true_at = wrong.true_time(reading)
            before, net.clock.now = net.clock.now, true_at
            assert wrong.now >= reading
            assert true_at - before == pytest.approx(number / 7 / drift, abs=1e-5)
            net.clock.now = before


# -- scripts by chance, over the bus --------------------------------------------------------------------

NAMES = ("server", "device0", "device1")
SCRIPT_S = 20.0


class World:
    """A server that answers after a while and two devices, any of which may crash, and a script of faults."""

    def __init__(self, seed, script):
        self.net = SimNetwork(seed, script=script, loss=0.02)
        self.executed = [Counter()]  # one for each life of the server
        self.server = self.net.node("server", self.handle, on_restart=lambda: self.executed.append(Counter()))
        self.devices = [self.net.node(name) for name in NAMES[1:]]
        self.links = [self.net.connect(device, self.server) for device in self.devices]
        self.pendings = []

    def handle(self, request):
        self.executed[-1][request.payload] += 1
        number = int(request.payload.split(b":")[1])
        if number % 7 == 3:
            request.refuse("odd", "sevens and a three")
        elif number % 11 != 5:
            self.server.call_later((number % 5) * 0.3, lambda: request.reply(request.payload[::-1]))

    def ask(self, index, number, timeout_s):
        if self.devices[index].runs:
            payload = b"%d:%d" % (index, number)
            self.pendings.append((payload, self.links[index].send_request("x", payload, timeout_s=timeout_s)))

    def run(self, num_requests=15):
        for number in range(num_requests):
            for index in range(len(self.links)):
                later = number * SCRIPT_S / num_requests
                self.net.call_later(later, lambda index=index, number=number: self.ask(index, number, 15.0))
        self.net.run(SCRIPT_S + 0.001)
        assert self.net.run_until(lambda: all(pending.done() for _, pending in self.pendings), 40.0)
        self.check_outcomes()
        # The faults are over: whatever happened, the bus works again.
        self.net.run(15.0)
        for index in range(len(self.links)):
            self.ask(index, 1001, 30.0)
        assert self.net.run_until(lambda: all(pending.done() for _, pending in self.pendings), 40.0)
        assert [pending.outcome for _, pending in self.pendings[-2:]] == ["answered"] * 2
        self.net.run(10.0)
        self.check_counters()

    def check_outcomes(self):
        for payload, pending in self.pendings:
            assert pending.outcome in ("answered", "refused", "expired", "unknown", "cancelled")
            if pending.outcome == "answered":
                assert pending.result().payload == payload[::-1]
                assert any(life[payload] for life in self.executed)
        for life in self.executed:
            for payload, count in life.items():
                assert count == 1, f"{payload} was executed {count} times in one life"

    def check_counters(self):
        for link in self.links:
            for stats in (*link.past, link.stats()):
                assert stats.outstanding == 0
                outcomes = stats.answered + stats.refused + stats.expired + stats.unknown + stats.cancelled
                assert stats.started == outcomes
        started = sum(stats.started for link in self.links for stats in (*link.past, link.stats()))
        assert started == len(self.pendings)
        counts = [attached.link.answerer.counts for attached in self.server.hub.links]
        assert sum(count.executed for count in counts) == self.executed[-1].total()
        assert sum(count.answered + count.withdrawn for count in counts) == self.executed[-1].total()


def run_world(seed):
    world = World(seed, Script.random(seed, NAMES, SCRIPT_S))
    with world.net:
        world.run()
    return world


@for_seeds(200)
def test_random_faults_leave_the_promises_standing(seed):
    run_world(seed)


def test_random_scripts_use_every_kind_of_fault_and_matter():
    kinds = Counter()
    troubled = 0
    for seed in range(40):
        world = run_world(seed)
        kinds.update(type(step.fault).__name__ for step in world.net.script.steps)
        kinds.update(name for name, count in world.net.counts.items() if count)
        troubled += any(
            stats.retries or stats.reconnects for link in world.links for stats in (*link.past, link.stats())
        )
    assert len(kinds) == 13 + 7  # faults, and what SimNetwork.counts counts
    assert troubled > 30


def test_answerer_that_forgets_is_found_out_by_random_scripts(monkeypatch):
    """The mutant: a request that comes again is executed again."""

    class Forgetful(Answerer):
        def receive(self, message, **named):
            if isinstance(message.header, RequestHeader):
                self._entries.pop(message.header.id, None)
                self._answered.pop(message.header.id, None)
            super().receive(message, **named)

    monkeypatch.setattr("edgebus.link.Answerer", Forgetful)
    with pytest.raises(AssertionError, match="was executed"):
        [run_world(seed) for seed in range(200)]


def test_simplest_script_that_finds_the_mutant_has_one_step():
    noise = [at(3.0, restart("device1")), between(2.0, 4.0, delay(0.0, 0.1)), at(1.0, freeze("server", 0.1))]
    guilty = between(1.0, 5.0, duplicate(1.0, "device0", "server"))
    script = Script(*noise[:2], guilty, *noise[2:])
    tried = []

    def fails(candidate):
        tried.append(candidate)
        return guilty in candidate.steps

    assert script.simplest(fails) == Script(guilty)
    assert len(tried) == 4
