"""What our decoder and transformers read otherwise in a model's files is left to torch, which decides."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from sled.errors import UnknownModel
from sled.targets.catalog import ModelFiles, find_model
from sled.targets.native import load_native
from tests.sled.tiny_models import save_with_tokenizer, tiny

pytestmark = [pytest.mark.model, pytest.mark.native]
BIASES = {"attention_bias": True, "mlp_bias": True}


def saved(directory, family, edit, **more):
    """A tiny model, whose config.json says something else."""
    save_with_tokenizer(tiny(family, **more), directory)
    path = directory / "config.json"
    settings = json.loads(path.read_text()) | edit
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))
    return find_model(str(directory))


@pytest.mark.parametrize(
    ("family", "more", "edit", "message"),
    [
        ("mistral", {}, {"sliding_window": ...}, "leaves sliding_window to its default"),
        ("llama", {}, {"partial_rotary_factor": 0.5}, "not all dimensions turn"),
        ("llama", BIASES, {"attention_bias": False}, "query of layer 0 has a bias"),
        ("llama", BIASES, {"mlp_bias": False}, "gate of layer 0 has a bias"),
        ("llama", {}, {"attention_bias": True}, "query of layer 0 lacks its bias"),
        ("qwen3", {}, {"model_type": "llama"}, "norms its queries, which llama does not"),
        ("llama", {}, {"tie_word_embeddings": True}, "has a head of its own"),
        ("llama", {"tie_word_embeddings": True}, {"tie_word_embeddings": ...}, "has no head"),
    ],
)
def test_what_transformers_reads_otherwise_is_refused(family, more, edit, message, tmp_path):
    with pytest.raises(UnknownModel, match=message):
        load_native(saved(tmp_path, family, edit, **more), kv_bytes=1 << 20)


@pytest.mark.parametrize(
    ("family", "more"),
    [("llama", BIASES), ("llama", {"tie_word_embeddings": True}), ("qwen3", {"attention_bias": True})],
)
def test_what_both_read_alike_is_served(family, more, tmp_path):
    load_native(saved(tmp_path, family, {}, **more), kv_bytes=1 << 20)


def test_a_tied_head_which_the_file_repeats_is_served(tmp_path):
    model = tiny("llama")
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    save_with_tokenizer(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    load_native(find_model(str(tmp_path)), kv_bytes=1 << 20)


def test_the_target_id_tells_epsilons_apart(tmp_path):
    ids = [
        load_native(saved(tmp_path / str(eps), "llama", {"rms_norm_eps": eps}), kv_bytes=1 << 20).described.target_id
        for eps in (1e-6, 1e-5)
    ]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("key", ["tokens", "merges", "token_type"])
def test_a_file_without_parts_of_its_tokenizer_is_refused(key, tmp_path):
    name = f"tokenizer.ggml.{key}".encode()
    raw = find_model("smollm2-135m").path.read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(raw.replace(name, name[:-1] + b"?", 1))
    with pytest.raises(UnknownModel, match=f"lacks 'tokenizer.ggml.{key}'; convert the model again"):
        load_native(ModelFiles("m", "gguf", path), kv_bytes=1 << 23)
