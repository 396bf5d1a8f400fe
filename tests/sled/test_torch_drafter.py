"""Drafters in torch: caches that roll back in every family, copies without some layers or with fewer bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.drafters import causal_lm
from sled.drafters.causal_lm import TorchModel, load_in_torch
from sled.errors import UnknownModel
from tests.sled.tiny_models import VOCAB, plain_rows, tiny

TEXT = np.random.default_rng(5).integers(0, VOCAB, 40)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral, window 8", "gemma3", "qwen2, window 8"])
def test_a_cache_that_rolled_back_is_one_that_never_went_on(family):
    """Windows of 8 are long past: what a sliding layer has let go could not come back."""
    plain = tiny(family)
    model = TorchModel(copy.deepcopy(plain))
    model.read(TEXT[:30])
    model.read(TEXT[30:33])
    model.forget(21)
    row = model.read(TEXT[5:12])
    text = [*TEXT[:21], *TEXT[5:12]]
    torch.testing.assert_close(torch.from_numpy(row), plain_rows(plain, text, 1), rtol=1e-4, atol=1e-4)
    model.forget(0)
    model.read(TEXT[:35])
    model.forget(30)
    model.read(TEXT[30:38])
    model.forget(0)
    torch.testing.assert_close(torch.from_numpy(model.read(TEXT)), plain_rows(plain, TEXT, 1), rtol=1e-4, atol=1e-4)


def loaded(monkeypatch, family="llama", **more):
    monkeypatch.setattr(causal_lm, "load_causal_lm", lambda *arguments: (tiny(family, **more), None))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_left_out(monkeypatch, tmp_path, family):
    """A model whose skipped layer adds nothing says the same without it."""
    whole = tiny(family)
    part, name = causal_lm._layers(whole)
    layer = getattr(part, name)[0]
    with torch.no_grad():
        for key, weight in layer.named_parameters():
            if key.startswith(("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj")):
                weight.zero_()
    monkeypatch.setattr(causal_lm, "load_causal_lm", lambda *arguments: (copy.deepcopy(whole), None))
    model = load_in_torch(tmp_path, skip=(0,))
    row = torch.from_numpy(model.read(TEXT))
    torch.testing.assert_close(row, plain_rows(whole, TEXT, 1), rtol=1e-4, atol=1e-4)
    model.forget(20)
    row = torch.from_numpy(model.read(TEXT[20:]))
    torch.testing.assert_close(row, plain_rows(whole, TEXT, 1), rtol=1e-4, atol=1e-4)


def test_fewer_bits_are_nearer_with_more_of_them(monkeypatch, tmp_path):
    loaded(monkeypatch)
    wanted = plain_rows(tiny("llama"), TEXT, 1).numpy()
    errors = [np.abs(load_in_torch(tmp_path, bits=bits, group=16).read(TEXT) - wanted).mean() for bits in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("skip", [(2,), (0, 1)])
def test_layers_that_are_not_there_are_refused(monkeypatch, tmp_path, skip):
    loaded(monkeypatch)
    with pytest.raises(UnknownModel, match="the model has layers 0 to 1, and needs one of them"):
        load_in_torch(tmp_path, skip=skip)
