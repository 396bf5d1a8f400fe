"""How much calibration runs: all of it where that is cheap, minutes where it is not; and what its map stands on."""

import numpy as np
import pytest

from qpart import confidence, effort
from qpart.executors.sensitivity import row_work, rows_of
from qpart.network import Network, Node
from qpart.ops import Add, Attention, Conv2d, GlobalMean, Linear, Reduce, Relu
from tests.qpart import small


def large(channels=256, size=64, blocks=8):
    """A residual net of 11 million parameters and 30 billion multiply-accumulates."""
    conv = Conv2d((3, 3), (1, 1), (1, 1), channels, channels)
    nodes = [Node(Conv2d((3, 3), (1, 1), (1, 1), 3, channels), (0,))]
    for _ in range(blocks):
        last = len(nodes)
        nodes += [
            Node(conv, (last,)),
            Node(Relu(), (last + 1,)),
            Node(conv, (last + 2,)),
            Node(Add(), (last + 3, last)),
        ]
    nodes += [Node(GlobalMean(), (len(nodes),)), Node(Linear(channels, 10), (len(nodes) + 1,))]
    return Network((3, size, size), tuple(nodes))


def test_a_small_network_gets_everything():
    chosen = effort.choose(small.network(), row_work(small.network()), 5000, 7)
    assert chosen == effort.Effort(1000, 200, 5000, 5000, True)
    few = effort.choose(small.network(), row_work(small.network()), 400, 7)
    assert (few.noise_inputs, few.pattern_inputs) == (400, 400)


def test_a_large_network_gets_minutes_and_more_effort_more():
    network = large()
    once, more = (effort.choose(network, row_work(network), 5000, 7, effort=times) for times in (1.0, 1000.0))
    assert once == effort.Effort(64, 60, 300, 300, False)
    assert more.noise_inputs > once.noise_inputs
    assert more.num_patterns > once.num_patterns
    asked = effort.choose(network, row_work(network), 5000, 7, num_patterns=90, noise_inputs=77)
    assert (asked.num_patterns, asked.noise_inputs) == (90, 77)


def test_cuts_of_an_attention_are_compared_as_well():
    nodes = (
        Node(Linear(8, 24), (0,)),
        Node(Attention(2, 4, 4, 0.5, (0, 8, 16)), (1, 1, 1)),
        Node(Reduce("mean", (0,)), (2,)),
    )
    assert effort.dominated(Network((5, 8), nodes)) == frozenset()


def test_cuts_that_the_next_one_beats():
    # stem 1, relu 2, conv 3, add 4, mean 5, fc: cut 1 is before the relu, cut 3 before the sum, cut 4 before the mean.
    assert effort.dominated(small.network()) == {1, 3, 4}


def test_rows_are_every_weight_and_every_value_with_its_first_reader():
    assert [(row.value, row.first) for row in rows_of(small.network())] == [
        (None, 0), (0, 0), (1, 1), (None, 2), (2, 2), (2, 3), (3, 3), (4, 4), (None, 5), (5, 5),
    ]  # fmt: skip
    assert row_work(small.network())[0] == sum(effort.work_of(small.network()))


def test_confidence_says_what_was_measured_and_what_was_not():
    artefact = small.artefact()
    first, last = artefact.tables.budget.accuracy[0], artefact.tables.budget.accuracy[-1]
    for level in confidence.of_levels(artefact):
        expected = "extrapolated" if level.accuracy < first else "capped" if level.accuracy > last else "measured"
        assert level.basis == expected
        within = [trial for trial in artefact.trials if trial.psi <= level.budget]
        assert level.patterns == len(within)
        assert level.over == sum(trial.changed / trial.inputs > level.accuracy for trial in within)
    found = confidence.of_map(artefact)
    assert found.patterns == 60
    assert found.inputs == 400
    assert found.covered >= 0.9
    assert found.log_correlation > 0.9


def test_rank_correlation_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 9, 100).astype(float), random.normal(size=100)
    y += x
    found = confidence._correlation(confidence._ranks(x), confidence._ranks(y))
    assert found == pytest.approx(stats.spearmanr(x, y).statistic)
