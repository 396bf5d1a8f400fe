"""The paged target: what it refuses, what it keeps, what it gives back."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.acceptance import RoundRows
from sled.errors import OutOfMemory, ParameterError, TargetLost, UnknownModel
from sled.targets.catalog import find_model
from sled.targets.causal_lm import CausalLMTarget, load_target
from sled.targets.decide import decide
from sled.types import Chunk, Sampling
from sled.vocabulary import vocabulary_hash
from tests.sled.tiny_models import BACKENDS, VOCAB, FakeCodec, Paging, plain_rows, save_with_tokenizer, tiny

pytestmark = pytest.mark.model


def make(family="llama", dtype=torch.float32, **more):
    return CausalLMTarget(tiny(family, dtype), FakeCodec(), name="tiny", **{"kv_bytes": 1 << 20, **more})


def text_of(length, seed=2):
    return np.random.default_rng(seed).integers(VOCAB, size=length).tolist()


@pytest.mark.parametrize(("family", "more"), [("mamba", {"state_size": 4}), ("gptj", {"n_embd": 32, "n_layer": 2})])
def test_model_that_computes_more_than_attention_is_refused(family, more):
    """Found by trying: two sessions in one batch against the model's own forward, at load."""
    import transformers

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "n_head": 4, "rotary_dim": 8}
    config = transformers.AutoConfig.for_model(family, **sizes, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnknownModel, match="use another target"):
        CausalLMTarget(model, FakeCodec(), name="tiny")


def test_attention_sinks_are_refused_by_name():
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=2,
        sliding_window=8,
    )
    with pytest.raises(UnknownModel, match="gpt_oss attends with s_aux"):
        CausalLMTarget(transformers.AutoModelForCausalLM.from_config(config).eval(), FakeCodec(), name="tiny")


@pytest.mark.parametrize("change", ["window", "softcap", "scale"])
def test_probe_finds_attention_that_is_not_the_models_own(change, monkeypatch):
    """A backend that is wrong in one term only is refused at load: the probe reaches beyond the window."""
    from sled.targets.attention_torch import TorchBackend

    attend = TorchBackend.attend

    def wrong(self, pool, query, key, value, plan, terms):
        other = {"window": max(0, terms.window - 1), "softcap": 0.0, "scale": terms.scale * 1.1}
        return attend(self, pool, query, key, value, plan, terms._replace(**{change: other[change]}))

    monkeypatch.setattr(TorchBackend, "attend", wrong)
    with pytest.raises(UnknownModel, match="batched logits are off"):
        make("gemma2", attention="torch")


def test_window_that_layers_do_not_ask_for_is_refused():
    model = tiny("qwen2, window 8")
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(UnknownModel, match=r"\[8, 0\].*\[0, 0\]"):
        CausalLMTarget(model, FakeCodec(), name="tiny")


