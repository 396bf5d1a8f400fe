"""Calibration of a small real net: tables that mean what they say, and verified budgets."""

import msgspec
import numpy as np
import pytest

from edgebus.blobs import framing_bytes
from qpart import noise
from qpart.calibrate import calibrate, measure
from qpart.errors import RequestError, ShapeMismatch, UnsupportedModel
from qpart.executors import sensitivity
from qpart.executors import simulator as simulators
from qpart.executors.simulator import Simulator
from qpart.executors.with_torch import TorchExecutor
from qpart.inputs import as_float
from qpart.network import Parameters
from qpart.pieces import address_of, encode_pieces
from qpart.solve import Solver
from qpart.tables import WIDTHS
from qpart.verify import SHRINK, verify_levels
from tests.qpart import small


def simulator() -> Simulator:
    artefact = small.artefact()
    return Simulator(artefact.network, artefact.parameters, artefact.ranges)


def test_noise_of_one_tensor_is_what_running_it_alone_gives():
    artefact = small.artefact()
    inputs, network = artefact.float_inputs(), artefact.network
    for node in network.parametric:
        # At the cut right behind the node with everything else at 16 bits, the others' noise does not show.
        bits = [16] * (network.parametric.index(node)) + [3]
        found = simulator().logits(node + 1, bits, [16] * len(network.live[node + 1]), inputs)
        psi = noise.squared_error(found, artefact.logits) / len(inputs) / artefact.margin
        assert artefact.tables.weight_psi[node][WIDTHS.index(3)] == pytest.approx(psi, rel=0.05)


def test_noise_of_a_value_is_what_sending_it_alone_gives():
    artefact = small.artefact()
    inputs, network = artefact.float_inputs(), artefact.network
    live = network.live[3]
    for k, value in enumerate(live):
        bits = [16] * len(live)
        bits[k] = 2
        found = simulator().logits(3, [16, 16], bits, inputs)
        psi = noise.squared_error(found, artefact.logits) / len(inputs) / artefact.margin
        assert artefact.tables.live_psi[3][value][0] == pytest.approx(psi, rel=0.05)


def test_noise_falls_with_bits():
    rows = [*small.artefact().tables.weight_psi.values(), *small.artefact().tables.live_psi[3].values()]
    for row in rows:
        assert row[0] > row[2] > row[4] > row[6] > row[7]


def test_pixels_cost_no_noise_at_eight_bits():
    assert small.artefact().tables.live_psi[0][0][WIDTHS.index(8)] < 1e-9


@pytest.mark.parametrize(("count", "warned"), [(400, 1), (1000, 0)])
def test_few_inputs_are_said_to_make_the_promise_weaker(caplog, count, warned):
    artefact = small.artefact()
    inputs = np.resize(artefact.inputs, (count, *artefact.inputs.shape[1:]))
    calibrate(artefact.network, artefact.parameters, inputs, name="few", levels=(0.1,), num_patterns=20)
    said = [record.getMessage() for record in caplog.records if record.name == "qpart.calibrate"]
    assert len(said) == warned
    for line in said:  # 1 - 0.05^(1/400) and the same of 1,000: the exact bound of none
        assert line.startswith("calibrating few: 400 inputs are few")
        assert "0.75 % of all (upper 95 % bound; 0.3 % with 1,000)" in line
        assert line.endswith("give 1,000 or more")


def test_calibration_is_repeatable():
    again = calibrate(
        small.network(),
        small.parameters(),
        small.examples(400, seed=2)[0],
        name="stripes",
        num_patterns=60,
        levels=(0.01, 0.05, 0.2),
    )
    assert again.trials == small.artefact().trials
    assert again.shrink == small.artefact().shrink


def test_addresses_are_those_of_the_pieces():
    artefact = small.artefact()
    for node, row in artefact.piece_ids.items():
        contents = encode_pieces(artefact.parameters[node])
        for address, content, size in zip(row, contents, artefact.tables.piece_bytes[node], strict=True):
            assert address == (address_of(content) if content else b"")
            assert size == (len(content) + framing_bytes(len(content)) if content else 0)


def test_every_verified_pattern_holds_as_a_whole():
    artefact, solver = small.artefact(), Solver(small.artefact().tables)
    run = measure(simulator(), artefact.float_inputs(), artefact.logits, artefact.margin)
    for cut in range(artefact.network.num_nodes + 1):
        for level, accuracy in enumerate(artefact.tables.levels):
            budget = artefact.tables.budget.budget(accuracy)
            pattern = solver.best(cut, budget * artefact.shrink.get((cut, level), 1.0))
            if pattern is not None:
                joint = run(pattern)
                assert joint.psi <= budget
                assert joint.changed <= accuracy


