"""The directory of services, whom to ask and when to ask another one: worked by hand and in simulation."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebus import balance, directory
from edgebus.balance import Candidate, Next, after_failure, choose, next_delay
from edgebus.directory import Directory, Joined, Left, Record, decode_record, encode_record, next_epoch
from edgebus.errors import DeadlineExceeded, LinkLost, MessageTooLarge, NodeClosed, QueueFull, Refused, WrongServerKey

KEY, OTHER, RELAY = "k" * 40, "o" * 40, "r" * 40


def record(epoch=1000, version=0, key=KEY, service="echo", port=7000, **more):
    return Record(service, "server", key, [f"tcp://10.0.0.1:{port}"], epoch, version, **more)


def merge(where, what, *, source=KEY, trusted=False, now=0.0):
    return where.merge(what.id, encode_record(what), source=source, trusted=trusted, now=now)


def test_record_is_live_until_withdrawn():
    found = Directory()
    assert merge(found, record())
    assert found.live("echo") == [record()]
    assert found.live("other") == []
    assert merge(found, record(version=1, load=0.5))
    found.withdraw(record().id, source=RELAY, now=1.0)  # not the source we have it from
    assert [each.load for each in found.live("echo")] == [0.5]
    found.withdraw(record().id, source=KEY, now=1.0)
    assert found.live("echo") == []
    assert found.events() == [Joined(record()), Joined(record(version=1, load=0.5)), Left(record(version=1, load=0.5))]


def test_record_lives_as_long_as_its_source_is_heard():
    """Lease 10 s: merged at 0, heard at 8, so dead at 18 and forgotten 60 s later."""
    found = Directory(lease_s=10, memory_s=60)
    merge(found, record(), now=0.0)
    assert found.next_timer() == 10.0
    found.heard(KEY, now=8.0)
    found.handle_timer(now=17.9)
    assert len(found) == 1
    assert found.next_timer() == 18.0
    found.handle_timer(now=18.0)
    assert len(found) == 0
    assert found.next_timer() == 78.0
    found.handle_timer(now=78.0)
    assert found.next_timer() == math.inf


def test_only_the_node_itself_or_a_trusted_one_is_believed():
    found = Directory()
    assert not merge(found, record(), source=OTHER)
    assert merge(found, record(), source=RELAY, trusted=True)
    assert found.rejected == {"foreign": 1}
    assert found.records(first_hand=True) == []
    assert merge(found, record())
    assert found.records(first_hand=True) == [record()]


def test_new_life_at_a_new_address_takes_over_at_once_by_either_way():
    for source, trusted in ((KEY, False), (RELAY, True)):
        found = Directory()
        merge(found, record(epoch=1000, version=9))
        assert merge(found, record(epoch=1001, port=7001), source=source, trusted=trusted)
        assert [each.endpoints for each in found.live("echo")] == [["tcp://10.0.0.1:7001"]]


def test_replayed_record_never_wins_neither_alive_nor_after_death():
    found = Directory(lease_s=10, memory_s=60)
    old, new = record(epoch=1000, version=5), record(epoch=2000, port=7001)
    merge(found, new)
    assert not merge(found, old, source=RELAY, trusted=True)
    assert not merge(found, old)
    found.handle_timer(now=10.0)  # new died
    assert not merge(found, old, source=RELAY, trusted=True, now=11.0)
    assert not merge(found, new, source=RELAY, trusted=True, now=11.0), "a repetition does not raise the dead"
    assert found.live("echo") == []
    assert found.rejected == {"stale": 4}
    assert merge(found, record(epoch=2000, version=1), source=RELAY, trusted=True, now=11.0)


def test_rebooted_device_whose_clock_went_back_takes_over_within_a_lease():
    found = Directory(lease_s=10)
    reborn = record(epoch=12, port=7001)
    merge(found, record(epoch=9_000_000), now=0.0)
    assert not merge(found, reborn, now=5.0)  # for all we know an old message of its own
    found.handle_timer(now=9.9)
    found.withdraw(record().id, source=KEY, now=9.9)
    assert merge(found, reborn, now=10.0)
    assert found.live("echo") == [reborn]


def test_node_exceeds_what_is_known_of_it():
    found = Directory()
    merge(found, record(epoch=500), source=RELAY, trusted=True)
    assert (found.latest_epoch(KEY), found.latest_epoch(OTHER)) == (500, 0)
    assert next_epoch(found.latest_epoch(KEY), now_ms=0) == 501


def test_plaintext_nodes_are_known_by_name_and_cannot_pose_as_a_key():
    found = Directory()
    plain = record(key="")
    assert plain.identity == "name:server"
    assert merge(found, plain, source="name:server")
    assert not merge(found, plain, source="name:other")
    assert not merge(found, record(), source="name:server")
    assert record(key="").id != record().id


def test_ids_do_not_collide_over_where_a_name_ends():
    one = Record("c", "a 6 b", "", [], 1)
    two = Record("b c", "a 6", "", [], 1)
    assert one.id != two.id


def test_misfiled_malformed_and_too_many_records_are_counted():
    found = Directory(max_records=3, max_services=2)
    assert not found.merge("0" * 32, encode_record(record()), source=KEY, now=0.0)
    assert not found.merge(record().id, b"\x93nonsense", source=KEY, now=0.0)
    assert merge(found, record(service="a"))
    assert merge(found, record(service="b"))
    assert not merge(found, record(service="c"))
    assert merge(found, record(key=OTHER), source=OTHER)
    assert not merge(found, record(key=RELAY), source=RELAY)
    assert found.rejected == {"misfiled": 1, "malformed": 1, "full": 2}
    found.withdraw(record(service="a").id, source=KEY, now=0.0)
    assert merge(found, record(key=RELAY), source=RELAY), "the dead make room"
    assert len(found) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": ["http://10.0.0.1"]},
        {"endpoints": ["tcp://10.0.0.1:1\n"]},
        {"endpoints": ["tcp://a"] * 9},
        {"key": "short"},
        {"name": ""},
        {"service": ""},
        {"service": "s" * 65},
        {"load": -0.1},
        {"load": float("nan")},
        {"load": float("inf")},
        {"capacity": 0.0},
        {"epoch": -1},
        {"epoch": 2**63},
        {"meta": {str(n): "" for n in range(17)}},
        {"meta": {"k": "v" * 257}},
        {"endpoints": ["tcp://" + "\u20ac" * 250] * 8, "meta": {"k" * n: "\u20ac" * 256 for n in range(1, 15)}},
    ],
)
def test_hostile_record_does_not_decode(change):
    fields = {
        "service": "s", "name": "n", "key": KEY, "endpoints": [], "epoch": 1, "version": 0, "load": 0.0,
        "capacity": 1.0, "meta": {},
    }  # fmt: skip
    decode_record(msgpack.packb(list(fields.values())))
    with pytest.raises(ValueError, match=r"not a valid Record|endpoint|lacks a name|record of \d+ B"):
        decode_record(msgpack.packb(list((fields | change).values())))


def bytes_shown(page):
    """The bytes in the first example of a specification, as hex."""
    example = (Path(__file__).parents[2] / "docs/spec" / page).read_text().partition("```text\n")[2].partition("```")[0]
    return "".join(re.match(r" *((?:[0-9a-f]{2}(?: |$))*)", line)[1] for line in example.splitlines()).replace(" ", "")


def test_record_layout_is_the_one_of_the_specification():
    value = encode_record(Record("echo", "s1", "", ["tcp://10.0.0.1:7000"], 1000, 2, 0.5, 4.0, {"gpu": "a"}))
    assert value.hex(" ") == (
        "99 a4 65 63 68 6f a2 73 31 a0 91 b3 74 63 70 3a 2f 2f 31 30 2e 30 2e 30 2e 31 3a 37 30 30 30 cd 03 e8 02 "
        "cb 3f e0 00 00 00 00 00 00 cb 40 10 00 00 00 00 00 00 81 a3 67 70 75 a1 61"
    )
    assert value.hex() == bytes_shown("bus-directory.md")
    assert msgpack.unpackb(value)[:3] == ["echo", "s1", ""]
    assert decode_record(value).id == "8f95d05e27be36c6bd5d717847d268fb"


MESSAGES = st.lists(
    st.tuples(st.sampled_from(("own", "relay", "withdraw", "wait")), st.integers(0, 5), st.integers(0, 3)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_newest_life_wins_in_whatever_order_records_come(messages):
    """Whatever lives is never older than anything of the same node that was merged since the last death."""
    found = Directory(lease_s=10, memory_s=60)
    newest, now = (-1, -1), 0.0
    for what, epoch, version in messages:
        each = record(epoch=epoch, version=version)
        if what == "wait":
            now += 4.0
            found.handle_timer(now=now)
        elif what == "withdraw":
            found.withdraw(each.id, source=KEY, now=now)
        else:
            merge(found, each, source=KEY if what == "own" else RELAY, trusted=what == "relay", now=now)
            newest = max(newest, (epoch, version)) if found.live("echo") else newest
        live = found.live("echo")
        if not live:
            newest = (-1, -1)
        else:
            assert (live[0].epoch, live[0].version) == newest
    found.handle_timer(now=now + 10)
    found.handle_timer(now=now + 70)
    assert found.next_timer() == math.inf
    assert not found._services
    assert not found._heard


# -- whom to ask -------------------------------------------------------------------------------------


def test_score_worked_by_hand():
    assert Candidate("a", load=0.5, capacity=4, outstanding=1).score() == 1.0
    assert Candidate("a", load=0.5, capacity=4, outstanding=1).score(doubt=0.0) == 0.5


def test_old_loads_decide_by_odds_and_our_own_requests_for_sure():
    chance = random.Random(2)
    loads = [Candidate("a", load=0.9, capacity=1e9), Candidate("b", load=0.3, capacity=1e9)]
    assert 700 < sum(choose(loads, chance) == "b" for _ in range(1000)) < 800  # 3 of 4
    ours = [Candidate("a", outstanding=2), Candidate("b", outstanding=1)]
    assert {choose(ours, chance) for _ in range(100)} == {"b"}


@pytest.mark.parametrize("seed", range(20))
def test_only_live_servers_are_chosen_busy_ones_if_nothing_is_up(seed):
    chance = random.Random(seed)
    all_four = [Candidate(health, health) for health in ("up", "busy", "wedged", "down")]
    assert choose(all_four, chance) == "up"
    assert choose(all_four, chance, exclude={"up"}) == "busy"
    assert choose(all_four, chance, exclude={"up", "busy"}) is None
    assert choose([], chance) is None


def spread(pick, seed, clients=20, servers=3, seconds=60):
    """Each client sends four requests a second that take 0.5 s; loads are announced once a second.

    Returns the requests of each server and the greatest number any had at once.
    """
    chance = random.Random(seed)
    running = {str(n): [] for n in range(servers)}  # ends of the requests at work
    mine = {(client, name): [] for client in range(clients) for name in running}
    announced = dict.fromkeys(running, 0.0)
    total, most = Counter(), 0
    for tick in range(seconds * 20):
        now = tick / 20
        for ends in (*running.values(), *mine.values()):
            ends[:] = [end for end in ends if end > now]
        if tick % 20 == 0:
            announced = {name: len(ends) / 16 for name, ends in running.items()}
        for client in range(clients):
            if (tick + client) % 5:
                continue
            candidates = [Candidate(name, "up", announced[name], 16, len(mine[client, name])) for name in running]
            name = pick(candidates, chance)
            for ends in (running[name], mine[client, name]):
                ends.append(now + 0.5)
            total[name] += 1
            most = max(most, len(running[name]))
    return [total[name] for name in running], most


@pytest.mark.parametrize("seed", range(5))
def test_clients_spread_over_servers_without_a_herd(seed):
    """On average 40 requests are at work, 13 a server."""
    totals, most = spread(choose, seed)
    assert max(totals) / min(totals) < 1.1
    assert most <= 32


def test_mutant_that_takes_the_least_loaded_runs_with_the_herd():
    _, most = spread(lambda candidates, chance: min(candidates, key=Candidate.score).id, 0)
    assert most >= 38


def test_mutant_that_believes_old_loads_runs_with_a_smaller_herd():
    def credulous(candidates, chance):
        return min(chance.sample(candidates, 2), key=Candidate.score).id

    assert min(spread(credulous, seed)[1] for seed in range(5)) > 32


def test_server_with_more_capacity_gets_more():
    chance = random.Random(1)
    counts = Counter()
    outstanding = Counter()
    for _ in range(90):  # requests that never end
        name = choose(
            [Candidate("small", capacity=1, outstanding=outstanding["small"]),
             Candidate("large", capacity=8, outstanding=outstanding["large"])], chance,
        )  # fmt: skip
        counts[name] += 1
        outstanding[name] += 1
    assert counts == {"large": 80, "small": 10}


REFUSED = [Refused(code, "") for code in ("busy", "closing", "unknown_service", "dropped", "forgotten", "my_own_no")]


def test_when_another_server_is_asked_worked_by_hand():
    def table(sent, may_repeat):
        return [after_failure(error, sent=sent, may_repeat=may_repeat) is Next.ELSEWHERE for error in REFUSED]

    assert table(True, False) == [True, False, True, False, False, False]
    assert table(True, True) == [True, True, True, True, True, False]
    for error in (DeadlineExceeded(""), LinkLost(""), NodeClosed(""), QueueFull(""), WrongServerKey("")):
        assert after_failure(error, sent=True, may_repeat=False) is Next.FAIL
        assert after_failure(error, sent=True, may_repeat=True) is Next.ELSEWHERE
        assert after_failure(error, sent=False, may_repeat=False) is Next.ELSEWHERE
    assert after_failure(MessageTooLarge(""), sent=False, may_repeat=True) is Next.FAIL


@given(st.integers(0, 2**32), st.floats(0, 100), st.floats(0.001, 1), st.floats(1, 60))
def test_delays_stay_within_bounds_and_grow_from_the_last(seed, previous_s, least_s, most_s):
    delay_s = next_delay(previous_s, random.Random(seed), least_s=least_s, most_s=most_s)
    assert least_s <= delay_s <= max(least_s, min(most_s, 3 * previous_s))


def test_clients_that_lost_one_server_come_back_apart():
    """1000 clients: no 50 ms of the tenth try sees more than a tenth of them."""
    arrivals = []
    for client in range(1000):
        chance, delay_s, at = random.Random(client), 0.0, 0.0
        for _ in range(10):
            delay_s = next_delay(delay_s, chance)
            at += delay_s
        arrivals.append(at)
    assert max(Counter(int(at / 0.05) for at in arrivals).values()) < 100


def test_limits_of_a_record_fit_a_value_of_the_state():
    from edgebus.state import MAX_TOPIC, MAX_VALUE_BYTES

    assert directory.MAX_RECORD_BYTES <= MAX_VALUE_BYTES
    assert len(directory.TOPIC) <= MAX_TOPIC


@pytest.mark.parametrize("module", ["balance", "directory", "replica", "state"])
def test_machines_do_not_look_at_clock_threads_or_chance(module):
    import importlib

    names = vars(importlib.import_module(f"edgebus.{module}"))
    assert not {"time", "threading", "os", "socket", "zmq"} & set(names)


def test_doctests_hold():
    import doctest

    for module in (balance, directory):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
