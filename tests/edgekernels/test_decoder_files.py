"""Decoders read from files: tiny models of transformers, the same as GGUF, and files that are not sound."""

import json

import numpy as np
import pytest
from edgekernels import PackedMatrix
from edgekernels.decoder import DecoderError, load_decoder
from edgekernels.decoder.config import from_gguf, from_json
from edgekernels.gguf import GgufFile

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

TOKENS = np.random.default_rng(3).integers(0, 96, 40)
COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "biased": ("Llama", {"attention_bias": True, "head_dim": 32}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def tiny(kind, **more):
    """A random model of transformers whose parts all matter, norms and biases included."""
    family, settings = KINDS[kind]
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**(COMMON | settings | more))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.3
            weight.normal_(1.0 if "norm" in name else 0.0, spread)
    return model


def logits_of(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor(TOKENS[None])).logits[0].numpy()


def ours(decoder, dtype="float32"):
    return decoder.forward(TOKENS, decoder.new_cache(dtype=dtype), num_logits=len(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_directories_of_transformers_are_computed_alike(tmp_path, kind):
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    wanted = logits_of(model)
    np.testing.assert_allclose(ours(load_decoder(tmp_path)), wanted, atol=3e-5 * np.abs(wanted).max())


def test_shards_and_half_precision_are_read(tmp_path):
    model, rounded = tiny("llama").half(), tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    rounded.load_state_dict(model.state_dict())
    wanted = logits_of(rounded)
    np.testing.assert_allclose(ours(load_decoder(tmp_path)), wanted, atol=3e-5 * np.abs(wanted).max())


def test_quantised_at_load_stays_close(tmp_path):
    model = tiny("qwen2")
    model.save_pretrained(tmp_path)
    wanted = logits_of(model)
    errors = []
    for bits in (8, 6, 4):
        decoder = load_decoder(tmp_path, bits=bits, group=16)
        assert isinstance(decoder.weights.layers[0].query.matrix, PackedMatrix)
        errors.append(float(np.sqrt(np.mean((ours(decoder) - wanted) ** 2)) / wanted.std()))
    assert errors[0] < 0.04
    assert errors[0] < errors[1] < errors[2] < 0.5
    assert load_decoder(tmp_path, bits=4, group=128).weights.layers[0].query.matrix.group == 64  # 128 does not divide


def neighbours(weight, heads):
    """Rows in ggml's order, as the converter writes them."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def quantise(values, kind):
    """Raw bytes of a tensor; random ones of sane size for the K types, which the package only reads."""
    if kind.name not in ("Q4_K", "Q6_K"):
        return gguf.quants.quantize(values, kind)
    block, scales = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}[kind.name]
    raw = np.random.default_rng(values.size).integers(0, 256, (len(values), values.shape[1] // 256, block), np.uint8)
    for at in scales:
        raw[..., at : at + 2] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    return raw.reshape(len(values), -1)


def write_gguf(path, model, kind_of, *, family="llama", change=None, more=None):
    """A GGUF file of a model, quantised by the `gguf` package; matrices are replaced by what the file holds of them."""
    config, state = model.config, dict(model.state_dict())
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, family)
    values = {
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "context_length": config.max_position_embeddings,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    values.update(change or {})
    for key, value in values.items():
        adds = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
        add = adds.get(type(value), writer.add_uint32)
        add(f"{family}.{key}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{family}.rope.freq_base", config.rope_parameters["rope_theta"])
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        names |= {f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for ours, theirs in PARTS.items()}
    with torch.no_grad():
        for ours_name, theirs in names.items():
            for ending in ("weight", "bias"):
                if f"{theirs}.{ending}" not in state:
                    continue
                values = state[f"{theirs}.{ending}"].numpy()
                kind = gguf.GGMLQuantizationType[kind_of(ours_name) if values.ndim > 1 else "F32"]
                raw = quantise(values, kind)
                state[f"{theirs}.{ending}"].copy_(torch.from_numpy(gguf.quants.dequantize(raw, kind)))
                heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
                count = heads.get(ours_name.split(".")[-1], 0)
                raw = neighbours(raw, count) if count and family == "llama" else raw
                writer.add_tensor(f"{ours_name}.{ending}", raw, raw_dtype=kind)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1 / config.rope_parameters["rope_theta"] ** (np.arange(0, 16, 2) / 16)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "mixed"])
def test_gguf_files_are_computed_exactly(tmp_path, kind):
    model, path = tiny("biased"), tmp_path / "model.gguf"
    mixture = {"attn_q": "Q4_0", "attn_k": "F16", "attn_v": "Q8_0", "ffn_up": "Q5_1", "output": "Q8_0"}
    write_gguf(path, model, lambda name: mixture.get(name.split(".")[-1], "Q4_1") if kind == "mixed" else kind)
    wanted = logits_of(model)
    decoder = load_decoder(path, activations="float")
    assert isinstance(decoder.weights.layers[0].gate.matrix, PackedMatrix) == (kind not in ("F32", "F16", "BF16"))
    np.testing.assert_allclose(ours(decoder), wanted, atol=3e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_k_types_are_computed_exactly(tmp_path, kind):
    model, path = tiny("llama", hidden_size=256, intermediate_size=256), tmp_path / "model.gguf"
    write_gguf(path, model, lambda name: "Q6_K" if name == "output" else kind)
    wanted = logits_of(model)
    decoder = load_decoder(path, activations="float")
    assert decoder.weights.layers[0].gate.matrix.bits == int(kind[1])
    np.testing.assert_allclose(ours(decoder), wanted, atol=3e-5 * np.abs(wanted).max())


def test_gguf_of_another_family_keeps_its_rows(tmp_path):
    """qwen2 has biases, and no reordered rows."""
    model, path = tiny("qwen2"), tmp_path / "model.gguf"
    write_gguf(path, model, lambda _: "Q8_0", family="qwen2")
    wanted = logits_of(model)
    np.testing.assert_allclose(ours(load_decoder(path, activations="float")), wanted, atol=3e-5 * np.abs(wanted).max())


def test_gguf_scaled_frequencies_are_read(tmp_path):
    model, path = tiny("llama3"), tmp_path / "model.gguf"
    write_gguf(path, model, lambda _: "F32")
    wanted = logits_of(model)
    np.testing.assert_allclose(ours(load_decoder(path)), wanted, atol=3e-5 * np.abs(wanted).max())


def test_floats_in_a_gguf_file_are_quantised_if_asked(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), lambda name: "Q4_0" if "ffn" in name else "F16")
    layer = load_decoder(path, bits=8).weights.layers[0]
    assert (layer.query.matrix.bits, layer.gate.matrix.bits) == (8, 4)


def test_factors_of_a_file_stay_half_precision(tmp_path):
    """The file's float16 numbers take no more room in memory than in the file."""
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), lambda _: "Q4_1")
    matrix = load_decoder(path).weights.layers[0].up.matrix
    with GgufFile(path) as file:
        np.testing.assert_array_equal(matrix.scale, file.read_codes("blk.0.ffn_up.weight").scale)
        assert matrix.nbytes == file.tensors["blk.0.ffn_up.weight"].num_bytes


