"""The demonstration's networks, and their training on the digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from qpart.demo import data, train
from qpart.demo.nets import FullyConnected, SmallResNet
from qpart.executors.with_numpy import NumpyExecutor
from qpart.graph import load_model, trace
from qpart.inputs import load_inputs


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
def test_nets_take_both_sizes_of_images(shape):
    for net, low, high in (
        (FullyConnected(shape, 10), 200_000, 600_000),
        (SmallResNet(shape, 10), 60_000, 80_000),
    ):
        assert low < sum(p.numel() for p in net.parameters()) < high
        network, _ = trace(net, torch.zeros(2, *shape))
        assert network.input_shape == shape
        assert network.shapes[-1] == (10,)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Digits, and a directory that is not there yet."""
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "FASHION_MNIST", str(tmp_path / "none"))
    return tmp_path / "nets"


def test_training_writes_what_planning_needs(small, capsys):
    assert train.main(["--out", str(small), "--net", "fc", "--epochs", "8"]) == 0
    assert "epoch 8/8" in capsys.readouterr().out
    summary = json.loads((small / "nets.json").read_text())
    assert (summary["dataset"], summary["num_calibration"], summary["num_test"]) == ("digits", 300, 400)
    said = summary["nets"]["fc"]
    assert 0.7 < said["accuracy"] <= 1
    assert said["parameters"] == sum(p.numel() for p in FullyConnected((1, 8, 8), 10).parameters())

    network, parameters = load_model(str(small / said["file"]))
    executor, last = NumpyExecutor(network.nodes, parameters.__getitem__), network.num_nodes
    inputs = load_inputs(small / "test_images.npy", network.input_shape)
    found = executor.run({0: inputs}, 0, last, [last])[last].argmax(1)
    assert np.mean(found == np.load(small / "test_labels.npy")) == pytest.approx(said["accuracy"], abs=0.003)
    assert load_inputs(small / "calibration_images.npy", network.input_shape).shape == (300, 1, 8, 8)
    assert sorted(path.name for path in small.iterdir()) == [
        "calibration_images.npy",
        "fc.pt2",
        "nets.json",
        "test_images.npy",
        "test_labels.npy",
    ]


def test_training_is_not_repeated_unless_forced_and_gives_the_same_each_time(small):
    said: list[str] = []
    first = train.train_all(small, ["resnet"], epochs=1, say=said.append)
    content = (small / "resnet.pt2").read_bytes()
    said.clear()
    assert train.train_all(small, ["resnet"], epochs=1, say=said.append) == first
    assert "already" in said[-1]
    said.clear()
    again = train.train_all(small, ["resnet"], epochs=1, force=True, say=said.append)
    assert "epoch 1/1" in said[1]
    assert again.nets["resnet"].accuracy == first.nets["resnet"].accuracy
    both = [load_model(str(path))[1] for path in _two(small, content)]
    assert all(np.array_equal(both[0][i].weight, both[1][i].weight) for i in both[0])
    other = train.train_all(small, ["fc"], epochs=1, seed=1, say=said.append)
    assert sorted(other.nets) == ["fc", "resnet"]


def _two(directory, content):
    (directory / "before.pt2").write_bytes(content)
    return directory / "resnet.pt2", directory / "before.pt2"


def test_what_goes_wrong_is_one_line(small, capsys, monkeypatch):
    small.write_text("a file where the directory should be")
    assert train.main(["--out", str(small), "--net", "fc", "--epochs", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv(data.VARIABLE, "/none")
    assert train.main(["--out", str(small), "--net", "fc"]) == 1
    assert "dataset-fashion-mnist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train.main(["--out", str(small), "--epochs", "0"])
