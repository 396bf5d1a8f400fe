"""Drafters on the native decoder: vocabularies without a tokenizer, drafts, rollback, and no torch anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sled.drafters import open_drafter
from sled.drafters.identity import read_map as _read_map
from sled.drafters.model import ModelDrafter
from sled.errors import UnknownModel, VocabularyMismatch
from sled.messages import Described
from sled.pieces import byte_level_piece, sentencepiece_piece, vocabulary_of_gguf, vocabulary_of_tokenizer
from sled.types import Sampling
from sled.vocabulary import vocabulary_hash
from sled.window import Window
from tests.sled.drafting import drafts, proposals

SMOLLM2_HASH = "f596913e4ea84519e4e3a8c35bff02c8"


def described(vocab_hash, vocab_size=49152):
    return Described(
        name="target",
        dtype="float32",
        vocab_size=vocab_size,
        vocab_hash=vocab_hash,
        max_positions=256,
        max_window=16,
        stop_ids=[2],
    )


def gguf_metadata(**change):
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<end>", "Ġa", "Ċ", "Ã©"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1],
    }
    return values | {f"tokenizer.ggml.{key}": value for key, value in change.items()}


def test_pieces_by_hand():
    assert [byte_level_piece(token) for token in ("Ġa", "Ċ", "Ã©", "→")] == [b" a", b"\n", "é".encode(), "→".encode()]
    assert [sentencepiece_piece(token) for token in ("▁the", "<0x0A>", "<0xGG")] == [b" the", b"\n", b"<0xGG"]


def test_vocabulary_of_a_gguf_file_by_hand():
    vocabulary = vocabulary_of_gguf(gguf_metadata())
    assert vocabulary.pieces == [b"<end>", b" a", b"\n", "é".encode()]
    assert vocabulary.special_ids == [0]
    spm = gguf_metadata(model="llama", tokens=["<s>", "▁a", "<0xFF>", "Ġ"], token_type=[3, 1, 6, 1])
    assert vocabulary_of_gguf(spm).pieces == [b"<s>", b" a", b"\xff", "Ġ".encode()]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": "bert"}, "tokenizer is 'bert'; supported are gpt2, llama"),
        ({"model": None}, "tokenizer is None"),
        ({"token_type": [1]}, "do not agree"),
        ({"tokens": 3}, "do not agree"),
        ({"model": ["gpt2"]}, r"tokenizer is \['gpt2'\]"),
        ({"tokens": ["a", "b", "c", 4]}, "tokens are no strings"),
    ],
)
def test_gguf_files_without_a_sound_vocabulary_are_refused(change, what):
    with pytest.raises(UnknownModel, match=what):
        vocabulary_of_gguf(gguf_metadata(**change))


def test_vocabulary_of_a_tokenizer_is_that_of_the_library():
    tokenizers = pytest.importorskip("tokenizers")
    from sled.targets.text import TextCodec

    alphabet = {char: i for i, char in enumerate("Ġabcé")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=alphabet, merges=[]))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<é>", special=True)])
    tokenizer.add_tokens([tokenizers.AddedToken("ab c")])
    found = vocabulary_of_tokenizer(json.loads(tokenizer.to_str()))
    assert found == TextCodec(tokenizer, None, {}, []).vocabulary()
    assert found.pieces == [b" ", b"a", b"b", b"c", b"\xe9", "<é>".encode(), b"ab c"]
    assert found.special_ids == [5]


@pytest.mark.parametrize("state", [{}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": "b"}}}, {"model": []}])
def test_tokenizers_without_a_vocabulary_are_refused(state):
    with pytest.raises(UnknownModel, match="holds no vocabulary"):
        vocabulary_of_tokenizer(state)


@pytest.mark.parametrize("highest", [1029, 4_000_000, 1 << 60])
def test_ids_far_above_their_number_are_refused(highest):
    with pytest.raises(UnknownModel, match=f"id {highest} among 1 tokens; up to 1028 are allowed"):
        vocabulary_of_tokenizer({"model": {"vocab": {"a": highest}}})
    assert len(vocabulary_of_tokenizer({"model": {"vocab": {"a": 1028}}}).pieces) == 1029


class Counting:
    """A model which says that n is followed by n + 1, and remembers what it was given."""

    vocab_size, max_positions = 40, 12

    def __init__(self):
        self.read_ids = []

    def read(self, ids):
        self.read_ids += ids.tolist()
        logits = np.zeros((1, self.vocab_size), np.float32)
        logits[0, (self.read_ids[-1] + 1) % self.vocab_size] = 9.0
        return logits

    def forget(self, length):
        del self.read_ids[length:]


def test_a_model_reads_only_what_is_new():
    model = Counting()
    drafter = ModelDrafter(model, name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [3, 4, 5], 3, Window(8)) == [6, 7, 8]
    assert model.read_ids == [3, 4, 5, 6, 7]
    assert drafts(drafter, [3, 4, 5, 6, 20], 2, Window(8)) == [21, 22]  # 7 was rejected, 20 came instead
    assert model.read_ids == [3, 4, 5, 6, 20, 21]
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [3, 4, 9], 1) == [10]  # another answer whose text begins alike
    assert model.read_ids == [3, 4, 9]


def test_drafts_end_where_the_model_does():
    drafter = ModelDrafter(Counting(), name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    assert len(drafts(drafter, list(range(10)), 8, Window(8))) == 3  # after positions 9, 10 and 11
    assert drafts(drafter, list(range(13)), 8, Window(8)) == []


@pytest.mark.parametrize("prefix", [[], [1, 1 << 20], [-1, 2]])
def test_ids_that_the_vocabulary_lacks_get_no_drafts(prefix):
    drafter = ModelDrafter(Counting(), name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    assert drafts(drafter, prefix, 4, Window(4)) == []


def test_other_ids_are_translated_both_ways():
    """Draft id i is target id 2 * i + 1; what the drafter does not know is read as id 0."""
    model = Counting()
    ids = np.arange(1, 80, 2).astype(np.int32)
    drafter = ModelDrafter(model, name="counting", target_ids=ids, target_vocab_size=90)
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [7, 8, 9], 2, Window(8)) == [11, 13]
    assert model.read_ids == [3, 0, 4, 5]


def test_confidence_is_the_probability_of_the_choice():
    drafter = ModelDrafter(Counting(), name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    wanted = np.exp(9.0) / (np.exp(9.0) + 39)
    assert len(drafts(drafter, [1], 3, Window(8, wanted - 1e-4))) == 3
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [1], 3, Window(8, wanted + 1e-4)) == []


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_confidence_follows_bias_and_penalties(rule):
    """After 1 comes 2 with logit 9; then bias makes 5 sure, or leaves 0 to 2, two of which the text has."""
    drafter = ModelDrafter(Counting(), name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(0.5, rule=rule, bias=((5, 30.0),)), 0)
    assert [(one.token, one.confidence > 0.99) for one in proposals(drafter, [1], 1)] == [(5, True)]
    drafter.start(Sampling(0.5, rule=rule, bias=tuple((n, -50.0) for n in range(3, 40)), presence_penalty=2.0), 0)
    (one,) = proposals(drafter, [2, 2, 1], 1)  # of 0, 1 and 2 only 0 was not there: 9 - 2, 0 - 2 and 0
    assert one.confidence == pytest.approx(np.exp(14) / (np.exp(14) + 1 + np.exp(-4)), rel=1e-4)


@pytest.fixture(scope="module")
def packaged():
    return open_drafter("smollm2-12m", described(bytes.fromhex(SMOLLM2_HASH)))


def test_the_packaged_drafter_drafts(packaged):
    prompt = list(range(100, 130))
    packaged.start(Sampling(), 0)
    first = drafts(packaged, prompt, 8, Window(8))
    assert len(first) == 8
    packaged.start(Sampling(), 0)
    assert drafts(packaged, prompt, 8, Window(8)) == first
    drafts(packaged, [*prompt, 5, 6], 8, Window(8))
    assert drafts(packaged, [*prompt, *first[:2]], 6, Window(8)) == first[2:]  # rolled back


@pytest.mark.native
def test_drafts_do_not_depend_on_threads(packaged):
    other = open_drafter("smollm2-12m", described(bytes.fromhex(SMOLLM2_HASH)), threads=2)
    for drafter in (packaged, other):
        drafter.start(Sampling(1.0, seed=4), 0)
    prompt = list(range(40))
    assert drafts(packaged, prompt, 12, Window(16)) == drafts(other, prompt, 12, Window(16))


def test_another_vocabulary_is_refused():
    with pytest.raises(VocabularyMismatch, match="has vocabulary f596913e, the target 'target' has 00000000"):
        open_drafter("smollm2-12m", described(bytes(16)))


CONFIG = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "target_vocab_hash": SMOLLM2_HASH,
}


def directory(tmp_path, **change):
    """A directory with the config of a drafter for SmolLM2, changed; without weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    return str(tmp_path)


