"""The bus benchmark measures what it says: its arithmetic, its window, its processes and its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import record, report
from bench.peers import contract
from bench.peers.processes import Child, ChildFailed, paired
from bench.peers.registry import PEERS, Entry
from bench.peers.run import WORKLOADS
from bench.peers.stats import Blocks, Gathered, in_turn, interval, percentile, ratio, spread_us

GOALS = {
    "bus.roundtrip_ratio_pyzmq",
    "bus.bulk_ratio_pyzmq",
    "bus.draft_beside_bulk_ratio",
    "bus.fanin64_ratio_pyzmq",
    "bus.shm_ratio_iceoryx2",
    "bus.import_ms",
}
TEN = [float(value) for value in range(1, 11)]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (1.0, 10.0), (0.01, 1.0)])
def test_percentile_is_the_smallest_value_that_covers_the_share(share, expected):
    assert percentile(TEN[::-1], share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), (TEN, 0.0), (TEN, 1.1)])
def test_percentile_refuses_what_it_cannot_answer(values, share):
    with pytest.raises(ValueError, match="percentile needs"):
        percentile(values, share)


def test_ratio_is_taken_block_by_block_so_that_a_noisy_block_does_not_count():
    assert ratio([2.0, 200.0, 2.0], [1.0, 100.0, 1.0]) == 2.0
    assert ratio([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0


def test_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held = []
    for _ in range(2000):
        ratios = rng.lognormal(sigma=0.5, size=21)  # of median 1
        low, high = interval(ratios, [1.0] * 21)
        held.append(low <= 1.0 <= high)
    assert 0.88 <= np.mean(held) <= 0.96  # of 21 ranks no choice is nearer to 0.9 from above than 0.922


@pytest.mark.parametrize("num", [1, 2, 3])
def test_interval_of_a_few_blocks_is_all_of_them(num):
    assert interval(TEN[:num], [1.0] * num) == (1.0, float(num))


def test_gathered_blocks_of_several_openings_leave_out_who_failed_once():
    gathered = Gathered()
    for of, absent in [({"a": [1], "b": [2]}, {}), ({"a": [3]}, {"b": "failed"}), ({"a": [4], "b": [5]}, {})]:
        blocks = Blocks({}, dict(absent))
        blocks.of = of
        gathered.add(blocks)
    assert (gathered.of, gathered.absent) == ({"a": [1, 3, 4]}, {"b": "failed"})


def test_spread_takes_all_blocks_together_and_keeps_the_p50_of_each():
    spread = spread_us([[1e-6, 3e-6], [5e-6, 9e-6]])
    assert spread == {"p50_us": 3.0, "p90_us": 9.0, "p99_us": 9.0, "block_p50_us": [1.0, 5.0], "count": 4}


def test_peers_take_turns_forwards_and_backwards():
    assert list(in_turn(["a", "b"], 3)) == ["a", "b", "b", "a", "a", "b"]


class Wire:
    """Takes tensors and gives receipts in order; remembers how many were on their way."""

    def __init__(self):
        self.waiting = []
        self.most = 0

    def send(self, tensor):
        self.waiting.append(tensor)
        self.most = max(self.most, len(self.waiting))

    def receive(self):
        return contract.receipt(self.waiting.pop(0))


def test_stream_keeps_its_window_full_and_ends_with_every_tensor_acknowledged():
    wire = Wire()
    streamed = contract.streamed(wire.send, wire.receive, 64, 10, 60.0)
    assert (streamed["count"], wire.most, wire.waiting) == (10, contract.WINDOW, [])


def test_stream_ends_when_told_to():
    wire, left = Wire(), iter([True] * 6 + [False] * 100)
    streamed = contract.streamed(wire.send, wire.receive, 64, 1000, 60.0, lambda: next(left))
    assert (streamed["count"], wire.waiting) == (6, [])


def test_receipt_notices_a_tensor_that_was_overwritten_on_its_way():
    with pytest.raises(AssertionError, match="overwritten"):
        contract.receipt(np.array([1, 0, 2], np.float32))


def test_receipt_of_another_tensor_is_noticed():
    wire = Wire()
    wire.send(contract.Tensors(64).stamped(7))
    with pytest.raises(AssertionError, match="another tensor than 6"):
        contract.check_receipt(wire.receive(), 6)


def test_beside_measures_only_once_the_window_has_been_full():
    sent = []

    def stream(going_on):
        while going_on():
            sent.append(1)
        return {"count": len(sent)}

    result = contract.beside(lambda: [float(len(sent))], stream)
    assert result["rounds"][0] >= contract.WINDOW
    assert result["count"] >= result["rounds"][0]


def test_beside_does_not_wait_for_a_stream_that_failed(monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda _: None)

    def stream(_):
        raise OSError("gone")

    with pytest.raises(IndexError):
        contract.beside(lambda: [0.0], stream)


def test_what_is_not_installed_says_so():
    assert "no-such-package is not installed" in Entry("tcp", ("no-such-package",)).missing()
    assert "no-such-program" in Entry("tcp", (), program=lambda: None, program_name="no-such-program").missing()
    assert Entry("tcp", ("numpy",)).missing() is None


@pytest.mark.net
def test_raw_tcp_is_measured_in_two_processes():
    with paired(PEERS["tcp"].config()) as pair:
        before = pair.cpu_s()
        assert len(pair.device.ask("rounds", count=20, max_s=5.0)) == 20
        assert pair.device.ask("stream", num_bytes=1 << 20, count=6, max_s=5.0)["count"] == 6
        assert pair.cpu_s() > before


@pytest.mark.net
def test_a_child_that_fails_says_why_and_is_ended():
    with Child("device", PEERS["tcp"].config()) as child:  # it is told no endpoint
        with pytest.raises(ChildFailed, match="ValueError"):
            child.place()
        assert child.poll_end() != 0


@pytest.mark.net
def test_a_command_that_fails_comes_back_as_an_error_and_the_child_goes_on():
    with paired(PEERS["tcp"].config()) as pair:
        with pytest.raises(ChildFailed, match="no_such_thing"):
            pair.device.ask("no_such_thing")
        assert pair.device.ask("usage")["rss_bytes"] > 0


# made by hand, one of each workload: what comes out is checked against what was put in
RESULTS = {
    "round_trip": {"free": {"ratios": {"insecure": 1.1, "curve": 1.2}}},
    "bulk": {"1MiB": {"ratios": {"insecure": 0.95}}, "16MiB": {"ratios": {"insecure": 0.9}}},
    "draft_beside_bulk": {"peers": {"edgebus": {"over_idle": 2.5}}},
    "fanin64": {"depth_1": {"ratios": {"insecure": 0.8}}},
    "idle1000": {"peers": {"edgebus": {"links": 1000, "rss_mib": 70.0, "cpu_percent": 3.0}}},
    "shm": {"1MiB": {"ratios": {"one_way": 1.1}}, "16MiB": {"ratios": {"one_way": 1.05}}},
    "import": {"peers": {"edgebus": {"ms": 40.0}}},
}


def test_figures_take_the_worse_of_both_and_cover_every_goal():
    assert set(RESULTS) == set(WORKLOADS)
    values = {key: value for name in WORKLOADS for key, (value, _, _) in WORKLOADS[name].figures(RESULTS[name]).items()}
    assert set(values) >= GOALS
    assert {key: values[key] for key in GOALS} == {
        "bus.roundtrip_ratio_pyzmq": 1.2,
        "bus.bulk_ratio_pyzmq": 0.9,
        "bus.draft_beside_bulk_ratio": 2.5,
        "bus.fanin64_ratio_pyzmq": 0.8,
        "bus.shm_ratio_iceoryx2": 1.1,
        "bus.import_ms": 40.0,
    }


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("round_trip", {"free": {"ratios": {"insecure": 1.1}}}),
        ("bulk", {"1MiB": {"ratios": {"insecure": 1.0}}, "16MiB": {"ratios": {}}}),
        ("draft_beside_bulk", {"peers": {}}),
        ("fanin64", {"depth_1": {"ratios": {}}}),
        ("shm", {"1MiB": {"ratios": {}}, "16MiB": {"ratios": {"one_way": 1.0}}}),
    ],
)
def test_half_a_measurement_gives_no_figure(name, results):
    assert WORKLOADS[name].figures(results) == {}


def test_figures_are_recorded_with_their_origin_beside_plain_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "FIGURES", tmp_path / "figures.json")
    stamp = {"cpu": "a cpu", "cores": 2, "commit": "abc"}
    figure = record.figure(1.1, "time ours / theirs", "pyzmq", "python -m this", stamp)
    record.write("one", {}, {"a.plain": 3}, stamp)
    record.write("two", {}, {"a.figure": figure}, stamp)
    assert json.loads((tmp_path / "figures.json").read_text()) == {
        "a.figure": {
            "value": 1.1,
            "unit": "time ours / theirs",
            "peer": "pyzmq",
            "machine": "a cpu, 2 cores",
            "commit": "abc",
            "command": "python -m this",
        },
        "a.plain": 3,
    }


def test_report_reads_plain_figures_and_those_with_their_origin():
    plain = {"sled.exactness.equal": 5, "sled.exactness.answers": 7, "sled.exactness.ties": 0}
    stamp = {"cpu": "a cpu", "cores": 2, "commit": "abc"}
    full = {key: record.figure(value, "answers", "reference", "cmd", stamp) for key, value in plain.items()}
    assert report.table(full) == report.table(plain)
    assert "5 of 7" in report.table(full)
