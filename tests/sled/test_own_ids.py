"""GGUF drafters with ids of their own: read by the native decoder and by torch, refused where they are not sound."""

from __future__ import annotations

import numpy as np
import pytest

from sled.drafters import open_drafter
from sled.drafters.own_ids import HASH_KEY, MAP_KEY, hash_of, map_of
from sled.errors import UnknownModel, VocabularyMismatch
from sled.messages import Described

HASH = bytes(range(16))
TARGET = Described("target", "float32", 90, HASH, 64, 16, [2])
IDS = list(range(1, 80, 2))


def model_file(path, **change):
    """A drafter of 40 ids, each target id 2 i + 1, which says that own id i is followed by i + 1."""
    pytest.importorskip("torch")
    from sled.distill.export import gguf_of
    from sled.distill.gguf_file import gguf_bytes
    from sled.distill.shapes import Shape

    shape = Shape(40, 64, 1, 2, 1, 32, 32, positions=32, tied=False)
    rows = {"q": 64, "k": 32, "v": 32}
    weights = {f"model.layers.0.self_attn.{part}_proj.weight": np.zeros((n, 64)) for part, n in rows.items()}
    weights |= {f"model.layers.0.mlp.{part}_proj.weight": np.zeros((32, 64)) for part in ("gate", "up")}
    weights |= {
        "model.layers.0.self_attn.o_proj.weight": np.zeros((64, 64)),
        "model.layers.0.mlp.down_proj.weight": np.zeros((64, 32)),
        "model.layers.0.input_layernorm.weight": np.ones(64),
        "model.layers.0.post_attention_layernorm.weight": np.ones(64),
        "model.norm.weight": np.ones(64),
        "model.embed_tokens.weight": np.eye(40, 64),
        "lm_head.weight": np.eye(40, 64)[(np.arange(40) - 1) % 40],
    }
    found = {name: weight.astype(np.float32) for name, weight in weights.items()}
    if not change:
        path.write_bytes(gguf_of("counting", shape, found, IDS, HASH, "q8_0"))
        return str(path)
    # the same file with other metadata
    from edgekernels.gguf import GgufFile

    model_file(path)
    with GgufFile(path) as file:
        metadata = file.metadata | change
        tensors = {name: (file.read(name), "f32") for name in file.tensors}
    path.write_bytes(gguf_bytes({key: value for key, value in metadata.items() if value is not None}, tensors))
    return str(path)


@pytest.mark.parametrize("prefix", ["", "torch:"])
def test_own_ids_are_told_as_the_target_s(tmp_path, prefix):
    drafter = open_drafter(prefix + model_file(tmp_path / "x.gguf"), TARGET)
    logits = drafter.model.read(np.array([4, 7]))
    assert logits.shape == (1, 40)
    assert logits.argmax() == 8
    assert drafter._target_ids.tolist() == IDS
    assert drafter._own_ids[[1, 3, 17, 4]].tolist() == [0, 1, 8, 0]  # what it does not have is read as its first


@pytest.mark.parametrize("prefix", ["", "torch:"])
def test_another_target_is_refused(tmp_path, prefix):
    path = model_file(tmp_path / "x.gguf")
    other = Described("other", "float32", 90, bytes(16), 64, 16, [2])
    with pytest.raises(VocabularyMismatch, match="has vocabulary 00010203, the target 'other' has 00000000"):
        open_drafter(prefix + path, other)


@pytest.mark.parametrize("prefix", ["", "torch:"])
@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({MAP_KEY: IDS[:-1]}, VocabularyMismatch, "40 ids under 90 are needed"),
        ({MAP_KEY: []}, VocabularyMismatch, r"shape \(0,\)"),
        ({MAP_KEY: [*IDS[:-1], 90]}, VocabularyMismatch, "ids up to 90"),
        ({MAP_KEY: [*IDS[:-1], 1]}, VocabularyMismatch, "draft_to_target names 1 twice"),
        ({MAP_KEY: [*IDS[:-1], -1]}, UnknownModel, "holds -1; ids of the target are needed"),
        ({MAP_KEY: "1 3 5"}, UnknownModel, "draft_to_target is '1 3 5'; a list of integers is needed"),
        ({HASH_KEY: "00"}, UnknownModel, "is '00'; 32 hexadecimal digits are needed"),
        ({HASH_KEY: None}, UnknownModel, "tokenizer is None"),
    ],
)
def test_unsound_ids_are_refused(tmp_path, prefix, change, error, what):
    with pytest.raises(error, match=what):
        open_drafter(prefix + model_file(tmp_path / "x.gguf", **change), TARGET)


@pytest.mark.parametrize("stated", [7, "zz" * 16, "é" * 32, "a" * 10_000, ["00" * 16], True, b"", ""])
def test_hashes_that_are_none_are_refused(stated):
    with pytest.raises(ValueError, match="32 hexadecimal digits are needed") as caught:
        hash_of({HASH_KEY: stated})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("stated", [7, {}, "1", [1.0], [True], ["1"], [[1]], [1 << 31], [-(1 << 62)], [(1 << 64) - 1]])
def test_maps_that_are_none_are_refused(stated):
    with pytest.raises(ValueError, match=r"(are|is) needed"):
        map_of({MAP_KEY: stated})


def test_what_is_not_stated_is_the_file_s_own():
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]}
    assert map_of(metadata) is None
    assert len(hash_of(metadata)) == 16
