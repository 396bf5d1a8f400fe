"""The demonstration's proof can fail: each statement is shown one thing that is so, and one that is not."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

from qpart.cli.show import plan_object
from qpart.demo import baselines, proof
from qpart.demo.held_out import HeldOut
from qpart.demo.roles import ROLES, Role
from qpart.errors import Infeasible
from qpart.messages import ANSWERED_BYTES
from qpart.run.models import make_served
from tests.qpart import small

COUNT = 200


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from qpart.artefact import save

    artefact = save(small.artefact(), tmp_path_factory.mktemp("demo") / "stripes.qpart")
    return make_served(artefact, macs_per_s=1e12, price_per_s=0.0)[0]


@pytest.fixture(scope="module")
def held(served):
    return HeldOut(served, *small.examples(COUNT, seed=7))


@pytest.fixture(scope="module")
def role():
    slow = msgspec.structs.replace(ROLES[1].request.device, macs_per_s=1e4)
    channel = msgspec.structs.replace(ROLES[1].request.channel, round_trip_s=0.0)
    return Role(
        "sensor", "stripes", "", msgspec.structs.replace(ROLES[1].request, accuracy=0.05, device=slow, channel=channel)
    )


@pytest.fixture
def outcome(served, held, role):
    """What a device would print and write."""
    plan = served.plan(role.request).plan
    pattern = plan.pattern
    assert 0 < pattern.cut < served.artefact.network.num_nodes
    bytes_by_kind = {"download": pattern.download_bytes, "up": COUNT * pattern.up_bytes, "answer": COUNT * 16}
    traffic = {f"{how}{kind}_bytes": n for kind, n in bytes_by_kind.items() for how in ("", "planned_")}
    printed = {"plan": plan_object(plan, rows=True), "traffic": traffic, "seconds_per_inference": 0.001}
    return proof.Outcome(role, printed, held.replayed(pattern, COUNT))


def test_a_plan_survives_json(outcome, served):
    assert outcome.plan == served.plan(outcome.role.request).plan


def test_bytes(outcome):
    assert proof.bytes_as_planned(outcome).holds
    outcome.traffic["up_bytes"] += 1
    assert not proof.bytes_as_planned(outcome).holds


def test_accuracy(outcome, held):
    assert proof.accuracy_as_promised(outcome, held).holds
    wrong = outcome.logits.copy()
    wrong[: COUNT // 4] = np.roll(wrong[: COUNT // 4], 1, axis=1)
    finding = proof.accuracy_as_promised(replace(outcome, logits=wrong), held)
    assert not finding.holds
    assert "VIOLATED" in finding.text


def test_answers(outcome, held):
    same = proof.answers_as_simulated(outcome, held)
    assert same.holds
    assert "equal bit for bit" in same.text
    scale = np.abs(outcome.logits).max()
    near = proof.answers_as_simulated(replace(outcome, logits=outcome.logits + np.float32(1e-5) * scale), held)
    assert near.holds
    assert "bit for bit" not in near.text
    assert not proof.answers_as_simulated(
        replace(outcome, logits=outcome.logits + np.float32(0.01) * scale), held
    ).holds


def test_refusals(outcome, served, role):
    hopeless = msgspec.structs.replace(role.request, accuracy=1e-7)
    with pytest.raises(Infeasible) as refused:
        served.plan(hopeless)
    line = f"qpart: infeasible ({refused.value.constraint}): {refused.value}"
    assert "1e-07" in line
    assert proof.refusal_helps(line, role, served).holds
    assert not proof.refusal_helps("qpart: infeasible (accuracy): ask for a drop of 1e-07", role, served).holds
    assert not proof.refusal_helps("qpart: no", role, served).holds


def test_pieces_travel_once(outcome):
    plan = outcome.plan
    fewer = msgspec.structs.replace(plan.pattern, download_bytes=plan.pattern.download_bytes - 100)
    printed = {**outcome.printed, "plan": plan_object(msgspec.structs.replace(plan, pattern=fewer), rows=True)}
    again = replace(
        outcome, printed={**printed, "traffic": {**outcome.traffic, "download_bytes": fewer.download_bytes}}
    )
    assert proof.fetched_once(outcome, again).holds
    assert not proof.fetched_once(outcome, outcome).holds
    assert not proof.fetched_once(outcome, replace(again, logits=outcome.logits + 1)).holds


def test_a_closer_accuracy_loads_what_is_missing(outcome):
    assert not proof.planes_alone(outcome, outcome).holds, "everything was loaded"
    plan = outcome.plan
    fewer = msgspec.structs.replace(plan.pattern, download_bytes=plan.pattern.segment_bytes - 100)
    printed = {**outcome.printed, "plan": plan_object(msgspec.structs.replace(plan, pattern=fewer), rows=True)}
    traffic = {**outcome.traffic, "download_bytes": fewer.download_bytes}
    assert proof.planes_alone(outcome, replace(outcome, printed={**printed, "traffic": traffic})).holds
    traffic["download_bytes"] += 1
    assert not proof.planes_alone(outcome, replace(outcome, printed={**printed, "traffic": traffic})).holds


def test_baselines_are_counted_like_plans(held, role, served):
    tables, request = held.artefact.tables, role.request
    plan = served.plan(request).plan
    n, answer = request.inferences, 16 + ANSWERED_BYTES
    assert (
        baselines.payload(tables, plan.pattern, n) == plan.pattern.download_bytes / n + plan.pattern.up_bytes + answer
    )
    raw = baselines.raw(held, request)
    moved = 36 + tables.infer_bytes[0] + answer
    assert raw.payload_bytes == pytest.approx(moved + tables.manifest_bytes[0] / n)
    assert raw.note
    full = baselines.full_precision(held, request)
    weights = sum(p.weight.size + p.bias.size for p in held.artefact.parameters.values())
    assert full.payload_bytes == pytest.approx((4 * weights + tables.manifest_bytes[-1]) / n)
    assert full.accuracy == held.accuracy(held.full)


def test_the_picture_is_drawn(held, served, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from qpart.demo import curve

    monkeypatch.setattr(curve, "NET_NAMES", {"stripes": "stripes"})
    plans, violated = curve.draw(tmp_path / "picture.png", {"stripes": (served, held)})
    assert plans >= 3
    assert 0 <= violated <= plans
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