def test_damaged_directories_are_refused(tmp_path):
    target = described(bytes.fromhex(SMOLLM2_HASH))
    path = directory(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UnknownModel, match=r"cannot read the model: .*model\.safetensors"):
        open_drafter(path, target)
    directory(tmp_path, target_vocab_hash=7)
    with pytest.raises(UnknownModel, match="target_vocab_hash is 7"):
        open_drafter(path, target)
    directory(tmp_path, target_vocab_hash="")
    with pytest.raises(UnknownModel, match=r"neither tokenizer\.json nor target_vocab_hash"):
        open_drafter(path, target)


def test_a_tokenizer_too_large_is_not_read(tmp_path):
    path = directory(tmp_path, target_vocab_hash="")
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", (1 << 28) + 1)  # sparse
    with pytest.raises(UnknownModel, match="has 268435457 bytes, at most 268435456 are allowed"):
        open_drafter(path, described(bytes.fromhex(SMOLLM2_HASH)))


def test_a_config_too_large_is_not_read(tmp_path):
    path = directory(tmp_path)
    with (tmp_path / "config.json").open("a") as file:
        file.write(" " * (1 << 24))
    with pytest.raises(UnknownModel, match=r"config\.json has more than 16777216 bytes"):
        open_drafter(path, described(bytes.fromhex(SMOLLM2_HASH)))


