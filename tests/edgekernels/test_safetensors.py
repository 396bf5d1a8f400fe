"""Our safetensors reader against the `safetensors` package, on files it wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgekernels.safetensors import SafetensorsError, SafetensorsFile

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(3, 5, generator=generator).to(kind) for name, kind in FLOATS.items()}
    integers = {name: torch.randint(0, 120, (4, 2, 3), generator=generator).to(kind) for name, kind in INTEGERS.items()}
    return {**floats, **integers, "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}


def check(file, expected):
    assert file.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        values = file.read(name)
        assert values.dtype == np.float32
        assert values.shape == file.tensors[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(values, tensor.to(torch.float32).numpy())


def test_every_type_is_read_as_torch_converts_it(tmp_path):
    expected = tensors()
    save_file(expected, tmp_path / "m.safetensors", metadata={"format": "pt", "ü": ""})
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert file.metadata == {"format": "pt", "ü": ""}
        check(file, expected)
        for name in (*FLOATS, *INTEGERS):
            assert file.tensors[name].type_name == name
        assert [name for name, _ in file.read_all()] == list(file.tensors)


def test_special_floats_are_kept(tmp_path):
    """Largest, smallest, subnormal, infinite and no number, in every float type."""
    expected = {}
    for name, kind in FLOATS.items():
        info = torch.finfo(kind)
        values = [info.max, -info.max, info.tiny, info.tiny / 4, -0.0, float("inf"), float("nan")]
        expected[name] = torch.tensor(values, dtype=kind)
    save_file(expected, tmp_path / "m.safetensors")
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        check(file, expected)


def shards(folder, **changes):
    """Two shards and their index, with `changes` to its weight_map."""
    first, second = {"a": torch.ones(2, 3), "b": torch.zeros(4)}, {"c": torch.full((5,), 7.0)}
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(second, folder / "model-00002-of-00002.safetensors", metadata={"format": "tf", "more": "x"})
    places = dict.fromkeys(first, "model-00001-of-00002.safetensors") | {"c": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    places = {name: place for name, place in (places | changes).items() if place is not None}
    index.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": places}))
    return index, {**first, **second}


def test_shards_are_read_as_one(tmp_path):
    index, expected = shards(tmp_path)
    with SafetensorsFile(index) as file:
        check(file, expected)
        assert file.metadata == {"format": "pt", "more": "x"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"c": "model-00001-of-00002.safetensors"}, "'c' and shard 'model-00001"),
        ({"d": "model-00002-of-00002.safetensors"}, "'d' and shard 'model-00002"),
        ({"b": None}, "'b' and shard 'model-00001"),
        ({"c": "../model-00002-of-00002.safetensors"}, "a file beside the index"),
        ({"c": "/etc/model.safetensors"}, "a file beside the index"),
        ({"c": "..\\m.safetensors"}, "a file beside the index"),
        ({"c": ".."}, "a file beside the index|no .safetensors"),
        ({"c": "m\0.safetensors"}, "a file beside the index"),
        ({"c": "model.safetensors.index.json"}, "no .safetensors file"),
        ({"c": 5}, "a file beside the index"),
        ({"c": ["model-00002-of-00002.safetensors"]}, "a file beside the index"),
    ],
)
def test_an_index_that_does_not_agree_with_its_shards_is_refused(tmp_path, changes, match):
    index, _ = shards(tmp_path, **changes)
    with pytest.raises(SafetensorsError, match=match):
        SafetensorsFile(index)


def test_a_missing_shard_is_an_error_of_the_system(tmp_path):
    index, _ = shards(tmp_path, c="gone.safetensors")
    with pytest.raises(FileNotFoundError, match="gone"):
        SafetensorsFile(index)


def test_an_index_named_as_its_own_shard_ends(tmp_path):
    """A cycle: a shard is read as a safetensors file only, whatever its name."""
    path = tmp_path / "x.safetensors"
    path.write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    (tmp_path / "i.json").symlink_to(path)
    with pytest.raises(SafetensorsError, match=r"x\.safetensors: a header of \d{15,} bytes in a file of 38"):
        SafetensorsFile(tmp_path / "i.json")


def test_one_tensor_in_two_shards_is_refused(tmp_path):
    index, _ = shards(tmp_path)
    save_file({"c": torch.ones(1), "a": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(SafetensorsError, match="'a' is in another shard too"):
        SafetensorsFile(index)


def test_arrays_outlive_the_file_and_a_closed_file_says_so(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    values = file.read("a")
    file.close()
    assert values.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="closed"):
        file.read("a")