def test_progress_comes_to_an_end(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    shares = []
    load_decoder(tmp_path, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_neutral_keys_and_harmless_tensors_of_gguf_are_taken(tmp_path):
    change = {
        "attention.causal": True,
        "attention.scale": 0.25,
        "logit_scale": 1.0,
        "expert_count": 0,
        "final_logit_softcapping": 0.0,
    }
    more = {"blk.0.attn_rot_embd.weight": np.ones(8, np.float32)}
    write_gguf(tmp_path / "a.gguf", tiny("llama"), lambda _: "F32")
    write_gguf(tmp_path / "b.gguf", tiny("llama"), lambda _: "F32", change=change, more=more)
    np.testing.assert_array_equal(*(ours(load_decoder(tmp_path / name)) for name in ("a.gguf", "b.gguf")))


@pytest.mark.parametrize("change", [{"rope.scale_linear": 4.0}, {"rope.scaling.factor": 4.0}])
def test_gguf_linear_scaling_is_read_as_ggml_does(tmp_path, change):
    write_gguf(tmp_path / "model.gguf", tiny("linear"), lambda _: "F32", change=change)
    np.testing.assert_allclose(
        load_decoder(tmp_path / "model.gguf").config.frequencies, 500.0 ** (-np.arange(0, 16, 2) / 16) / 4, rtol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_inp.weight", "blk.1.attn_norm.bias", "blk.0.attn_q.scale", "blk.2.attn_q.weight", "blk.x"]
)
def test_unknown_tensors_of_a_layer_are_refused(tmp_path, name):
    write_gguf(tmp_path / "model.gguf", tiny("llama"), lambda _: "F32", more={name: np.ones(8, np.float32)})
    with pytest.raises(DecoderError, match=f"1 tensors unknown to the native decoder, the first '{name}'"):
        load_decoder(tmp_path / "model.gguf")


@pytest.mark.parametrize("part", ["q", "k"])
def test_one_norm_of_two_is_refused(tmp_path, part):
    more = {f"blk.1.attn_{part}_norm.weight": np.ones(16, np.float32)}
    write_gguf(tmp_path / "model.gguf", tiny("llama"), lambda _: "F32", more=more)
    with pytest.raises(DecoderError, match=rf"lacks blk\.1\.attn_{'k' if part == 'q' else 'q'}_norm\.weight"):
        load_decoder(tmp_path / "model.gguf")


def test_frequencies_of_gguf_are_finite():
    metadata = {
        "general.architecture": "llama",
        "llama.attention.head_count": 1,
        "llama.embedding_length": 4,
        "llama.context_length": 8,
        "llama.feed_forward_length": 4,
        "llama.block_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    assert from_gguf(metadata, 9, np.ones(2, np.float32)).frequencies.tolist() == pytest.approx([1.0, 0.01])
    for bad in (np.inf, np.nan, 1e-45):
        with pytest.raises(DecoderError, match=r"positive, finite numbers are needed|go up to inf"):
            from_gguf(metadata, 9, np.full(2, bad, np.float32))


def test_a_scale_that_is_not_finite_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), lambda _: "Q8_0")
    with GgufFile(path) as file:
        info = file.tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(raw)
    with pytest.raises(DecoderError, match=r"blk\.1\.ffn_up\.weight: scale\[0, 0\] is inf"):
        load_decoder(path)


def test_integers_are_no_weights(tmp_path):
    model = tiny("llama")
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    state["model.layers.1.mlp.up_proj.weight"] = np.ones((96, 64), np.int8)
    model.config.save_pretrained(tmp_path)
    safetensors_numpy.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DecoderError, match=r"layers\.1\.mlp\.up_proj\.weight is I8; F64, F32, F16, BF16 are supported"):
        load_decoder(tmp_path)