def test_rotation_that_depends_on_the_batch_limits_the_context():
    """Longer texts would change the rotation of all sessions beside them."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    assert CausalLMTarget(model, FakeCodec(), name="tiny", kv_bytes=1 << 20).shape.max_positions == 64
    assert make("phi3").shape.max_positions == 256


def test_target_id_tells_weights_and_arithmetic_apart():
    def target_id(change=None, dtype=torch.float32):
        model = tiny("llama")
        if change:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
        return CausalLMTarget(model.to(dtype), FakeCodec(), name="tiny", kv_bytes=1 << 20).described.target_id

    assert target_id() == target_id()
    assert len({target_id(), target_id(change=True), target_id(dtype=torch.bfloat16)}) == 3


def test_shape_says_what_the_pool_holds():
    """2 layers, keys and values, 2 heads of 8 floats: 16 tokens take 2 * 2 * 2 * 8 * 4 * 16 bytes."""
    target = make(kv_bytes=100_000)
    shape = target.shape
    assert (shape.page_tokens, shape.page_bytes, shape.num_pages) == (16, 4096, 24)
    assert len(shape.pieces) == VOCAB
    keys, values = target.model.model.layers[1].self_attn.sled_pool
    assert keys.shape == values.shape == (24, 2, 16, 8)
    assert keys.is_contiguous()


def test_heads_may_differ_between_layers():
    """Each layer's pool has the shape that layer shows."""
    model = tiny("llama")
    other = type(model)(type(model.config)(**{**model.config.to_dict(), "num_key_value_heads": 4}))
    model.model.layers[1].self_attn = other.model.layers[1].self_attn
    model.model.layers[1].self_attn.config = model.config
    plain, text = model.eval(), text_of(40)
    right = plain_rows(plain, text, 3)
    target = CausalLMTarget(model, FakeCodec(), name="tiny", kv_bytes=1 << 20)
    assert [layer.self_attn.sled_pool.keys.shape[1] for layer in model.model.layers] == [2, 4]
    np.testing.assert_allclose(target.logits([Paging(target).chunk("a", text, 0, 3)]), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kv_bytes", "message"), [(100, "needs 4096"), (9000, "2 pages of 4096 bytes; give room for")])
def test_too_little_memory_for_keys_and_values_is_refused(kv_bytes, message):
    with pytest.raises(ParameterError, match=message):
        make(kv_bytes=kv_bytes)


def test_memory_the_machine_lacks_is_refused_at_load():
    with pytest.raises(OutOfMemory, match="give a smaller kv_bytes"):
        make(kv_bytes=1 << 50)


def test_pages_that_the_kernel_of_cuda_cannot_read_are_refused(monkeypatch):
    from sled.targets import backends, pool

    monkeypatch.setattr(backends, "has_triton", lambda: True)
    layers = pool.find_layers(tiny("llama"))
    for attention, page_tokens in (("auto", 8), ("triton", 24)):
        with pytest.raises(ParameterError, match=rf"page_tokens is {page_tokens}; .* powers of two from 16"):
            backends.choose_backend(attention, torch.device("cuda"), layers, page_tokens)
    assert type(backends.choose_backend("torch", torch.device("cuda"), layers, 8)).__name__ == "TorchBackend"


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Chunk(b"a", tuple(range(17)), 0, 1, (3,)), "up to position 17 has 1 pages; give it 2"),
        (Chunk(b"a", (1, 2), 5, 1, (1 << 20,)), "there are 0 .. 255"),
        (Chunk(b"a", (1, 2), 5, 1, (-1,)), "there are 0 .. 255"),
        (Chunk(b"a", (), 5, 0, (1,)), "a chunk of 0 tokens"),
        (Chunk(b"a", (1,), 5, 2, (1,)), "wants 2 logits"),
    ],
)
def test_chunk_that_does_not_fit_its_pages_is_an_error(chunk, message):
    with pytest.raises(ValueError, match=message):
        make().logits([chunk])


def test_rounds_that_are_not_those_of_the_chunks_are_an_error():
    target = make()
    chunk = Paging(target).chunk("a", [1, 2, 3], 0, 2)
    with pytest.raises(ValueError, match=r"want \[2\] rows"):
        target.verify([chunk], [RoundRows([5, 6], Sampling(), 2)])


def test_prefill_in_pieces_equals_prefill_at_once():
    plain, target, text = tiny("llama"), make(), text_of(200)
    paging = Paging(target)
    for start in range(0, 150, 50):
        assert target.verify([paging.chunk("a", text[start : start + 50], start, 0)], []) == []
    rows = target.logits([paging.chunk("a", text[150:], 150, 1)])
    np.testing.assert_allclose(rows, plain_rows(plain, text, 1), rtol=1e-4, atol=1e-4)


