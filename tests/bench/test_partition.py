"""The benchmarks of qpart count what they say: worst nets, broken promises, float32 heads, the best other way."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats

pytest.importorskip("torch")

from bench.macro import latency, promise, tails
from qpart.artefact import Verified
from qpart.demo.nets import SmallResNet
from tests.qpart import small

STAMP = {"cpu": "x", "cores": 2, "commit": "abc"}


def claim(net, reduction, drop, *, accuracy=0.01, apart=0):
    return {
        "net": net, "reduction": reduction, "drop": drop, "changed": 0.02, "accuracy": accuracy, "images": 10_000,
        "planned_minus_sent_bytes": apart, "cut": 12 if net == "fc" else 3, "nodes": 12,
    }  # fmt: skip


def test_promises_take_the_worst_net_and_count_every_plan():
    claims = {
        "": [claim("fc", 0.85, 0.001), claim("resnet", 0.79, 0.002)],
        "_labels": [claim("fc", 0.9, 0.001), claim("resnet", 0.82, 0.004)],
        "_seen": [claim("fc", 0.93, 0.009)],
        "_split": [claim("fc", 0.8, 0.0), claim("resnet", 0.7, 0.006)],
        "_split_labels": [claim("fc", 0.9, 0.0)],
        "_split_seen": [claim("resnet", 0.91, 0.003)],
    }
    slow = [claim("fc", 0, 0.05, apart=2)]
    rows = [claim("fc", 0, 0.03, accuracy=0.02), claim("fc", 0, 0.02, accuracy=0.02, apart=7)]
    figures = promise.figures(rows, claims, slow, STAMP)
    assert "1 of the plans are whole nets" in figures["qpart.payload_reduction_min"]["unit"]
    assert "whole" not in figures["qpart.payload_reduction_min_split_seen"]["unit"]
    assert {key: figure["value"] for key, figure in figures.items()} == {
        "qpart.payload_reduction_min": 0.79,
        "qpart.payload_reduction_min_labels": 0.82,
        "qpart.payload_reduction_min_seen": 0.93,
        "qpart.payload_reduction_min_split": 0.7,
        "qpart.payload_reduction_min_split_labels": 0.9,
        "qpart.payload_reduction_min_split_seen": 0.91,
        "qpart.accuracy_drop_max": 0.009,
        "qpart.promises_broken": 1,
        "qpart.changed_over_promise": 9,
        "qpart.plans_served": 11,
        "qpart.planned_minus_sent_bytes": 9,
    }


def test_a_float32_head_is_weights_biases_and_what_travels():
    artefact = small.artefact()
    pattern = promise.Pattern(
        cut=3, weight_bits=(4, 4), live_bits=(4, 4), psi=0.0, download_bytes=0, segment_bytes=0, up_bytes=0,
        device_bytes=0,
    )  # fmt: skip
    weights = (9 * 4 + 4) + (9 * 4 * 4 + 4)  # stem and block.conv; both the block's input and its output travel
    assert promise.float32_bytes(artefact, pattern) == 4 * (weights + 2 * 4 * 36)


def test_the_level_is_the_largest_whose_patterns_lose_less_by_the_labels():
    artefact = small.artefact()

    def with_drops(*drops, verified_on=100_000):
        levels = (0.01, 0.05, 0.2)
        seen = [Verified(1, (4,), (4,), 0.1, level, drop) for level, drop in zip(levels, drops, strict=True)]
        effort = msgspec.structs.replace(artefact.extent.effort, verify_inputs=verified_on)
        extent = msgspec.structs.replace(artefact.extent, effort=effort)
        inputs = np.zeros((100_000, 1, 6, 6), np.uint8)
        return replace(artefact, verified=tuple(seen), inputs=inputs, extent=extent)

    assert promise.level_by_labels(with_drops(0.0, 0.002, 0.02)) == 0.05
    assert promise.level_by_labels(with_drops(0.0, 0.02, 0.0)) == 0.01, "a pattern within a level counts above it too"
    assert promise.level_by_labels(with_drops(None, None, None)) == 0.01
    few = with_drops(0.0, 0.002, 0.02, verified_on=1000)
    assert promise.level_by_labels(few) == 0.01, "what was seen of 1,000 inputs is not sure to so much"
    assert promise.level_by_labels(few, bounded=False) == 0.05
    assert promise.level_by_labels(with_drops(0.0, 0.02, 0.0), bounded=False) == 0.01


def test_the_bound_of_a_drop_covers_it_whatever_it_is():
    """Every outcome for 30 inputs, of which some become wrong, some right, and some wrong in another way."""
    total = 30
    counts = [
        (lost, gained, other)
        for lost in range(total + 1)
        for gained in range(total + 1 - lost)
        for other in range(total + 1 - lost - gained)
    ]
    bounds = np.array([promise.drop_bound(sum(each), each[0] - each[1], total) for each in counts])
    for shares in (
        (0.01, 0.0, 0.0),
        (0.02, 0.02, 0.0),
        (0.1, 0.05, 0.1),
        (0.3, 0.3, 0.0),
        (0.0, 0.1, 0.2),
        (0.9, 0.05, 0.0),
    ):
        left = max(0.0, 1.0 - sum(shares))
        chance = stats.multinomial.pmf([(*each, total - sum(each)) for each in counts], total, [*shares, left])
        assert chance[bounds >= shares[0] - shares[1]].sum() >= 0.95


def test_the_bound_of_a_drop_is_of_counts_and_no_wider_than_it_has_to_be():
    assert promise.drop_bound(0, 0, 100) == pytest.approx(1 - 0.025**0.01), "nothing seen is not nothing"
    assert promise.drop_bound(100, 100, 100) == 1.0
    assert promise.drop_bound(48, 8, 2000) == pytest.approx(0.0141, abs=1e-4)
    assert promise.drop_bound(48, 8, 2000) > promise.drop_bound(8, 8, 2000) > 8 / 2000, "what was gained may be chance"
    assert promise.drop_bound(10, -10, 2000) > -10 / 2000


def test_latency_is_held_against_the_best_other_way_that_keeps_to_the_accuracy():
    def row(way, seconds, **more):
        return {
            "net": "fc", "mbit_s": 1.0, "raw_input_stays": False, "way": way, "mean_s": seconds, "cold_s": seconds,
            "warm_s": seconds, "inferences": 1000, **more,
        }  # fmt: skip

    rows = [row("qpart", 2.0), row("uniform", 3.0, holds=True), row("jalad", 1.0, holds=False)]
    once = [{**one, "inferences": 1} for one in rows]
    rows += [{**one, "raw_input_stays": True} for one in rows] + [{**one, "cold_s": 2.0} for one in once]
    found = latency.figures(rows, {"fc": {"calibration_s": 9.0}}, STAMP)
    assert found["qpart.latency.mean_over_best_other"]["value"] == 1.5
    assert found["qpart.latency.warm_over_best_other_private"]["value"] == 1.5
    assert found["qpart.latency.once_over_best_other"]["value"] == 1.0
    assert found["qpart.calibration.fc_s"]["value"] == 9.0


def test_tails_are_held_against_the_same_server_without_batches():
    rows = [
        {"net": net, "devices": devices, "max_batch": batch, "tails_per_s": rate * devices * (2 if batch > 1 else 1)}
        for net, rate in (("fc", 10.0), ("resnet", 5.0))
        for devices in tails.DEVICES
        for batch in tails.BATCHES
    ]
    found = {key: figure["value"] for key, figure in tails.figures(rows, STAMP).items()}
    assert found == {
        "qpart.tails_per_s.fc": 320.0, "qpart.tails_per_s.resnet": 160.0, "qpart.tails_batched_ratio": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
def test_the_four_nets_are_taken_in_whole(shape):
    import torch

    from bench.nets.recipes import RECIPES, TITLES
    from qpart.graph import trace

    assert set(RECIPES) == set(TITLES)
    for name, recipe in RECIPES.items():
        torch.manual_seed(0)
        net = recipe.make(shape, 10).eval()
        network, parameters = trace(net, torch.rand(2, *shape))
        assert network.shapes[-1] == (10,), name
        learnt = sum(p.numel() for p in net.parameters())
        kept = sum(p.weight.size + (0 if p.bias is None else p.bias.size) for p in parameters.values())
        assert kept >= 0.9 * learnt, name  # the rest is batch norm, which is folded
    assert SmallResNet in {recipe.make for recipe in RECIPES.values()}
