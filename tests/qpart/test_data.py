"""Data sets and inputs: what is read is what is there, and what is wrong with a file is said in one line."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from qpart.demo import data
from qpart.errors import ArtefactError, ShapeMismatch
from qpart.inputs import as_float, load_inputs, load_labels


def idx(array) -> bytes:
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    """Four files of a tiny Fashion-MNIST, and what is in them."""
    rng = np.random.default_rng(0)
    held = {}
    for part, count in (("train", 6), ("t10k", 3)):
        held[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        held[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, np.uint8)
    for name, array in held.items():
        (tmp_path / f"{name}.gz").write_bytes(idx(array))
    return tmp_path, held


def test_fashion_mnist_is_read_from_the_directory_that_the_environment_names(fashion, monkeypatch):
    directory, held = fashion
    monkeypatch.setenv(data.VARIABLE, str(directory))
    found = data.load()
    assert found.name == "Fashion-MNIST"
    assert found.train_images.shape == (6, 1, 28, 28)
    assert found.train_images.dtype == np.uint8
    assert found.test_labels.dtype == np.int64
    assert np.array_equal(found.train_images[:, 0], held["train-images-idx3-ubyte"])
    assert np.array_equal(found.test_labels, held["t10k-labels-idx1-ubyte"])


def test_damaged_files_are_refused_in_one_line(fashion):
    directory, held = fashion
    path, labels = directory / "t10k-labels-idx1-ubyte.gz", held["t10k-labels-idx1-ubyte"]
    good = path.read_bytes()
    for content, word in {
        good[:-9]: "damaged",
        b"not gzip": "damaged",
        good[:12] + bytes([good[12] ^ 1]) + good[13:]: "idx1",
        gzip.compress(b"\0\0\x08"): "not an IDX file",
        idx(labels.reshape(1, 3)): "not an IDX file",
        gzip.compress(gzip.decompress(good) + b"\0"): "says",
        idx(labels[:2]): "2 labels",
        idx(labels + 10): "labels",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=word) as caught:
            data.fashion_mnist(directory)
        assert "reinstall" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ArtefactError, match="no file"):
        data.fashion_mnist(directory)


def test_digits_take_the_place_of_what_is_not_installed(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "FASHION_MNIST", str(tmp_path))
    found = data.load()
    assert found.name == "digits"
    assert "scikit-learn" in found.note
    assert found.train_images.shape == (1397, 1, 8, 8)
    assert found.test_images.shape == (400, 1, 8, 8)
    assert found.train_images.max() == 255
    assert set(found.test_labels) == set(range(10))


def test_nothing_to_train_on_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "FASHION_MNIST", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ArtefactError, match=r"dataset-fashion-mnist.*scikit-learn"):
        data.load()


def test_pixels_are_divided_and_floats_taken_as_they_are(tmp_path):
    pixels = np.array([[[0, 51], [255, 102]]], np.uint8)
    assert as_float(pixels, (2, 2)).tolist() == [[[0.0, np.float32(0.2)], [1.0, np.float32(0.4)]]]
    np.save(tmp_path / "x.npy", np.array([1.5, -2.0], np.float32))
    one = load_inputs(tmp_path / "x.npy", (2,))
    assert one.tolist() == [[1.5, -2.0]]
    assert one.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "error", "word"),
    [
        (np.zeros((2, 3)), ArtefactError, "float64"),
        (np.zeros((2, 3), np.float64), ArtefactError, "astype"),
        (np.full((2, 3), 1 << 25, np.int64), ArtefactError, "integers beyond"),
        (np.zeros((3, 2), np.float32), ShapeMismatch, r"one sample \(3,\) or several \('n', 3\)"),
        (np.zeros((1, 1, 3), np.float32), ShapeMismatch, "shape"),
        (np.zeros((0, 3), np.float32), ShapeMismatch, "shape"),
        (np.zeros((), np.float32), ShapeMismatch, "shape"),
        (np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), ArtefactError, "1 samples, first in sample 1"),
        (np.array([[np.inf, 0, 0]], np.float32), ArtefactError, "not finite"),
    ],
)
def test_other_inputs_are_refused(tmp_path, array, error, word):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(error, match=word) as caught:
        load_inputs(tmp_path / "x.npy", (3,))
    assert "x.npy" in str(caught.value)


def test_integers_are_tokens_and_no_pixels():
    assert as_float(np.array([[3, 200]], np.int64), (2,)).tolist() == [[3.0, 200.0]]
    with pytest.raises(ArtefactError, match=r"pixels are uint8 \(array.astype\(numpy.uint8\)\)"):
        as_float(np.zeros((3, 1, 2, 2), np.int64), (1, 2, 2))
    with pytest.raises(ArtefactError, match="tokens, which this network does not take: pixels are uint8"):
        as_float(np.array([[3, 200]], np.int64), (2,), tokens=False)


def test_files_that_are_no_arrays_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 3), np.float32))
    good = path.read_bytes()
    np.save(path, np.array([{}]), allow_pickle=True)
    objects = path.read_bytes()
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    archive = (tmp_path / "x.npz").read_bytes()
    huge = good.replace(b"(4, 3)", b"(9" + b"9" * 15 + b",)")[: len(good)]
    large, open_ended = (good.replace(b"(4, 3), ", text) for text in (b"(1" + b"0" * 15 + b",)", b"((4, 3)  "))
    python2 = good.replace(b"(4, 3), ", b"(4L,3L),")
    for content in (
        b"", good[:5], good[:40], good[:-1], good[:60] + b"\xff" * 60, objects, archive, b"text\n", huge, large,
        open_ended, python2, archive[:-30], b"PK\x03\x04text",
    ):  # fmt: skip
        path.write_bytes(content)
        for read in (lambda: load_inputs(path, (3,)), lambda: load_labels(path)):
            with pytest.raises(ArtefactError) as caught:
                read()
            assert "\n" not in str(caught.value)
            assert "numpy.save" in str(caught.value) or "whole numbers" in str(caught.value)
    with pytest.raises(ArtefactError, match="no file"):
        load_inputs(tmp_path / "none.npy", (3,))