def test_shared_pages_are_read_by_both_sessions():
    plain, target, text = tiny("qwen3"), make("qwen3"), text_of(64)
    paging = Paging(target)
    target.logits([paging.chunk("a", text[:40], 0, 0)])
    paging.share("b", "a", 40)  # two whole pages of 16
    assert len(paging.pages["b"]) == 2
    others = [*text[:32], *text_of(20, seed=3)]
    chunks = [paging.chunk("a", text[40:], 40, 4), paging.chunk("b", others[32:], 32, 4)]
    right = torch.cat([plain_rows(plain, text, 4), plain_rows(plain, others, 4)])
    np.testing.assert_allclose(target.logits(chunks), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stood_in_a_page_does_not_reach_the_next_session(backend):
    """Not even what is no number."""
    plain, target, text = tiny("gemma2"), make("gemma2", attention=backend), text_of(20)
    for layer in target.model.model.layers:
        for part in layer.self_attn.sled_pool:
            part.fill_(float("nan"))
    paging = Paging(target)
    rows = target.logits(
        [paging.chunk("a", text, 0, 1), paging.chunk("b", text[:3], 0, 1), paging.chunk("c", [1], 0, 1)]
    )
    right = torch.cat([plain_rows(plain, text, 1), plain_rows(plain, text[:3], 1), plain_rows(plain, [1], 1)])
    np.testing.assert_allclose(rows, right, rtol=1e-4, atol=1e-4)
    longer = [*text, 4], [*text[:3], 4]  # in one group with each other, so the shorter one is padded
    rows = target.logits([paging.chunk("a", [4], 20, 1), paging.chunk("b", [4], 3, 1)])
    np.testing.assert_allclose(rows, torch.cat([plain_rows(plain, t, 1) for t in longer]), rtol=1e-4, atol=1e-4)


def test_greedy_round_is_decided():
    plain, target, text = tiny("llama"), make(), text_of(12)
    rows = plain_rows(plain, text, 12).argmax(dim=1).tolist()
    right = int(rows[-1])
    wrong = (right + 1) % VOCAB
    paging = Paging(target)
    (decision,) = target.verify([paging.chunk("a", [*text, wrong], 0, 2)], [RoundRows([wrong], Sampling(), 12)])
    assert (decision.accepted, decision.next_token, decision.finite) == (0, right, True)
    (decision,) = target.verify([paging.chunk("a", [text[-1], right], 11, 2)], [RoundRows([right], Sampling(), 12)])
    assert (decision.accepted, decision.next_token) == (
        1,
        int(plain_rows(plain, [*text, right], 1).argmax()),
    )


def test_round_without_numbers_costs_itself_only():
    """One session's text makes the model overflow; the session beside it is decided as ever."""
    target = make()
    with torch.no_grad():
        target.model.model.embed_tokens.weight[13] = float("nan")
    paging = Paging(target)
    chunks = [paging.chunk("a", [5, 13, 7], 0, 1), paging.chunk("b", [5, 12, 7], 0, 1)]
    bad, good = target.verify(chunks, [RoundRows([], Sampling(), 3)] * 2)
    assert not bad.finite
    assert good.finite
    alone = CausalLMTarget(tiny("llama"), FakeCodec(), name="tiny", kv_bytes=1 << 20)
    assert good == alone.verify([Paging(alone).chunk("b", [5, 12, 7], 0, 1)], [RoundRows([], Sampling(), 3)])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_logit_that_is_no_number_spoils_its_own_round_only(dtype, bad):
    logits = torch.zeros(3, 70, dtype=dtype)
    logits[1, 41] = bad
    decisions = decide(logits, [RoundRows([], Sampling(), 1)] * 3)
    assert [decision.finite for decision in decisions] == [True, False, True]


def test_weights_that_are_no_numbers_are_refused_at_load():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[13] = float("nan")
    with pytest.raises(UnknownModel, match="no numbers"):
        CausalLMTarget(model, FakeCodec(), name="tiny", kv_bytes=1 << 20)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_has_a_name_and_keeps_nothing(error, monkeypatch):
    import gc
    import weakref

    target = make()
    paging, alive = Paging(target), []
    forward = target.model.model.layers[1].mlp.forward

    def fails(hidden):
        if hidden.shape[1] < 4:
            return forward(hidden)
        big = hidden.new_zeros(1000)
        alive.append(weakref.ref(big))
        raise error

    monkeypatch.setattr(target.model.model.layers[1].mlp, "forward", fails)
    with pytest.raises(OutOfMemory, match="lower batch_tokens"):
        target.verify([paging.chunk("a", [1, 2, 3, 4], 0, 1)], [RoundRows([], Sampling(), 4)])
    error.__traceback__ = None
    gc.collect()
    assert [reference() for reference in alive] == [None]
    assert target.verify([paging.chunk("b", [1, 2], 0, 1)], [RoundRows([], Sampling(), 2)])[0].finite


def test_other_errors_keep_their_names(monkeypatch):
    target = make()
    monkeypatch.setattr(target.model, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        target.verify([Paging(target).chunk("a", [1], 0, 1)], [RoundRows([], Sampling(), 1)])


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
    ],
)
def test_fault_after_which_a_gpu_computes_nothing_loses_the_target(message, monkeypatch):
    """Else every round of every device would be refused for ever, each to be tried again."""
    target = make()
    monkeypatch.setattr(target.model, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError(message)))
    with pytest.raises(TargetLost, match="start the server again"):
        target.verify([Paging(target).chunk("a", [1], 0, 1)], [RoundRows([], Sampling(), 1)])


def test_forward_without_rounds_is_waited_for(monkeypatch):
    """Its time, and what it may fail with, would be those of the next one."""
    from sled.targets.causal_lm import finish

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device, rounds in (("cuda:1", []), ("cuda:1", [RoundRows([], Sampling(), 1)]), ("cpu", [])):
        finish(torch.device(device), rounds)
    assert waited == [torch.device("cuda:1")]


def test_second_gpu_is_the_current_one_meanwhile(monkeypatch):
    """Triton and graphs go to the current device, whatever the tensors say, and each thread has its own."""
    from sled.targets.causal_lm import on_device

    monkeypatch.setattr(torch.cuda, "device", lambda device: [device])
    assert on_device(torch.device("cuda:1")) == [torch.device("cuda:1")]
    with on_device(torch.device("cpu")):
        pass


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_bfloat16_is_near_float32(family):
    exact, near = make(family), make(family, torch.bfloat16)
    assert near.described.dtype == "bfloat16"
    text = text_of(30)
    a, b = (t.logits([Paging(t).chunk("a", text, 0, 5)]).float() for t in (exact, near))
    assert float((a - b).abs().max() / a.abs().max()) < 0.05
    (decision,) = near.verify([Paging(near).chunk("a", text, 0, 1)], [RoundRows([], Sampling(), 30)])
    assert decision.next_token == int(b[-1].argmax())


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