def test_budgets_shrink_until_the_pattern_holds():
    class Joint(msgspec.Struct):
        psi: float
        changed: float = 0.0

    tables = small.artefact().tables
    solver, limit = Solver(tables), tables.budget.budget(0.2)

    def twice(pattern):
        return Joint(2 * pattern.psi)

    shrink = verify_levels(tables, twice)
    assert shrink, "twice the noise cannot fit everywhere"
    powers = [SHRINK**k for k in range(1, 21)]
    assert all(factor == 0 or np.isclose(factor, powers).any() for factor in shrink.values())
    for cut in range(tables.network.num_nodes + 1):
        pattern = solver.best(cut, limit * shrink.get((cut, 2), 1.0))
        assert pattern is None or 2 * pattern.psi <= limit


def test_what_never_holds_gets_no_budget():
    class Never(msgspec.Struct):
        psi: float = 1e9
        changed: float = 1.0

    shrink = verify_levels(small.artefact().tables, lambda pattern: Never())
    assert set(shrink.values()) == {0.0}


def test_progress_rises_to_one():
    seen = []
    calibrate(
        small.network(), small.parameters(), small.examples(100, seed=2)[0], name="x", num_patterns=20,
        levels=(0.1,), progress=lambda stage, share: seen.append((stage, share)),
    )  # fmt: skip
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert list(dict.fromkeys(stage for stage, _ in seen)) == [
        "preparing", "noise of single tensors", "random patterns", "verifying",
    ]  # fmt: skip


def test_bad_input_is_refused():
    images, _ = small.examples(100, seed=2)
    with pytest.raises(RequestError, match="give 100"):
        calibrate(small.network(), small.parameters(), images[:50], name="x")
    with pytest.raises(ShapeMismatch):
        calibrate(small.network(), small.parameters(), images[:, :, :4], name="x")
    broken = {i: Parameters(p.weight * np.float32(1e20), p.bias) for i, p in small.parameters().items()}
    with pytest.raises(UnsupportedModel):
        calibrate(small.network(), broken, images, name="x")
    flat = {i: Parameters(p.weight * 0, p.bias) for i, p in small.parameters().items()}
    flat[5] = Parameters(flat[5].weight, np.zeros(small.CLASSES, np.float32))
    with pytest.raises(UnsupportedModel, match="calibrate a trained model"):
        calibrate(small.network(), flat, as_float(images, small.SHAPE), name="x")


@pytest.mark.parametrize("sent_bytes", [1, 4 * 8 * 900])
def test_rows_in_small_batches_are_rows_at_once(monkeypatch, sent_bytes):
    """Memory bounds how many inputs run at once, never what is measured of them."""
    artefact = small.artefact()
    network, inputs = artefact.network, artefact.float_inputs()[:30]
    values, widths = simulator().all_values(inputs), list(range(len(WIDTHS)))
    rows = sensitivity.rows_of(network)
    whole = [sensitivity._errors(simulator(), row, widths, values) for row in rows]
    monkeypatch.setattr(sensitivity, "TENSOR_BYTES", sent_bytes)
    assert sensitivity.batch_of(network, 0, 8) < len(inputs)
    parts = [sensitivity._errors(simulator(), row, widths, values) for row in rows]
    largest = np.abs(artefact.logits).max()  # answers of other batches round differently, by 1e-6 of the largest
    for few, many in zip(np.array(parts), np.array(whole), strict=True):
        assert np.allclose(few[:, 0], many[:, 0], rtol=1e-3, atol=len(inputs) * (1e-6 * largest) ** 2 * 100)


def test_forwards_of_calibration_have_no_larger_tensors_than_caches_and_allocators_like(monkeypatch):
    """64 inputs at 8 widths of a net for images would otherwise be tensors of gigabytes."""
    seen = []
    run = TorchExecutor.run

    def watched(self, *args):
        found = run(self, *args)
        seen.extend(4 * tensor.numel() for tensor in found.values())
        return found

    artefact = small.artefact()
    largest = 4 * max(map(artefact.network.items, range(artefact.network.num_nodes + 1)))
    for module in (sensitivity, simulators):
        monkeypatch.setattr(module, "TENSOR_BYTES", 16 * largest)
    values = simulator().all_values(artefact.float_inputs()[:64])
    monkeypatch.setattr(TorchExecutor, "run", watched)
    for row in sensitivity.rows_of(artefact.network):
        sensitivity._errors(simulator(), row, list(range(len(WIDTHS))), values)
    cut = artefact.network.num_nodes - 1
    weights, live = [4] * len([i for i in artefact.network.parametric if i < cut]), artefact.network.live[cut]
    simulator().logits(cut, weights, [8] * len(live), artefact.float_inputs())
    assert 0 < max(seen) <= 16 * largest
