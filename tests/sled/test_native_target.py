"""The native target: held against transformers family by family, what it refuses, and when it is chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sled.acceptance import RoundRows
from sled.errors import OutOfMemory, ParameterError, UnknownModel
from sled.targets.catalog import find_model
from sled.targets.causal_lm import CausalLMTarget
from sled.targets.engines import load_engine
from sled.targets.native import NativeTarget, load_native
from sled.types import Chunk, Sampling
from tests.sled.test_families import check_ragged_batches
from tests.sled.tiny_models import VOCAB, Paging, plain_rows, save_with_tokenizer, tiny

pytestmark = [pytest.mark.model, pytest.mark.native]

SERVED = ("llama", "qwen2", "qwen3", "mistral")
ROUNDING = 1e-5  # of either side is up to 3e-6, as float64 shows


def saved(directory, family="llama", change=None, **more):
    """A tiny model's directory, after a change to it."""
    model = tiny(family, **more)
    if change is not None:
        with torch.no_grad():
            change(model)
    save_with_tokenizer(model, directory)
    return find_model(str(directory))


def make(directory, family="llama", change=None, **more):
    return load_native(saved(directory, family, change), **{"kv_bytes": 1 << 20, **more})


def text_of(length, seed=2):
    return np.random.default_rng(seed).integers(VOCAB, size=length).tolist()


@pytest.mark.parametrize("family", SERVED)
def test_ragged_batches_with_rollback_equal_the_forward_of_transformers(family, tmp_path):
    """Over pages that hold no numbers."""
    target = make(tmp_path, family, num_threads=2)
    target.pages.keys[:], target.pages.values[:] = np.nan, np.nan
    check_ragged_batches(tiny(family), target, ROUNDING)


def test_head_of_its_own_and_scaled_positions_equal_the_forward_of_transformers(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    more = {"tie_word_embeddings": False, "rope_parameters": {**rope, "original_max_position_embeddings": 32}}
    target = load_native(saved(tmp_path, **more), kv_bytes=1 << 20)
    check_ragged_batches(tiny("llama", **more), target, ROUNDING)


def test_answers_do_not_depend_on_company_or_threads(tmp_path):
    """To the bit."""
    one, many = make(tmp_path, num_threads=1), make(tmp_path, num_threads=3)
    texts = [text_of(length, length) for length in (40, 3, 100)]
    alone = [one.logits([Paging(one).chunk(0, text, 0, 3)]) for text in texts]
    paging = Paging(many, seed=5)
    many.logits([paging.chunk(n, text[:-3], 0, 0) for n, text in enumerate(texts) if len(text) > 3])
    rows = many.logits([paging.chunk(n, text[-3:], len(text) - 3, 3) for n, text in enumerate(texts)])
    np.testing.assert_array_equal(rows, np.concatenate(alone))


def test_what_is_told_of_it(tmp_path):
    """2 layers, keys and values, 2 heads of 8 floats: 16 tokens take 2 * 2 * 2 * 8 * 4 * 16 bytes."""
    target = make(tmp_path, kv_bytes=100_000)
    shape, described = target.shape, target.described
    assert (shape.page_tokens, shape.page_bytes, shape.num_pages) == (16, 4096, 24)
    assert len(shape.pieces) == shape.vocab_size == described.vocab_size == VOCAB
    assert (described.dtype, described.max_positions, described.stop_ids) == ("float32", 256, [2, 96])
    assert target.pages.nbytes == 24 * 4096


def test_greedy_round_is_decided(tmp_path):
    plain, target, text = tiny("llama"), make(tmp_path), text_of(12)
    right = int(plain_rows(plain, text, 1).argmax())
    wrong = (right + 1) % VOCAB
    paging = Paging(target)
    (decision,) = target.verify([paging.chunk("a", [*text, wrong], 0, 2)], [RoundRows([wrong], Sampling(), 12)])
    assert (decision.accepted, decision.next_token, decision.finite) == (0, right, True)
    (decision,) = target.verify([paging.chunk("a", [text[-1], right], 11, 2)], [RoundRows([right], Sampling(), 12)])
    assert (decision.accepted, decision.next_token) == (1, int(plain_rows(plain, [*text, right], 1).argmax()))
    assert target.verify([paging.chunk("b", text, 0, 0)], []) == []


def test_round_without_numbers_costs_itself_only(tmp_path):
    target = make(tmp_path)
    target.decoder.weights.embedding[13] = np.nan
    paging = Paging(target)
    chunks = [paging.chunk("a", [5, 13, 7], 0, 1), paging.chunk("b", [5, 12, 7], 0, 1)]
    bad, good = target.verify(chunks, [RoundRows([], Sampling(), 3)] * 2)
    assert (bad.finite, good.finite) == (False, True)
    assert good.next_token == int(plain_rows(tiny("llama"), [5, 12, 7], 1).argmax())


def test_target_id_tells_weights_arithmetic_and_engines_apart(tmp_path):
    """A takeover goes on with the very same arithmetic; another engine's may decide a tie otherwise."""

    def louder(model):
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)

    ids = [make(tmp_path / str(n), change=change) for n, change in enumerate((None, None, louder))]
    ids = [target.described.target_id for target in ids]
    files = find_model(str(tmp_path / "0"))
    ids.append(load_native(files, activations="int8", kv_bytes=1 << 20).described.target_id)
    ids.append(load_engine(files, engine="torch", kv_bytes=1 << 20).described.target_id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert {len(each) for each in ids} == {16}


def test_running_out_of_memory_has_a_name_and_the_next_batch_is_computed(tmp_path, monkeypatch):
    target = make(tmp_path)
    paging, rounds = Paging(target), [RoundRows([], Sampling(), 2)]
    with monkeypatch.context() as patch:
        patch.setattr(target.decoder, "forward_paged", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(OutOfMemory, match="lower batch_tokens"):
            target.verify([paging.chunk("a", [1, 2], 0, 1)], rounds)
    assert target.verify([paging.chunk("b", [1, 2], 0, 1)], rounds)[0].finite


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Chunk(b"a", tuple(range(17)), 0, 1, (3,)), "up to position 17 has 1 pages; give it 2"),
        (Chunk(b"a", (1, 2), 5, 1, (1 << 20,)), "there are 0 .. 255"),
        (Chunk(b"a", (1, VOCAB), 5, 1, (1,)), "pass 0 .. 96"),
        (Chunk(b"a", (1,), 256, 1, tuple(range(17))), "ends at position 257; the model has 256"),
    ],
)
def test_chunk_that_cannot_be_is_an_error(chunk, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path).logits([chunk])


