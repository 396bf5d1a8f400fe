"""The artefact's file: what is written is what is read, and nothing else is taken for one."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qpart.artefact import load, save
from qpart.errors import ArtefactError
from qpart.pieces import content_id
from qpart.run.models import make_served
from tests.qpart import small


@pytest.fixture
def path(tmp_path):
    saved = save(small.artefact(), tmp_path / "small.qpart")
    assert len(saved.model_id) == 16
    return tmp_path / "small.qpart"


def test_everything_comes_back(path):
    before, after = small.artefact(), load(path)
    for name in ("name", "tables", "ranges", "piece_ids", "margin", "shrink", "trials", "seed"):
        assert getattr(after, name) == getattr(before, name), name
    assert np.array_equal(after.inputs, before.inputs)
    assert np.array_equal(after.logits, before.logits)
    for node, (weight, bias) in before.parameters.items():
        assert np.array_equal(after.parameters[node].weight, weight)
        assert bias is None or np.array_equal(after.parameters[node].bias, bias)
    assert after.model_id == load(path).model_id


def test_a_path_may_be_text(tmp_path):
    path = str(tmp_path / "new" / "net.qpart")
    saved = save(small.artefact(), path)
    assert load(path).model_id == saved.model_id
    with pytest.raises(ArtefactError, match=r"none\.qpart cannot be read: No such file"):
        load(str(tmp_path / "none.qpart"))


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one(path, monkeypatch):
    """Id and arrays are of the same bytes, which are read once."""
    once, read = path.read_bytes(), []

    def read_bytes(self):
        read.append(self)
        path.unlink()
        return once

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = load(path)
    assert (found.model_id, read) == (content_id(once), [path])
    assert np.array_equal(found.inputs, small.artefact().inputs)


def test_another_content_has_another_id(path, tmp_path):
    rewrite(path, lambda arrays, record: arrays["5.weight"].__setitem__((0, 0), 9))
    assert load(path).model_id != save(small.artefact(), tmp_path / "again.qpart").model_id


def rewrite(path, change):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["qpart"])
    arrays = load_file(path)
    change(arrays, record)
    save_file(arrays, path, metadata={"qpart": json.dumps(record)})


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, record: record.__setitem__("format", 99),
        lambda arrays, record: record.pop("margin"),
        lambda arrays, record: record["tables"]["network"]["nodes"][0][0].__setitem__(0, "eval"),
        lambda arrays, record: record["tables"]["network"]["nodes"].pop(),
        lambda arrays, record: record["ranges"].pop("0"),
        lambda arrays, record: record["piece_ids"]["0"].pop(),
        lambda arrays, record: record["piece_ids"]["0"].__setitem__(0, "AAAA"),
        lambda arrays, record: arrays.pop("0.weight"),
        lambda arrays, record: arrays.__setitem__("0.weight", arrays["0.weight"][:2]),
        lambda arrays, record: arrays["0.bias"].__setitem__(0, np.nan),
        lambda arrays, record: arrays.__setitem__("inputs", arrays["inputs"][:, :, :3]),
        lambda arrays, record: arrays.__setitem__("logits", arrays["logits"][:-1]),
    ],
)
def test_a_damaged_artefact_is_refused_in_one_line(path, change):
    rewrite(path, change)
    with pytest.raises(ArtefactError) as caught:
        load(path)
    assert "calibrate again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shown", [lambda record: None, lambda record: record.pop("extent")])
def test_an_artefact_with_the_old_bounds_is_refused_and_the_remedy_named(path, shown):
    """Format 2 has budgets from bounds of 93 % where 95 % was said; its other fields do not matter."""

    def older(arrays, record):
        record["format"] = 2
        shown(record)

    rewrite(path, older)
    with pytest.raises(ArtefactError) as caught:
        load(path)
    assert "older version (format 2, now 3)" in str(caught.value)
    assert "bounds" in str(caught.value)
    assert f"calibrate again: qpart calibrate MODEL --data DATA --out {path}" in str(caught.value)


def test_an_artefact_of_a_later_version_is_refused(path):
    rewrite(path, lambda arrays, record: record.__setitem__("format", 4))
    with pytest.raises(ArtefactError, match=r"later version \(format 4, this one reads 3\); update edgebus, or cal"):
        load(path)


def with_array(path, dtype, record=None):
    """A file with four bytes more, of a type that numpy has not."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :] + b"abcd"
    header["more"] = {"dtype": dtype, "shape": [4 // BYTES[dtype]], "data_offsets": [len(data) - 4, len(data)]}
    header["__metadata__"]["qpart"] = record or header["__metadata__"]["qpart"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


BYTES = {"BF16": 2, "F8_E4M3": 1}


@pytest.mark.parametrize("dtype", BYTES)
def test_a_later_version_may_have_arrays_of_types_that_numpy_has_not(path, dtype):
    with_array(path, dtype, '{"format": 4}')
    with pytest.raises(ArtefactError, match=r"later version \(format 4, this one reads 3\); update edgebus"):
        load(path)


@pytest.mark.parametrize("dtype", BYTES)
def test_arrays_of_types_that_numpy_has_not_are_damage(path, dtype):
    with_array(path, dtype)
    with pytest.raises(ArtefactError, match="calibrate again"):
        load(path)


def test_a_record_that_is_nested_deeply_is_damage(path):
    with_array(path, "BF16", '{"format": 3, "more": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ArtefactError, match="calibrate again"):
        load(path)


def test_files_that_are_something_else_are_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    garbage = tmp_path / "garbage.qpart"
    garbage.write_bytes(b"\xff" * 1000)
    for path in (other, garbage, tmp_path / "missing.qpart", tmp_path):
        with pytest.raises(ArtefactError, match="qpart calibrate"):
            load(path)


def test_a_cut_off_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtefactError):
        load(path)


def test_weights_that_give_other_answers_are_not_served(path):
    def flip(arrays, record):
        arrays["5.weight"] *= -1

    rewrite(path, flip)
    with pytest.raises(ArtefactError, match="calibrate it again"):
        make_served(load(path), macs_per_s=1e9)