def write_safetensors(path, **arrays):
    """A file of integers or floats by hand."""
    header, data = {}, b""
    for name, (dtype, values) in arrays.items():
        raw = values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_map_is_found_in_shards_and_must_be_integers(tmp_path):
    target = described(bytes(16), 90)
    shard = tmp_path / "model-1.safetensors"
    index = {"weight_map": {"draft_to_target": shard.name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(shard, draft_to_target=("I64", np.arange(1, 80, 2)))
    assert _read_map(tmp_path, 40, target).tolist() == list(range(1, 80, 2))
    write_safetensors(shard, draft_to_target=("I64", np.full(40, 1 << 62)))
    with pytest.raises(VocabularyMismatch, match="40 ids under 90 are needed"):
        _read_map(tmp_path, 40, target)
    write_safetensors(shard, draft_to_target=("F32", np.arange(40, dtype=np.float32)))
    with pytest.raises(ValueError, match="draft_to_target is F32, integers are needed"):
        _read_map(tmp_path, 40, target)


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "tokenizers", "safetensors", "jinja2", "scipy"):
    sys.modules[name] = None  # importing it is an error
from sled.drafters import open_drafter
from sled.errors import UnknownModel
from sled.messages import Described
from sled.types import Sampling
from sled.window import Window
from tests.sled.drafting import drafts
target = Described("t", "float32", 49152, bytes.fromhex(sys.argv[1]), 256, 16, [2])
drafter = open_drafter("smollm2-12m", target)
drafter.start(Sampling(0.7, seed=1), 0)
print(len(drafts(drafter, list(range(20)), 4, Window(4))))
for spec in sys.argv[2:]:
    try:
        open_drafter(spec, target)
    except UnknownModel as error:
        print(error)
"""


def test_no_torch_is_needed(tmp_path):
    other = directory(tmp_path, model_type="gpt2")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", WITHOUT_TORCH, SMOLLM2_HASH, "torch:smollm2-12m", other]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    drafted, forced, unknown = result.stdout.splitlines()
    assert drafted == "4"
    assert forced == "drafter 'torch:smollm2-12m' needs torch: pip install 'edgebus[torch]'"
    assert "needs torch (model_type is 'gpt2'; the native decoder runs llama" in unknown


@pytest.mark.model
def test_native_and_torch_drafters_agree():
    """The same model in 8 bits and in float32: almost every draft is the same."""
    pytest.importorskip("torch")
    target = described(bytes.fromhex(SMOLLM2_HASH))
    drafters = [open_drafter(spec, target) for spec in ("smollm2-12m", "torch:smollm2-12m")]
    text = ["1", "2", "3", "4", "5", "6", "7", "8"]
    prompt = [1, *(int(word) + 28 for word in text)]
    for drafter in drafters:
        drafter.start(Sampling(), 0)
    reference = drafts(drafters[1], prompt, 40, Window(64))
    same = [
        drafts(drafters[0], [*prompt, *reference[:end]], 1, Window(1)) == reference[end : end + 1] for end in range(40)
    ]
    assert np.mean(same) >= 0.9


@pytest.mark.model
def test_gguf_vocabulary_is_that_of_the_tokenizer():
    pytest.importorskip("torch")
    from edgekernels.gguf import GgufFile

    from sled.targets.catalog import find_model
    from sled.targets.text import codec_from_gguf

    with GgufFile(find_model("smollm2-135m").path) as file:
        ours = vocabulary_of_gguf(file.metadata)
        assert ours == codec_from_gguf(file.metadata).vocabulary()
    assert vocabulary_hash(ours).hex() == SMOLLM2_HASH


@pytest.mark.model
def test_native_and_llama_drafters_agree():
    """The same GGUF file on two engines: almost every draft is the same, also behind what was rolled back."""
    pytest.importorskip("llama_cpp")
    target = described(bytes.fromhex(SMOLLM2_HASH))
    llama, native = (open_drafter(spec, target, threads=1) for spec in ("llama:smollm2-135m", "smollm2-135m"))
    for drafter in (llama, native):
        drafter.start(Sampling(), 0)
    prompt = [1, *range(29, 37)]
    reference = drafts(native, prompt, 24)
    drafts(llama, [*prompt, *reference, 999, 998], 4)  # goes far ahead, and comes back
    same = [drafts(llama, [*prompt, *reference[:end]], 1) == reference[end : end + 1] for end in range(24)]
    assert np.mean(same) >= 0.9