def test_quantised_weights_without_their_library_are_refused(tmp_path):
    """What the model's config says of its weights is honoured, and what is missing is named."""
    import importlib.util
    import json

    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is here")
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownModel, match="bitsandbytes"):
        load_target(find_model(str(tmp_path)))


def test_stops_that_the_model_cannot_say_are_left_out_and_named(caplog, tmp_path):
    from sled.constraint import FormFactory

    save_with_tokenizer(tiny("gpt2"), tmp_path)  # its settings of generation name 50256
    target = load_target(find_model(str(tmp_path)), kv_bytes=1 << 18)
    assert target.described.stop_ids == [96]
    assert target.shape.stop_ids == {96}
    assert [record.outside for record in caplog.records if "outside the vocabulary" in record.message] == ["50256"]
    shape, vocabulary = target.shape, target.vocabulary
    FormFactory(vocabulary.pieces, vocabulary.special_ids, shape.stop_ids, shape.vocab_size)


def test_ids_of_the_tokenizer_that_the_model_has_not_are_left_out_and_named(caplog, tmp_path):
    save_with_tokenizer(tiny("llama", vocab_size=90), tmp_path)
    target = load_target(find_model(str(tmp_path)), kv_bytes=1 << 18)
    pieces = target.vocabulary.pieces
    assert len(pieces) == target.shape.vocab_size == 90
    assert target.shape.stop_ids == {2}  # and not the tokenizer's own, 96
    assert target.vocabulary.special_ids == []
    assert target.described.vocab_hash == vocabulary_hash(target.vocabulary)
    assert [record.ids for record in caplog.records if "the model has not" in record.message] == [97]


def _bits(bits):
    import transformers

    if bits == "int8":
        return transformers.TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)


@pytest.mark.filterwarnings("ignore")  # of those libraries
@pytest.mark.parametrize("bits", [8, 4, "int8"])
def test_quantised_weights_are_served_as_transformers_loads_them(bits, tmp_path):
    import transformers

    save_with_tokenizer(tiny("llama", hidden_size=64, intermediate_size=128), tmp_path / "whole")
    loaded = {"quantization_config": _bits(bits), "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", **loaded)
    save_with_tokenizer(model, tmp_path / "less")
    target = load_target(find_model(str(tmp_path / "less")), kv_bytes=1 << 20)
    text = text_of(30)
    ours = target.logits([Paging(target).chunk("a", text, 0, 5)]).float()
    with torch.inference_mode():
        right = model(torch.tensor([text])).logits[0, -5:].float()
        whole = tiny("llama", hidden_size=64, intermediate_size=128)(torch.tensor([text])).logits[0, -5:]
    scale = float(right.abs().max())
    assert float((ours - right).abs().max()) < 0.05 * scale
    assert float((whole - right).abs().max()) > 1e-4 * scale  # it is quantised


@pytest.mark.parametrize(
    ("more", "message"), [({"dtype": "int3"}, "float32, bfloat16"), ({"device": "cuda"}, "no CUDA")]
)
def test_dtype_and_device_that_are_not_there_are_refused(more, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match=message):
        load_target(find_model(str(tmp_path)), **more)


def test_gguf_of_another_architecture_is_refused(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownModel, match="mamba"):
        load_target(find_model(str(tmp_path / "m.gguf")))


def test_batch_is_brought_to_the_device_in_one_copy():
    """By hand: spans of 3 and 1 tokens after 15 and 0 others, in pages of 16."""
    from sled.targets.layout import lay_out
    from sled.targets.packed import in_one_copy, pack

    chunks = [Chunk(b"a", (5, 6, 7), 15, 2, (9, 4)), Chunk(b"b", (8,), 0, 1, (2,))]
    layout = lay_out(chunks, page_tokens=16, num_pages=10)
    there = in_one_copy(layout, torch.device("cpu"))
    assert {name: value.tolist() for name, value in there._asdict().items()} == {
        "tokens": [[5, 6, 7, 8]],
        "positions": [[15, 16, 17, 0]],
        "rows": [1, 2, 3],
        "pages": [9, 4, 4, 2],
        "slots": [15, 0, 1, 0],
        "token_starts": [0, 3, 4],
        "past": [15, 0],
        "span_of_token": [0, 0, 0, 1],
        "page_table": [[9, 4], [2, 0]],
    }
    here = pack(layout, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(here[:5], there[:5], strict=True))
