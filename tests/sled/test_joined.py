"""Joined projections give what separate ones gave."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sled.targets.joined import FirstPart, join_projections
from tests.sled.test_targets import tiny

pytestmark = pytest.mark.model


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without biases, and with
def test_joined_model_computes_the_same(family):
    model, ids = tiny(family), torch.arange(12)[None]
    with torch.inference_mode():
        before = model(ids, use_cache=False).logits
        assert join_projections(model) == 4  # two layers, attention and MLP
        assert isinstance(model.model.layers[0].mlp.gate_proj, FirstPart)
        torch.testing.assert_close(model(ids, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)
    assert all(part.joint.result is None for part in model.modules() if isinstance(part, FirstPart))


def test_join_leaves_out_what_is_not_plain():
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    assert join_projections(model) == 3


def test_another_order_is_an_error_not_a_wrong_answer():
    model = tiny("llama")
    join_projections(model)
    with pytest.raises(AssertionError, match="another order"):
        model.model.layers[0].self_attn.k_proj(torch.zeros(1, 1, 32))
