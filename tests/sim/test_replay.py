"""Scripts print and parse; a failing seed says so and proves that it replays."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from edgebus.testing import (
    Script,
    SimNetwork,
    at,
    bandwidth,
    between,
    check_seeds,
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

EVERYTHING = Script(
    at(0.0, clock("a", skew_s=-5.0, drift=1.001)),
    at(0.5, clock("a", jump_s=2.0)),
    between(1.0, 5.0, loss(0.3, "a", "b")),
    between(1.0, 5.0, loss(0.3, None, "b", one_way=True)),
    between(1.0, 2.0, duplicate(1.0)),
    between(1.0, 2.0, delay(0.1, 0.2, "a")),
    between(1.0, 2.0, reorder(0.5, 1.5)),
    between(1.0, 2.0, bandwidth(1000.0, "a", "b")),
    between(1.0, 2.0, corrupt(0.1, anywhere=True)),
    at(2.0, partition("a", "b")),
    at(3.0, heal("a", "b")),
    between(4.0, 5.0, half_open("a", "b")),
    at(5.0, reset("a", "b")),
    at(6.0, crash("a", down_s=3.0, told=False)),
    at(6.0, crash("b")),
    at(7.0, restart("b")),
    at(8.0, freeze("a", 2.0)),
)


def test_scripts_print_as_they_are_written():
    assert repr(at(2.0, partition("a", "b"))) == "at(2.0, partition('a', 'b'))"
    assert repr(at(6.0, crash("a", down_s=3.0, told=False))) == "at(6.0, crash('a', down_s=3.0, told=False))"
    assert repr(loss(0.3, None, "b")) == "loss(0.3, b='b')"
    assert repr(clock("a", jump_s=2.0)) == "clock('a', jump_s=2.0)"


def test_everything_that_prints_can_be_read_back():
    assert Script.parse(repr(EVERYTHING)) == EVERYTHING
    assert eval(repr(EVERYTHING)) == EVERYTHING  # pasted into a test it means the same
    assert Script.parse("Script()") == Script()
    assert EVERYTHING.end_s == 10.0
    assert (Script(at(1.0, heal())) + EVERYTHING).steps[1:] == EVERYTHING.steps


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("__import__('os').system('true')", "not one of Script"),
        ("Script(at(1.0, exec('1')))", "'exec' is not one of Script"),
        ("Script(at(1.0, loss(0.3, *['a'])))", "not a script"),
        ("Script(at(1.0, loss()))", "missing"),
        ("Script(at(1.0", "not a script"),
        ("loss(0.3)", "not a script but loss"),
        ("Script(loss(0.3))", "a step is at"),
        ("Script(at(1.0, loss(1.5)))", "probability must be 0..1, got 1.5"),
        ("Script(at(-1.0, loss(0.5)))", "at_s must be 0 or more, got -1.0"),
        ("Script(at(1.0, bandwidth(0.0)))", "bytes_per_s must be above 0, got 0.0"),
        ("Script(at(1.0, freeze('a', 1e999)))", "for_s must be finite, got inf"),
        ("Script(between(1.0, 2.0, crash('a')))", "happens at an instant"),
        ("Script(between(2.0, 1.0, loss(0.5)))", "ends at 1.0 s, before it begins at 2.0 s"),
        ("Script(at(1.0, loss('x')))", "probability must be a number, got 'x'"),
        ("Script(at(1.0, loss(None)))", "probability must be a number, got None"),
        ("Script(at(1.0, at(2.0, loss(0.1))))", "is no fault"),
        ("Script(at(1.0, 5))", "5 is no fault"),
        ("Script(at(1.0, clock('a', drift=1e999)))", "drift must be finite, got inf"),
        ("(" * 500, "not a script"),
    ],
)
def test_what_is_no_script_is_refused(text, fault):
    with pytest.raises(ValueError, match="(?s)" + fault.replace("(", r"\(")):
        Script.parse(text)


def test_script_that_names_nobody_is_refused_when_it_happens():
    net = SimNetwork(1, script=Script(at(1.0, crash("sever"))))
    net.node("server")
    with pytest.raises(ValueError, match="no node 'sever' for this fault, there are: server"):
        net.run(2.0)


def test_two_nodes_of_one_name_are_refused():
    net = SimNetwork(1)
    net.node("server")
    with pytest.raises(ValueError, match="'server' already"):
        net.node("server")


def test_random_scripts_come_from_the_seed_and_end_in_time():
    scripts = [Script.random(seed, ["a", "b"], 20.0) for seed in range(300)]
    assert scripts == [Script.random(seed, ["a", "b"], 20.0) for seed in range(300)]
    assert len(set(scripts)) > 290
    assert all(Script.parse(repr(script)) == script for script in scripts)
    assert all(script.end_s <= 20.0 for script in scripts)
    assert all(step.fault.down_s is not None for s in scripts for step in s.steps if isinstance(step.fault, crash))
    only = [Script.random(seed, ["a", "b"], 20.0, kinds=[loss, freeze]) for seed in range(50)]
    assert {type(step.fault) for script in only for step in script.steps} == {loss, freeze}
    with pytest.raises(ValueError, match="two nodes"):
        Script.random(1, ["a"], 20.0)
    with pytest.raises(ValueError, match="heal does not come by chance"):
        [Script.random(seed, ["a", "b"], 20.0, kinds=[heal]) for seed in range(2)]


# -- seeds ----------------------------------------------------------------------------------------------

SCRIPT = Script(between(0.5, 1.0, loss(0.5)))


def fails_from(limit):
    """A test that fails from some seed on, with a request under way."""

    def test(seed):
        with SimNetwork(seed, script=SCRIPT) as net:
            server = net.node("server", lambda request: request.reply(b"yes"))
            link = net.connect(net.node("device"), server)
            pending = link.send_request("ask")
            assert net.run_until(pending.done, 60.0)
            assert seed < limit, "too large"

    return test


def test_failing_seed_names_itself_its_script_and_the_last_deliveries():
    with pytest.raises(AssertionError, match="too large") as caught:
        check_seeds(fails_from(3), range(10))
    note, proof = caught.value.__notes__
    assert note.startswith("replay with SimNetwork(seed=3, loss=0.0, duplicate=0.0, delay_s=(0.001, 0.05), ")
    assert f"script={SCRIPT!r}" in note
    assert "virtual time 0." in note
    lines = note.splitlines()[2:]
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "device -> server  Hello",
        "server -> device  Welcome",
        "device -> server  Request 0 ask",
        "server -> device  Reply 0",
    ]
    assert proof.startswith("seed 3 fails; EDGEBUS_SEED=3 runs it alone; run again it replayed exactly: 4 deliveries")


def test_seeds_that_pass_say_nothing():
    check_seeds(fails_from(10), range(10))


def test_one_seed_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("EDGEBUS_SEED", "7")
    seen = []
    check_seeds(seen.append, range(3))
    assert seen == [7]
    with pytest.raises(AssertionError) as caught:
        check_seeds(fails_from(3), range(2))
    assert "seed=7" in caught.value.__notes__[0]
    monkeypatch.setenv("EDGEBUS_SEED", "seven")
    with pytest.raises(ValueError, match="EDGEBUS_SEED is 'seven': set it to one whole number"):
        check_seeds(seen.append, range(3))


def test_what_is_random_besides_the_seed_is_found_out():
    calls = itertools.count()

    def test(seed):
        with SimNetwork(seed) as net:
            server = net.node("server", lambda request: request.reply(b"%d" % next(calls)))
            link = net.connect(net.node("device"), server)
            pending = link.send_request("ask")
            assert net.run_until(pending.done, 60.0)
            pytest.fail("as ever")

    with pytest.raises(BaseException, match="as ever") as caught:
        check_seeds(test, range(3))
    proof = caught.value.__notes__[-1]
    assert "did NOT replay (it raised Failed; delivery 3 was (0." in proof
    assert "besides the seed" in proof


def test_failure_that_is_gone_the_second_time_is_found_out():
    seen = []

    def test(seed):
        SimNetwork(seed)
        seen.append(seed)
        assert len(seen) != 2

    with pytest.raises(AssertionError) as caught:
        check_seeds(test, range(3))
    assert "seed 1 fails" in caught.value.__notes__[0]
    assert "did NOT replay (it passed; the same deliveries)" in caught.value.__notes__[0]


@pytest.fixture
def list_of_seeds():
    seeds = []
    yield seeds
    assert seeds == [2, 4, 6]


@for_seeds([2, 4, 6])
def test_for_seeds_leaves_the_other_parameters_to_pytest(list_of_seeds, seed):
    list_of_seeds.append(seed)


def test_for_seeds_counts_from_nought_and_needs_the_parameter():
    seen = []

    def test(seed):
        seen.append(seed)

    for_seeds(3)(test)()
    assert seen == [0, 1, 2]
    with pytest.raises(TypeError, match="takes no seed"):
        for_seeds(3)(lambda: None)


def test_script_replays_byte_for_byte():
    traces = []
    for seed in (1, 1, 2):
        net = SimNetwork(seed, script=Script.random(seed, ["server", "device"], 10.0))
        link = net.connect(net.node("device"), net.node("server", lambda request: request.reply(b"yes")))
        pendings = [link.send_request("ask", timeout_s=20.0) for _ in range(5)]
        net.run(20.0)
        traces.append((net.trace, [pending.outcome for pending in pendings]))
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


ACROSS_PROCESSES = """
from edgebus.testing import Script, SimNetwork
from edgebus.testing.replay import digest
names, nets = ["server", "device", "other"], []
for seed in range(20):
    net = SimNetwork(seed, loss=0.1, duplicate=0.1, script=Script.random(seed, names, 10.0))
    server = net.node("server", lambda request: request.reply(b"yes"))
    links = [net.connect(net.node(name), server) for name in names[1:]]
    for number in range(10):
        for link in links:
            net.call_later(number, lambda link=link: link.dialler.runs and link.send_request("ask"))
    net.run(20.0)
    nets.append(net)
print(digest(nets), sum(len(net.trace) for net in nets))
"""


def test_seed_replays_in_another_process_whatever_its_hashes_are():
    printed = set()
    for hash_seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", ACROSS_PROCESSES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert int(printed.pop().split()[1]) > 1000


@pytest.mark.parametrize("seeds", [0, -1, []])
def test_test_with_no_seed_is_refused_as_it_would_pass_without_being_run(seeds):
    with pytest.raises(ValueError, match="names no seed"):
        for_seeds(seeds)


@pytest.mark.parametrize("seed", [None, "x", 1.5])
def test_seed_that_would_not_replay_is_refused(seed):
    with pytest.raises(TypeError, match="seed must be a whole number"):
        SimNetwork(seed)
