"""What is counted, reported and rendered, from scripted runs."""

from __future__ import annotations

import pytest

from edgebus.payloads import decode, encode
from sled.acceptance import Decision, RoundRows
from sled.drain import Drain, Phase
from sled.messages import Traced, TracedRound
from sled.metrics import Board, Histogram, ServerReport, mean_accepted, rates, render, trimmed
from sled.traces import ROUNDS_EACH, Traces
from sled.types import Sampling


def rows(*draft) -> RoundRows:
    return RoundRows(list(draft), Sampling(), 3)


def report(board: Board, uptime_s=10.0) -> ServerReport:
    counters = {name: float(value) for name, value in board.counters.items()}
    return ServerReport(
        "toy", "float32", "serving", uptime_s, {"sessions": 2.0}, counters, {"busy": 3.0},
        trimmed(board.drafted_at), trimmed(board.accepted_at), board.histograms(), "native",
    )  # fmt: skip


@pytest.fixture
def board() -> Board:
    """Two steps: three rounds with 3, 0 and 2 drafts of which 2, 0 and 0 are accepted, then one that is no number."""
    board = Board()
    decisions = [Decision(2, 9), Decision(0, 8), Decision(0, 7)]
    board.step(20, [rows(1, 2, 3), rows(), rows(4, 5)], decisions, 0.02)
    board.committed(4, now=1.0)
    board.verdict(4, 0.001)
    board.verdict(0, 0.001)
    board.committed(1, now=9.0)
    board.verdict(4, 0.3)
    board.step(2, [rows(1)], [Decision(0, 0, finite=False)], 20.0)
    return board


def test_rounds_are_counted_by_position_hand_worked(board):
    assert dict(board.counters) == {
        "steps": 2, "tokens": 22, "rounds": 3, "drafted": 5, "accepted": 2, "wasted": 3, "committed": 5,
        "not_finite": 1,
    }  # fmt: skip
    assert trimmed(board.drafted_at) == [2, 2, 1]
    assert trimmed(board.accepted_at) == [1, 1]
    assert mean_accepted(report(board)) == pytest.approx(5 / 3)


def test_goodput_is_of_the_last_ten_seconds(board):
    assert board.goodput(now=9.0) == 0.5
    assert board.goodput(now=11.5) == 0.1
    assert board.goodput(now=30.0) == 0.0


def test_histogram_puts_values_at_their_bound_below_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 1, 1], 5.5)


def test_report_travels_and_prometheus_reads_what_is_rendered(board):
    parser = pytest.importorskip("prometheus_client.parser")
    sent = report(board)
    assert decode(ServerReport, encode(sent)) == sent
    text = render(sent, name='a"b', version="1")
    found = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    assert found["sled_sessions", ()] == 2
    assert found["sled_wasted_total", ()] == 3
    assert found["sled_refusals_total", (("code", "busy"),)] == 3
    assert found["sled_drafted_at_total", (("position", "3"),)] == 1
    assert found["sled_accepted_at_total", (("position", "2"),)] == 1
    assert found["sled_step_seconds_bucket", (("le", "0.025"),)] == 1
    assert found["sled_step_seconds_bucket", (("le", "+Inf"),)] == found["sled_step_seconds_count", ()] == 2
    assert found["sled_step_seconds_sum", ()] == pytest.approx(20.02)
    assert found["sled_window_limit_bucket", (("le", "0.0"),)] == 1
    assert found["sled_phase", (("phase", "serving"),)] == 1
    assert (
        found[
            "sled_info",
            (("dtype", "float32"), ("engine", "native"), ("name", 'a"b'), ("target", "toy"), ("version", "1")),
        ]
        == 1
    )


def test_rates_need_two_reports_of_one_life(board):
    before = report(Board(), 5.0)
    assert rates(report(board), before, 2.0)["committed"] == 2.5
    assert rates(report(board, 1.0), before, 2.0) == {}


def noted(base, arrived_at=1.0):
    return (base, arrived_at, 0.001, 0.02, 3, 2, 3, 4, 1)


def test_trace_is_for_the_owner_only_and_bounded():
    traces = Traces(max_sessions=2)
    traces.opened(b"a", "ann", now=10.0)
    for base in range(ROUNDS_EACH + 5):
        traces.add(b"a", noted(base, 11.5))
    assert traces.of(b"a", "bob", 5) is None
    assert traces.of(b"b", "ann", 5) is None
    found = traces.of(b"a", "ann", 2)
    assert [each.base for each in found.rounds] == [ROUNDS_EACH + 3, ROUNDS_EACH + 4]
    assert found.rounds[0] == TracedRound(ROUNDS_EACH + 3, 1.5, 0.001, 0.02, 3, 2, 3, 4, 1)
    assert found.earlier == ROUNDS_EACH + 3
    assert decode(Traced, encode(found)) == found
    assert len(traces.of(b"a", "ann", 1000).rounds) == ROUNDS_EACH


def test_trace_of_a_session_taken_up_again_goes_on_and_of_another_owner_begins_anew():
    traces = Traces(max_sessions=2)
    traces.opened(b"a", "ann", now=0.0)
    traces.add(b"a", noted(3))
    traces.opened(b"a", "ann", now=5.0)
    assert len(traces.of(b"a", "ann", 9).rounds) == 1
    traces.opened(b"a", "bob", now=5.0)
    assert traces.of(b"a", "ann", 9) is None
    assert traces.of(b"a", "bob", 9).rounds == []


def test_longest_unused_trace_makes_room():
    traces = Traces(max_sessions=2)
    for session in (b"a", b"b"):
        traces.opened(session, "ann", now=0.0)
    traces.add(b"a", noted(3))
    traces.opened(b"c", "ann", now=0.0)
    assert traces.of(b"b", "ann", 9) is None
    assert traces.of(b"a", "ann", 9) is not None
    traces.add(b"b", noted(3))  # forgotten: nothing happens


def test_drain_ends_with_the_last_session_or_when_its_time_is_over():
    drain = Drain(30.0)
    assert drain.look(num_sessions=0, now=0.0) is Phase.SERVING
    drain.begin(now=10.0)
    assert drain.look(num_sessions=1, now=39.0) is Phase.DRAINING
    drain.begin(now=39.0)  # a second time changes nothing
    assert drain.remaining_s(now=39.0) == 1.0
    assert drain.look(num_sessions=1, now=40.0) is Phase.CLOSING
    early = Drain(30.0)
    early.begin(now=0.0)
    assert early.look(num_sessions=0, now=0.1) is Phase.CLOSING


@pytest.mark.parametrize("bad", [-1.0, float("nan"), 1e6])
def test_bad_drain_time_is_an_error(bad):
    with pytest.raises(ValueError, match="drain_s"):
        Drain(bad)
