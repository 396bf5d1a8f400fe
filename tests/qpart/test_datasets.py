"""Inputs for calibration: arrays, archives, pictures, and what is none of them."""

from __future__ import annotations

import numpy as np
import pytest

from qpart.datasets import load_data
from qpart.errors import ArtefactError, ShapeMismatch

SHAPE = (1, 4, 6)
PIXELS = np.arange(48, dtype=np.uint8).reshape(2, *SHAPE)


def test_arrays_come_as_they_are(tmp_path):
    np.save(tmp_path / "pixels.npy", PIXELS)
    np.save(tmp_path / "floats.npy", PIXELS.astype(np.float32))
    np.savez(tmp_path / "one.npz", whatever=PIXELS)
    np.savez(tmp_path / "two.npz", labels=np.arange(2), images=PIXELS)
    for name in ("pixels.npy", "one.npz", "two.npz"):
        found = load_data(tmp_path / name, SHAPE)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, PIXELS)
    assert load_data(tmp_path / "floats.npy", SHAPE, limit=1).dtype == np.float32
    assert len(load_data(tmp_path / "one.npz", SHAPE, limit=1)) == 1


def test_one_sample_becomes_one_of_a_batch(tmp_path):
    np.save(tmp_path / "one.npy", PIXELS[0])
    assert load_data(tmp_path / "one.npy", SHAPE).shape == (1, *SHAPE)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_come_in_the_order_of_names_at_the_networks_size(tmp_path, channels, mode):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "b").mkdir()
    for name, level in (("b/first.png", 200), ("a.png", 10), ("c.jpg", 250)):
        image.new("RGB", (12, 8), (level, level, level)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_data(tmp_path, (channels, 4, 6))
    assert (found.shape, found.dtype) == ((3, channels, 4, 6), np.uint8)
    assert found.reshape(3, -1).mean(axis=1).tolist() == pytest.approx([10, 200, 250], abs=3)
    assert len(load_data(tmp_path, (channels, 4, 6), limit=2)) == 2


def test_pixels_stand_where_they_stood(tmp_path):
    image = pytest.importorskip("PIL.Image")
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1, 2] = (10, 20, 30)
    image.fromarray(picture).save(tmp_path / "one.png")
    found = load_data(tmp_path, (3, 4, 6))[0]
    assert found[:, 1, 2].tolist() == [10, 20, 30]
    assert found.sum() == 60


@pytest.mark.parametrize("damage", ["array", "encrypted", "version", "method", "data"])
def test_archives_that_cannot_be_read_are_refused(tmp_path, damage):
    """Both as what they are and under the name of a plain array."""
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, inputs=PIXELS)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the directory
    match damage:
        case "array":
            np.save(tmp_path / "one.npy", PIXELS)
            content = bytearray((tmp_path / "one.npy").read_bytes())
        case "encrypted":
            content[6] |= 1
            content[entry + 8] |= 1
        case "version":
            content[entry + 6] = 171
        case "method":
            content[8] = content[entry + 10] = 77
        case _:
            content[entry // 2 : entry] = bytes(entry - entry // 2)
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="no archive of arrays"):
        load_data(path, SHAPE)
    if damage != "array":
        path.rename(tmp_path / "bad.npy")
        with pytest.raises(ArtefactError):
            load_data(tmp_path / "bad.npy", SHAPE)


def test_what_is_no_data_is_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(ArtefactError, match="no file"):
        load_data(tmp_path / "none.npz", SHAPE)
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    with pytest.raises(ArtefactError, match="no archive"):
        load_data(tmp_path / "bad.npz", SHAPE)
    np.savez(tmp_path / "two.npz", first=PIXELS, second=PIXELS)
    with pytest.raises(ArtefactError, match="arrays first, second"):
        load_data(tmp_path / "two.npz", SHAPE)
    np.savez(tmp_path / "objects.npz", inputs=np.array([{}], object))
    with pytest.raises(ArtefactError, match="no archive"):
        load_data(tmp_path / "objects.npz", SHAPE)
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    with pytest.raises(ArtefactError, match="no pictures"):
        load_data(empty, SHAPE)
    broken.mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ArtefactError, match=r"a\.png is no picture"):
        load_data(broken, SHAPE)
    image.new("L", (4, 4)).save(empty / "a.png")
    with pytest.raises(ShapeMismatch, match="pictures are for"):
        load_data(empty, (16,))
