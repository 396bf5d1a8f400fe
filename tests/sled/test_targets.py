"""The ragged target against transformers' own forward, with small random models and with the real one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.errors import UnknownModel
from sled.targets.catalog import find_model
from sled.targets.causal_lm import CausalLMTarget, load_target
from sled.types import Chunk

pytestmark = pytest.mark.model


class FakeCodec:
    stop_ids = (0,)

    def vocabulary(self):
        from sled.messages import Vocabulary

        return Vocabulary([b""] * 97, [])


def tiny(family: str):
    """A random model of one family: 2 layers, width 32."""
    import transformers

    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    configs = {
        "llama": lambda: transformers.LlamaConfig(**common),
        "qwen2": lambda: transformers.Qwen2Config(**common),
        "qwen3": lambda: transformers.Qwen3Config(**common, head_dim=8),
        "mistral": lambda: transformers.MistralConfig(**common, sliding_window=None),
        "mistral, window 8": lambda: transformers.MistralConfig(**common, sliding_window=8),
    }
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32).eval()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "mistral, window 8"])
def test_ragged_batches_with_rollback_equal_the_plain_forward(family):
    """Three sessions, ragged chunks, rejected drafts overwritten: every row equals a forward over the whole text."""
    plain = tiny(family)
    target = CausalLMTarget(tiny(family), FakeCodec(), name="tiny")
    rng = np.random.default_rng(1)
    texts = [rng.integers(97, size=n).tolist() for n in (3, 17, 1)]
    kept = [0, 0, 0]
    for _ in range(12):
        chosen = [s for s in range(3) if rng.random() < 0.8] or [0]
        chunks, checks = [], []
        for s in chosen:
            draft = rng.integers(97, size=rng.integers(0, 6)).tolist()
            tokens = texts[s][kept[s] :] + draft
            chunks.append(Chunk(bytes([s]), tuple(tokens), kept[s], len(draft) + 1))
            checks.append((texts[s] + draft, len(draft) + 1))
            accepted = int(rng.integers(0, len(draft) + 1))
            texts[s] += [*draft[:accepted], int(rng.integers(97))]
            kept[s] = len(texts[s]) - 1
        rows = target.forward(chunks)
        with torch.inference_mode():
            right = [plain(torch.tensor([text])).logits[0, -n:].numpy() for text, n in checks]
        np.testing.assert_allclose(rows, np.concatenate(right), atol=2e-5)


def test_model_with_other_attention_terms_is_refused():
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=8,
    )
    with pytest.raises(UnknownModel, match="gemma2"):
        CausalLMTarget(transformers.AutoModelForCausalLM.from_config(config), FakeCodec(), name="tiny")


@pytest.mark.parametrize(("family", "more"), [("mamba", {"state_size": 4}), ("gptj", {"n_embd": 32, "n_layer": 2})])
def test_model_that_computes_more_than_attention_is_refused(family, more):
    """Found by trying: two sessions in one batch against the model's own forward, at load."""
    import transformers

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "n_head": 4, "rotary_dim": 8}
    config = transformers.AutoConfig.for_model(family, **sizes, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with pytest.raises(UnknownModel, match="use another target"):
        CausalLMTarget(model, FakeCodec(), name="tiny")


def test_target_id_tells_weights_and_arithmetic_apart():
    def target_id(change=None, dtype=torch.float32):
        model = tiny("llama")
        if change:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
        return CausalLMTarget(model.to(dtype), FakeCodec(), name="tiny").described.target_id

    assert target_id() == target_id()
    assert len({target_id(), target_id(change=True), target_id(dtype=torch.bfloat16)}) == 3


def test_chunk_beyond_what_is_kept_is_an_error():
    target = CausalLMTarget(tiny("llama"), FakeCodec(), name="tiny")
    with pytest.raises(RuntimeError, match="only 0 are kept"):
        target.forward([Chunk(b"a", (1, 2), 5, 1)])


def test_prefill_in_pieces_equals_prefill_at_once():
    plain = tiny("llama")
    target = CausalLMTarget(tiny("llama"), FakeCodec(), name="tiny")
    text = np.random.default_rng(2).integers(97, size=200).tolist()
    for start in range(0, 150, 50):
        rows = target.forward([Chunk(b"a", tuple(text[start : start + 50]), start, 0)])
        assert rows.shape == (0, 97)
    rows = target.forward([Chunk(b"a", tuple(text[150:]), 150, 1)])
    with torch.inference_mode():
        right = plain(torch.tensor([text])).logits[0, -1:].numpy()
    np.testing.assert_allclose(rows, right, atol=2e-5)


def test_drop_frees_the_session():
    target = CausalLMTarget(tiny("llama"), FakeCodec(), name="tiny")
    target.forward([Chunk(b"a", (1, 2), 0, 1)])
    assert b"a" in target._sessions
    target.drop(b"a")
    target.drop(b"never seen")
    assert not target._sessions


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/dir", "setup.py"])
def test_unknown_model_says_what_to_give(name):
    with pytest.raises(UnknownModel, match=r"smollm2-135m.*\.gguf file.*directory"):
        find_model(name)


def test_directory_without_weights_or_tokenizer_is_refused(tmp_path):
    with pytest.raises(UnknownModel, match=r"config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnknownModel, match="cannot load"):
        load_target(find_model(str(tmp_path)))
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(UnknownModel, match="tokenizer"):
        load_target(find_model(str(tmp_path)))


def test_damaged_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnknownModel, match="weights missing"):
        load_target(find_model(str(tmp_path)))


def test_gguf_of_another_architecture_is_refused(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownModel, match="mamba"):
        load_target(find_model(str(tmp_path / "m.gguf")))