def test_a_head_said_to_be_untied_must_be_there(tmp_path):
    tiny("tied").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    settings.pop("tie_word_embeddings", None)
    file.write_text(json.dumps(settings))
    decoder = load_decoder(tmp_path)
    assert decoder.weights.head.matrix is decoder.weights.embedding
    file.write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    with pytest.raises(DecoderError, match=r"lacks lm_head\.weight"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 10**400},
        {"rope_theta": 1e-300},
        {"rms_norm_eps": 10**400},
        {"partial_rotary_factor": 10**400},
        {"partial_rotary_factor": 1.5},
        {"partial_rotary_factor": 1e-300},
        {"rope_scaling": 5},
        {"rope_scaling": [1]},
        {"rope_scaling": "ab"},
        {"rope_scaling": {"rope_type": ["linear"]}},
        {"rope_scaling": {"rope_type": "linear", "factor": 10**400}},
        {"rope_scaling": {"rope_type": "linear", "factor": 1e-300}},
        {"rope_scaling": LLAMA3 | {"factor": 1e-300}},
    ],
)
def test_hostile_numbers_of_a_config_are_refused(change):
    sound = COMMON | {"model_type": "llama", "rms_norm_eps": 1e-5}
    assert from_json(sound).head_dim == 16
    with pytest.raises(DecoderError):
        from_json(sound | change)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"attention.head_count_kv": 3}, "no multiple"),
        ({"block_count": 3}, r"lacks blk\.2\.attn_norm\.weight"),
        ({"feed_forward_length": 64}, r"blk\.0\.ffn_gate\.weight has shape \(96, 64\); \(64, 64\) is needed"),
        ({"embedding_length": 0}, "embedding_length is 0"),
        ({"rope.scaling.type": "yarn"}, "scaling 'yarn' is not supported"),
        ({"rope.dimension_count": 64}, r"dimension_count is 64; an integer from 1 to 16"),
        ({"attention.value_length": 8}, "keys of 16 and values of 8"),
        ({"attention.causal": False}, "attention.causal is False"),
        ({"attention.scale": 0.5}, "attention.scale is 0.5; the native decoder computes only 0 and 0.25"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5; the native decoder computes only 0 and 1"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
        ({"expert_count": 8}, "expert_count is 8"),
        ({"embedding_scale": 12.0}, "embedding_scale is 12"),
        ({"residual_scale": 0.25}, "residual_scale is 0.25"),
        ({"block_count": 1}, r"9 tensors unknown to the native decoder, the first 'blk\.1\."),
    ],
)
def test_gguf_files_which_contradict_themselves_are_refused(tmp_path, change, what):
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), lambda _: "F16", change=change)
    with pytest.raises(DecoderError, match=what):
        load_decoder(path)


def test_other_families_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), lambda _: "F16", family="gemma3")
    with pytest.raises(DecoderError, match="'gemma3' model; the native decoder runs llama, mistral, qwen2, qwen3"):
        load_decoder(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn' is not supported"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"num_hidden_layers": 3}, r"lacks model\.layers\.2"),
        ({"vocab_size": 97}, r"has shape \(96, 64\); \(97, 64\) is needed"),
        ({"num_hidden_layers": 2**60}, "num_layers is 1152921504606846976"),
        ({"intermediate_size": None}, "ffn_size is None"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised safetensors are not supported"),
        ({"model_type": "qwen3"}, r"lacks model\.layers\.0\.self_attn\.q_norm\.weight"),
    ],
)
def test_directories_which_contradict_themselves_are_refused(tmp_path, change, what):
    tiny("llama").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DecoderError, match=what):
        load_decoder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "nul"])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DecoderError, match=r"config\.json"):
        load_decoder(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DecoderError, match=r"neither model\.safetensors nor"):
        load_decoder(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    del settings["intermediate_size"]
    file.write_text(json.dumps(settings))
    with pytest.raises(DecoderError, match="lacks 'intermediate_size'"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(("arguments", "what"), [({"bits": 9}, "bits is 9"), ({"group": 48}, "group is 48")])
def test_bad_arguments_are_refused(tmp_path, arguments, what):
    with pytest.raises(ValueError, match=what):
        load_decoder(tmp_path, **arguments)