def test_rounds_that_are_not_those_of_the_chunks_are_an_error(tmp_path):
    target = make(tmp_path)
    with pytest.raises(ValueError, match=r"want \[2\] rows"):
        target.verify([Paging(target).chunk("a", [1, 2, 3], 0, 2)], [RoundRows([5, 6], Sampling(), 2)])


@pytest.mark.parametrize(
    ("kv_bytes", "kind", "message"),
    [
        (100, ParameterError, "needs 4096"),
        (9000, ParameterError, "2 pages of 4096 bytes; give room for 4"),
        (1 << 50, OutOfMemory, "give a smaller kv_bytes"),
    ],
)
def test_memory_that_does_not_do_is_refused(kv_bytes, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        make(tmp_path, kv_bytes=kv_bytes)


def spoil(model):
    model.lm_head.weight[13] = float("nan")


def brings_code(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))


@pytest.mark.parametrize(
    ("family", "change", "edit", "message"),
    [
        ("gemma2", None, None, "runs llama, mistral, qwen2, qwen3"),
        ("mistral, window 8", None, None, "knows 8 of its 256 positions"),
        ("llama", None, brings_code, "brings code of its own"),
        ("llama", spoil, None, "no numbers"),
        ("llama", None, lambda directory: (directory / "tokenizer.json").unlink(), "no tokenizer.json"),
        ("llama", None, lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 20), "cannot read"),
    ],
)
def test_what_the_decoder_would_serve_otherwise_is_refused(family, change, edit, message, tmp_path):
    files = saved(tmp_path, family, change)
    if edit is not None:
        edit(tmp_path)
    with pytest.raises(UnknownModel, match=message):
        load_native(files, kv_bytes=1 << 20)


def test_without_compiled_kernels_torch_is_faster(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekernels.backend", lambda: "numpy")
    with pytest.raises(UnknownModel, match="needs the compiled kernels; numpy takes their place"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("family", "more", "kind"),
    [
        ("llama", {}, NativeTarget),
        ("llama", {"engine": "torch"}, CausalLMTarget),
        ("llama", {"dtype": "bfloat16"}, CausalLMTarget),
        ("llama", {"attention": "torch"}, CausalLMTarget),
        ("gemma2", {}, CausalLMTarget),
        ("mistral, window 8", {}, CausalLMTarget),
    ],
)
def test_the_engine_is_the_native_one_where_it_can_be(family, more, kind, tmp_path):
    target = load_engine(saved(tmp_path, family), kv_bytes=1 << 20, **more)
    assert type(target) is kind


def test_why_torch_computes_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "sled.server")
    load_engine(saved(tmp_path, "gemma2"), kv_bytes=1 << 20)
    (why,) = (r.why for r in caplog.records if r.message == "torch computes this target")
    assert "gemma2" in why


@pytest.mark.parametrize("more", [{"engine": "native"}, {"activations": "int8"}])
def test_an_engine_that_was_asked_for_is_taken_or_refused(more, tmp_path):
    with pytest.raises(UnknownModel, match="the native decoder runs"):
        load_engine(saved(tmp_path, "gemma2"), kv_bytes=1 << 20, **more)


def test_int8_activations_are_near_and_say_so():
    target = load_native(find_model("smollm2-135m"), activations="int8", kv_bytes=8 << 20, num_threads=2)
    assert target.described.dtype == "int8"
    text = target.codec.encode("The capital of France is", chat=False)
    (decision,) = target.verify([Paging(target).chunk("a", text, 0, 1)], [RoundRows([], Sampling(), len(text))])
    assert target.vocabulary.pieces[decision.next_token] == b" Paris"


ALONE = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from sled.cli.loading import load
from sled.settings import ServeSettings
loaded = load(ServeSettings(model="smollm2-135m", bind="tcp://127.0.0.1:0", kv_bytes="16MiB", windows="fixed"))
print(type(loaded.target).__name__, loaded.target.codec.encode("Hi", chat=True)[-2:])
"""


def test_a_gguf_file_is_served_without_torch_and_transformers():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "NativeTarget"), done.stderr
